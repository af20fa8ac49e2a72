"""A frontier language model as an arm of the benchmarks: its recorded answers, replayed without a network.

The name of the model was not recorded, so the arms say so. The answers are in benchmarks/replies/frontier, with their prompts. A prompt
lists each block with its place in the network, and only that place is read, so a block is found again whatever the wording is today.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from arms import shuffled

from proxyprune import ModelGraph, Ranking, Scorer, ScoringContext
from proxyprune.errors import InputError
from proxyprune.proxy.answers.agreement import measure_agreement
from proxyprune.proxy.answers.centre import borda
from proxyprune.scoring import find
from proxyprune.scoring.tools.channel_prior import with_block_prior
from proxyprune.searching import History
from proxyprune.support.seeds import derived_seed

FRONTIER = Path(__file__).parent / "replies" / "frontier"
NAME = "frontier LLM (recorded, model not named)"
STRUCTURE, FIGURES = "A", "B"
"""Questions about the structure alone, and with measured figures."""

PRIOR = 0.5
"""Weight of the block scores on Taylor's channels, the same in every cell; `channels="taylor"` chooses it by measuring instead."""

_LINE = re.compile(r"^(?P<label>b\d+) at (?P<place>\d+)/(?P<count>\d+) ", re.MULTILINE)
_ATTEMPT = re.compile(r"^attempt \d+", re.MULTILINE)


@dataclass(frozen=True)
class RecordedLLM:
    """The centre of five recorded answers about one of the three networks.

    Args:
        network: "cnn", "unet" or "dit".
        question: `STRUCTURE` or `FIGURES`.
    """

    network: str
    question: str = STRUCTURE
    needs: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return NAME if self.question == STRUCTURE else f"{NAME}, with figures"

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Return the Borda centre of the answers, as for a model that is asked now; the same for every seed."""
        answers = answers_of(self.network, self.question)
        if {len(values) for values, _ in answers} != {len(graph.blocks)}:
            raise InputError(f"The answers are about {len(answers[0][0])} blocks, and this network has {len(graph.blocks)}.")
        values = np.array([values for values, _ in answers])
        agreement = measure_agreement(values, np.array([listed for _, listed in answers]), context.seed)
        centre = borda(values, np.array([block.macs for block in graph.blocks], dtype=np.float64))
        scores = {block.id: float(value) for block, value in zip(graph.blocks, centre, strict=True)}
        note = f"{len(answers)} recorded answers of a frontier language model, whose name was not recorded; W {agreement.concordance:.2f}."
        return Ranking(scores, self.name, confidence=round(agreement.tau, 6), notes=(note,), unreliable=agreement.verdict(len(answers)))


@dataclass(frozen=True)
class OnTaylor:
    """Block scores of another scorer as a prior on Taylor's channels, with the weight `PRIOR`."""

    blocks: Scorer

    @property
    def name(self) -> str:
        return f"{self.blocks.name}, on taylor's channels"

    @property
    def needs(self) -> frozenset[str]:
        return self.blocks.needs | find("taylor", {}).needs

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Return Taylor's channel scores, multiplied by exp(b z); whole blocks leave by the other scorer's scores."""
        blocks = self.blocks.score(graph, context)
        weighted = with_block_prior(graph, find("taylor", {}).score(graph, context), blocks.scores, PRIOR)
        return replace(weighted, scorer=self.name, removal_scores=dict(blocks.scores))


@dataclass(frozen=True)
class RecordedProposer:
    """The recorded answers of one search with memory: answer i is the proposal of round i.

    The answers were given to the losses of their own day. Losses that are measured today may differ in the last digits.

    Args:
        seed: Seed of the recorded search: 0 or 1.
        control: Hand the scores of each answer to other blocks.
        name: Follows from `control`.
    """

    seed: int
    control: bool = False
    name: str = field(init=False)
    repeats: int = field(default=6, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", SEARCH_CONTROL if self.control else SEARCH)

    def propose(self, history: History) -> Ranking:
        """Return the answer of this round; after the last one, the last one again."""
        answers = [values for values, _ in searched(self.seed)]
        number = min(len(history.rounds), len(answers)) - 1
        values = answers[number]
        if self.control:
            values = np.random.default_rng(derived_seed(self.seed, "shuffled search", number)).permutation(values).tolist()
        scores = dict(zip(history.start.scores, values, strict=True))
        return history.ranking(scores, self.name, f"Recorded answer {number + 1} of {len(answers)}.")


SEARCH = f"{NAME}, with memory"
SEARCH_CONTROL = f"{SEARCH}, shuffled"


def searched(seed: int) -> list[tuple[list[float], list[float]]]:
    """Return the answers of a recorded search, in the order of its rounds; each as in `answers_of`."""
    prompts = sorted((FRONTIER / "search").glob(f"search{seed}-*.prompt.txt"), key=lambda path: len(_ATTEMPT.findall(path.read_text())))
    if not prompts:
        raise InputError(f"There are no recorded answers of a search with seed {seed} in {FRONTIER / 'search'}.")
    return [_read(path) for path in prompts]


def answers_of(network: str, question: str) -> list[tuple[list[float], list[float]]]:
    """For each answer, by place in the network: values in [0, 1], and places in the list that was shown."""
    found = [_read(path) for path in sorted(FRONTIER.glob(f"{network}-{question}-*.prompt.txt"))]
    if not found:
        raise InputError(f"There are no recorded answers about {network!r} with question {question!r} in {FRONTIER}.")
    return found


def _read(prompt: Path) -> tuple[list[float], list[float]]:
    """Return one answer, from its prompt and the file beside it."""
    scores = json.loads(prompt.with_name(prompt.name.replace(".prompt.txt", ".answer.json")).read_text(encoding="utf-8"))["scores"]
    lines = list(_LINE.finditer(prompt.read_text(encoding="utf-8")))
    values, listed = [0.0] * len(lines), [0.0] * len(lines)
    for row, line in enumerate(lines):
        values[int(line["place"]) - 1] = scores[line["label"]] / 10
        listed[int(line["place"]) - 1] = float(row)
    return values, listed


def recorded_arms(network: str) -> dict[str, Scorer]:
    """Both questions, and the control of each: the same scores handed to other blocks."""
    arms: list[Scorer] = [RecordedLLM(network), RecordedLLM(network, FIGURES)]
    return {arm.name: arm for each in arms for arm in (each, shuffled(each))}


def prior_arms(network: str) -> dict[str, Scorer]:
    """Both questions on Taylor's channels, and the control of each."""
    return {arm.name: arm for arm in map(OnTaylor, recorded_arms(network).values())}
