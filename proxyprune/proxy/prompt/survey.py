"""The questions: the prompts of one sample, and how their answers make one score map.

A small network is one list of blocks. A large one is asked about in two steps, the stages and then the blocks of each stage, each prompt
within the token budget; a block's value is the mean of its stage's score and its own, so a stage sets the level and a block moves within
half of the scale around it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from proxyprune.errors import LLMBudgetError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.structure import Block
from proxyprune.proxy.answers.answer import HIGHEST, LEVELS, answer_schema, read_answer
from proxyprune.proxy.prompt.block_list import PromptLabels, block_line, share, shuffled_labels
from proxyprune.proxy.prompt.noise_interval import describe_interval
from proxyprune.proxy.prompt.past_attempts import describe_attempts
from proxyprune.proxy.prompt.stages import Stage, stages_of
from proxyprune.proxy.prompt.templates import filled, template
from proxyprune.proxy.prompt.token_count import tokens_of, tokens_of_prompt
from proxyprune.scoring.brief import Brief

_MODES = {
    "width": "channels inside the blocks and between them (width)",
    "depth": "whole removable blocks (depth)",
    "both": "whole removable blocks, and channels of the others (depth and width)",
}
_MEMORY_SHARES = (0.3, 0.1)
"""Share of a prompt for earlier attempts: the first, or the second where the prompts of a large network do not fit otherwise."""

_MOST_LISTED = 120
"""Longest list, whatever the token budget: services limit the size of a schema, and models lose their way in long lists."""

_CAPACITIES = (0.7, 0.55, 0.4, 0.25, 0.15)


@dataclass(frozen=True)
class Prompt:
    """One question.

    Attributes:
        part: "blocks", "stages", or the key of a stage.
        system: Static text.
        user: The question; what stays the same comes first, the shuffled list last.
        labels: What the labels of the list stand for.
    """

    part: str
    system: str = field(repr=False)
    user: str = field(repr=False)
    labels: PromptLabels = field(repr=False)

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer."""
        return answer_schema(self.labels.order)

    @property
    def answer_tokens(self) -> int:
        """Room for every score."""
        return 16 * len(self.labels.of)

    @property
    def wanted(self) -> str:
        """The answer in words."""
        return "score map"

    def read(self, text: str) -> dict[str, int]:
        """Return the score of each block or stage; see `read_answer`."""
        scores = read_answer(text, self.labels.order, levels=self.levels)
        return {key: scores[label] for key, label in self.labels.of.items()}

    def again(self, problems: tuple[str, ...]) -> str:
        """Return the message that follows an invalid answer."""
        return filled("again", problems="\n".join(f"- {problem}" for problem in problems), count=len(self.labels.of))

    @property
    def levels(self) -> int:
        """Different scores that an answer needs: the whole network must be ranked, the blocks of one stage may be alike."""
        return LEVELS if self.part in ("blocks", "stages") else 1

    @property
    def tokens(self) -> int:
        """Estimated length, schema included."""
        return tokens_of_prompt(self.system, self.user, self.schema)


@dataclass(frozen=True)
class Division:
    """The division of a large network into prompts.

    Attributes:
        stages: In the order of execution.
        memory: Share of a prompt that earlier attempts may take.
    """

    stages: tuple[Stage, ...]
    memory: float


@dataclass(frozen=True)
class Survey:
    """Everything that is asked about one network.

    Attributes:
        graph: The network.
        brief: Goal, interval and earlier attempts.
        seed: The shuffles follow from it.
        prompt_tokens: Longest prompt.
        real_names: Whether module names are shown.
        measured: z-scores by statistic, then by block.
        unmeasured: Why figures that would be shown could not be measured, or None.
        times: Nanoseconds of a run by block, "" for what lies in none; empty shows no times.
    """

    graph: ModelGraph
    brief: Brief
    seed: int
    prompt_tokens: int
    real_names: bool = False
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unmeasured: str | None = None
    times: Mapping[str, int] = field(default_factory=dict)
    _made: dict[int, tuple[Prompt, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def prompts(self, sample: int) -> tuple[Prompt, ...]:
        """All questions of one sample; together they cover every block."""
        if sample not in self._made:
            found = self.division
            self._made[sample] = (self._about_blocks(sample),) if found is None else self._in_stages(sample, found.stages, found.memory)
        return self._made[sample]

    def combined(self, answers: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
        """One value in [0, 1] for each block, in graph order.

        Args:
            answers: Score by key, for each part.
        """
        if self.stages is None:
            return {block.id: answers["blocks"][block.id] / HIGHEST for block in self.graph.blocks}
        found: dict[str, float] = {}
        for stage in self.stages:
            level = answers["stages"][stage.key] / HIGHEST
            for block in stage.blocks:
                own = answers[stage.key][block.id] / HIGHEST if stage.key in answers else level
                found[block.id] = (level + own) / 2.0
        return {block.id: found[block.id] for block in self.graph.blocks}

    @property
    def stages(self) -> tuple[Stage, ...] | None:
        """The stages of a network that does not fit one prompt, else None."""
        return None if self.division is None else self.division.stages

    @cached_property
    def division(self) -> Division | None:
        """The division of a network that does not fit one prompt, else None.

        Raises:
            LLMBudgetError: If no division fits the token budget.
        """
        if len(self.graph.blocks) <= _MOST_LISTED and self._about_blocks(0).tokens <= self.prompt_tokens:
            return None
        longest = 0
        for memory, capacity in itertools.product(_MEMORY_SHARES if self.brief.attempts else _MEMORY_SHARES[:1], _CAPACITIES):
            stages = stages_of(self.graph, capacity * self.prompt_tokens, self._weight)
            prompts = self._in_stages(0, stages, memory)
            longest = max(prompt.tokens for prompt in prompts)
            if longest <= self.prompt_tokens and max(len(prompt.labels.of) for prompt in prompts) <= _MOST_LISTED:
                return Division(stages, memory)
        raise LLMBudgetError(
            f"A network of {len(self.graph.blocks)} blocks does not fit prompts of {self.prompt_tokens:,} tokens, not even in stages: "
            f"the longest would have {longest:,}. Raise prompt_tokens."
        )

    def _weight(self, block: Block) -> float:
        """Tokens that one more block takes: its line, its memory, and its place in the schema."""
        line = block_line(self.graph, block, 1, {}, measured=self._of(block.id), real_name=self.real_names, time=self._time_of([block]))
        return tokens_of(line) + 24.0 + 6.0 * min(len(self.brief.attempts), 3)

    def _of(self, block: str) -> dict[str, float]:
        return {name: values[block] for name, values in self.measured.items()}

    def _time_of(self, blocks: Sequence[Block]) -> str:
        """Return the share of the time that blocks take together; empty if no times are shown."""
        return share(sum(self.times.get(block.id, 0) for block in blocks), sum(self.times.values())) if self.times else ""

    @cached_property
    def _system(self) -> str:
        return template("system")

    @cached_property
    def head(self) -> str:
        """The part of the question that is the same in every sample."""
        goal = filled(
            "goal",
            target="a share that is not fixed yet" if self.brief.target is None else _amount(self.brief.target),
            metric="MACs" if self.brief.metric == "macs" else "parameters",
            macs=f"{self.graph.macs:,}",
            params=f"{self.graph.params:,}",
            blocks=len(self.graph.blocks),
            mode=_MODES.get(self.brief.mode, "as the planner decides"),
        )
        interval = "" if self.brief.interval is None else describe_interval(self.brief.interval)
        return goal + interval + (template("time") if self.times else "")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {block.id: place for place, block in enumerate(self.graph.blocks, start=1)}

    def lines(self, labels: PromptLabels, others: Mapping[str, str]) -> str:
        """Return a line for each labelled block; `others` has labels of what these blocks may read besides."""
        named = {**others, **labels.of}
        lines = (
            f"{label} "
            + block_line(
                self.graph,
                self.graph.block_by_id[block],
                self._places[block],
                named,
                measured=self._of(block),
                real_name=self.real_names,
                time=self._time_of([self.graph.block_by_id[block]]),
            )
            for block, label in labels.of.items()
        )
        return "\n".join(lines)

    def attempts(self, blocks: Mapping[str, tuple[str, ...]], memory: float = _MEMORY_SHARES[0]) -> str:
        """Return the section about earlier attempts; `blocks` are those that each label stands for."""
        return describe_attempts(self.brief, self.graph.macs, blocks, memory * self.prompt_tokens)

    def _about_blocks(self, sample: int) -> Prompt:
        labels = shuffled_labels([block.id for block in self.graph.blocks], "b", self.seed, sample, "blocks")
        memory = self.attempts({label: (block,) for block, label in labels.of.items()})
        question = filled("blocks", count=len(labels.of), lines=self.lines(labels, {}))
        return Prompt("blocks", self._system, self.head + memory + question, labels)

    def _in_stages(self, sample: int, stages: tuple[Stage, ...], memory_share: float) -> tuple[Prompt, ...]:
        labels = shuffled_labels([stage.key for stage in stages], "s", self.seed, sample, "stages")
        of_block = {block.id: labels.of[stage.key] for stage in stages for block in stage.blocks}
        by_key = {stage.key: stage for stage in stages}
        overview = "\n".join(
            f"{label} {by_key[key].line(self.graph, len(stages), of_block, self.measured, self._time_of(by_key[key].blocks))}"
            for key, label in labels.of.items()
        )
        memory = self.attempts({label: tuple(block.id for block in by_key[key].blocks) for key, label in labels.of.items()}, memory_share)
        question = filled("stages", count=len(stages), lines=overview)
        first = Prompt("stages", self._system, self.head + memory + question, labels)
        return (
            first,
            *(self._about_stage(sample, stage, labels, (of_block, overview), memory_share) for stage in stages if len(stage.blocks) > 1),
        )

    def _about_stage(
        self, sample: int, stage: Stage, stages: PromptLabels, around: tuple[Mapping[str, str], str], memory_share: float
    ) -> Prompt:
        of_block, overview = around
        labels = shuffled_labels([block.id for block in stage.blocks], "b", self.seed, sample, stage.key)
        memory = self.attempts({label: (block,) for block, label in labels.of.items()}, memory_share)
        question = filled("stage", overview=overview, count=len(labels.of), stage=stages.of[stage.key], lines=self.lines(labels, of_block))
        return Prompt(stage.key, self._system, self.head + memory + question, labels)


def _amount(target: float | int | str) -> str:
    """Return a budget in words: a fraction as percentage, everything else as it was asked for."""
    if isinstance(target, float) and 0.0 < target < 1.0:
        return f"{target:.1%}"
    return str(target)[:40]
