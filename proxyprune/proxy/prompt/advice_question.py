"""The question for advice: the network as for scores, its channel groups, and the source code of its blocks if that may be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from proxyprune.coupling.groups import ChannelGroup
from proxyprune.errors import LLMBudgetError
from proxyprune.proxy.answers.advice import FLOOR, KEEP, REMOVE, SAME_WIDTH, WANTED, ProposedAdvice, advice_schema, read_advice
from proxyprune.proxy.prompt.block_list import PromptLabels, share, shuffled_labels
from proxyprune.proxy.prompt.survey import Survey
from proxyprune.proxy.prompt.templates import filled, template
from proxyprune.proxy.prompt.token_count import CHARACTERS_PER_TOKEN, tokens_of_prompt

PART = "advice"
_ANSWER_TOKENS = 1200
_SHARES = ((1.0, 1.0, 0.5), (1.0, 1.0, 0.25), (1.0, 0.5, 0.1), (0.5, 0.5, 0.1), (0.5, 0.0, 0.0), (0.25, 0.0, 0.0), (0.1, 0.0, 0.0))
"""Shares of the blocks and of the channel groups that are listed, those that cost most, and of a prompt for source code. The first fit
counts."""


@dataclass(frozen=True)
class AdviceQuestion:
    """One question for advice.

    Attributes:
        user: The question; the shuffled list comes last.
        blocks: Labels of the listed blocks.
        groups: Labels of the listed channel groups.
        removable: Labels of the blocks that can be removed.
    """

    user: str = field(repr=False)
    blocks: PromptLabels = field(repr=False)
    groups: PromptLabels = field(repr=False)
    removable: frozenset[str] = field(repr=False)

    part = PART
    wanted = WANTED
    answer_tokens = _ANSWER_TOKENS

    @property
    def system(self) -> str:
        """Static text."""
        return template("advice_system")

    @cached_property
    def labels(self) -> PromptLabels:
        """All labels, blocks first."""
        return PromptLabels({**self.blocks.of, **self.groups.of})

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer."""
        return advice_schema(self.labels.order)

    @property
    def tokens(self) -> int:
        """Estimated length, schema included."""
        return tokens_of_prompt(self.system, self.user, self.schema)

    def read(self, text: str) -> ProposedAdvice:
        """Return the advice of an answer; see `read_advice`."""
        everything = frozenset(self.labels.order)
        permitted = {KEEP: everything, FLOOR: everything, SAME_WIDTH: frozenset(self.groups.order), REMOVE: self.removable}
        return read_advice(text, self.labels.keys, permitted)

    def again(self, problems: tuple[str, ...]) -> str:
        """Return the message that follows an invalid answer."""
        return filled("advice_again", problems="\n".join(f"- {problem}" for problem in problems))


def advice_question(survey: Survey, sources: Mapping[str, str]) -> AdviceQuestion:
    """Return the question for advice about a network.

    Args:
        survey: The network, the goal and what was measured.
        sources: Source code by block, for those whose code may be shown; empty shows none.

    Raises:
        LLMBudgetError: If it does not fit the token budget even with few blocks.
    """
    longest = 0
    for shares in _SHARES:
        found = _question(survey, sources, *shares)
        if found.tokens <= survey.prompt_tokens:
            return found
        longest = found.tokens
    raise LLMBudgetError(
        f"The question for advice has {longest:,} tokens even with a tenth of the blocks, and prompts may have {survey.prompt_tokens:,}. "
        "Raise prompt_tokens, or show no source code."
    )


def _question(survey: Survey, sources: Mapping[str, str], blocks_share: float, groups_share: float, code_share: float) -> AdviceQuestion:
    graph = survey.graph
    listed = costliest(graph.blocks, [block.macs for block in graph.blocks], blocks_share)
    blocks = shuffled_labels([block.id for block in listed], "b", survey.seed, PART, "blocks")
    wide = costliest(graph.prunable, [group.width for group in graph.prunable], groups_share)
    groups = shuffled_labels([group.id for group in wide], "g", survey.seed, PART, "groups")
    by_id = graph.by_id
    saved = savings_of_half(survey)
    lines = "\n".join(_group_line(label, by_id[key], blocks, saved[key]) for key, label in groups.of.items())
    missing = len(graph.blocks) - len(listed)
    attempts = survey.attempts({label: (block,) for block, label in blocks.of.items()})
    user = (
        survey.head
        + attempts
        + _source_section(sources, blocks, code_share * survey.prompt_tokens)
        + filled(
            "advice",
            left_out=f" The {missing} cheapest of its blocks are not listed." if missing else "",
            groups=filled("advice_groups", lines=lines) if groups.of else "",
            lines=survey.lines(blocks, {}),
        )
    )
    removable = frozenset(blocks.of[block.id] for block in listed if block.removable)
    return AdviceQuestion(user, blocks, groups, removable)


def costliest(entries: Sequence[Any], cost: Sequence[int], share: float) -> list[Any]:
    """Return a share of the entries, those that cost most, in their own order."""
    count = round(share * len(entries))
    chosen = sorted(range(len(entries)), key=lambda index: (-cost[index], index))[:count]
    return [entries[index] for index in sorted(chosen)]


def savings_of_half(survey: Survey) -> dict[str, str]:
    """Return the share of the MACs that leaves with half of each group, all other widths whole."""
    graph, full = survey.graph, survey.graph.cost.full
    found = {}
    for index, group in enumerate(graph.prunable):
        atoms = full.copy()
        atoms[index] = group.atoms - group.atoms // 2
        found[group.id] = share(graph.macs - graph.cost.macs(atoms), graph.macs)
    return found


def _group_line(label: str, group: ChannelGroup, blocks: PromptLabels, saved: str) -> str:
    through = ", ".join(blocks.of[block] for block in group.blocks if block in blocks.of)
    return f"{label} {group.width} channels; half of them saves {saved} of the MACs; blocks {through or 'outside'}"


def _source_section(sources: Mapping[str, str], blocks: PromptLabels, most_tokens: float) -> str:
    """Return the source code, each text once with the blocks that it is of, in equal parts of the room that there is."""
    owners: dict[str, list[str]] = {}
    for block, label in blocks.of.items():
        if block in sources:
            owners.setdefault(sources[block], []).append(label)
    if not owners or not most_tokens:
        return ""
    room = int(most_tokens * CHARACTERS_PER_TOKEN / len(owners))
    listings = []
    for text, labels in owners.items():
        shown = text if len(text) <= room else text[:room] + "\n... (cut)"
        listings.append(f"Blocks {', '.join(sorted(labels))}:\n{shown.rstrip()}")
    return filled("advice_source", listings="\n\n".join(listings))
