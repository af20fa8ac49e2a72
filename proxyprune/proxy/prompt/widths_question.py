"""The question for exact widths of channel groups: the network as for scores, and for each group its widths and its price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxyprune.errors import LLMBudgetError
from proxyprune.proxy.answers.widths import WANTED, ProposedWidths, read_widths, shown_widths, widths_schema
from proxyprune.proxy.prompt.advice_question import costliest, savings_of_half
from proxyprune.proxy.prompt.block_list import PromptLabels, shuffled_labels
from proxyprune.proxy.prompt.survey import Survey
from proxyprune.proxy.prompt.templates import filled, template
from proxyprune.proxy.prompt.token_count import tokens_of_prompt

PART = "widths"
_SHARES = (1.0, 0.5, 0.25, 0.1)
"""Shares of the groups and blocks that are listed, those that cost most; the first that fits counts."""


@dataclass(frozen=True)
class GroupWidths:
    """Widths of one channel group.

    Attributes:
        possible: Channels that it may have, ascending.
        now: Channels that the best plan so far keeps, or None.
    """

    possible: tuple[int, ...]
    now: int | None = None


@dataclass(frozen=True)
class WidthsQuestion:
    """One question for widths.

    Attributes:
        user: The question; the shuffled lists come last.
        labels: Labels of the listed channel groups.
        groups: Widths by group.
    """

    user: str = field(repr=False)
    labels: PromptLabels = field(repr=False)
    groups: Mapping[str, GroupWidths] = field(repr=False)

    part = PART
    wanted = WANTED

    @property
    def answer_tokens(self) -> int:
        """Room for a width of every group, and a reason."""
        return 200 + 24 * len(self.labels.of)

    @property
    def system(self) -> str:
        """Static text."""
        return template("widths_system")

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer."""
        return widths_schema(self.labels.order)

    @property
    def tokens(self) -> int:
        """Estimated length, schema included."""
        return tokens_of_prompt(self.system, self.user, self.schema)

    def read(self, text: str) -> ProposedWidths:
        """Return the widths of an answer; see `read_widths`."""
        return read_widths(text, self.labels.keys, {group: self.groups[group].possible for group in self.labels.of})

    def again(self, problems: tuple[str, ...]) -> str:
        """Return the message that follows an invalid answer."""
        return filled("widths_again", problems="\n".join(f"- {problem}" for problem in problems))


def widths_question(survey: Survey, groups: Mapping[str, GroupWidths]) -> WidthsQuestion:
    """Return the question for widths of a network.

    Args:
        survey: The network, the goal and what was measured.
        groups: Widths by channel group; groups with a single width are not listed.

    Raises:
        LLMBudgetError: If it does not fit the token budget even with few groups.
    """
    movable = {group: widths for group, widths in groups.items() if len(widths.possible) > 1}
    longest = 0
    for share in _SHARES:
        found = _question(survey, movable, share)
        if found.tokens <= survey.prompt_tokens:
            return found
        longest = found.tokens
    raise LLMBudgetError(
        f"The question for widths has {longest:,} tokens even with a tenth of the groups, and prompts may have {survey.prompt_tokens:,}. "
        "Raise prompt_tokens."
    )


def _question(survey: Survey, groups: Mapping[str, GroupWidths], share: float) -> WidthsQuestion:
    graph = survey.graph
    listed = [group for group in graph.prunable if group.id in groups]
    wide = costliest(listed, [group.width for group in listed], share)
    blocks = costliest(graph.blocks, [block.macs for block in graph.blocks], share)
    labels = shuffled_labels([group.id for group in wide], "g", survey.seed, PART, "groups")
    of_blocks = shuffled_labels([block.id for block in blocks], "b", survey.seed, PART, "blocks")
    saved = savings_of_half(survey)
    lines = [_line(label, groups[key], graph.by_id[key].blocks, of_blocks, saved[key]) for key, label in labels.of.items()]
    user = (
        survey.head
        + survey.attempts({label: (block,) for block, label in of_blocks.of.items()})
        + filled("widths", groups="\n".join(lines), lines=survey.lines(of_blocks, {}))
    )
    return WidthsQuestion(user, labels, groups)


def _line(label: str, widths: GroupWidths, through: Sequence[str], blocks: PromptLabels, saved: str) -> str:
    now = "" if widths.now is None else f", now {widths.now}"
    passes = ", ".join(blocks.of[block] for block in through if block in blocks.of)
    return (
        f"{label} {widths.possible[-1]} channels at most{now}; possible: {shown_widths(widths.possible)}; "
        f"half of them saves {saved} of the MACs; blocks {passes or 'outside'}"
    )
