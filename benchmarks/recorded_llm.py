"""A frontier language model as an arm of the benchmarks: its recorded answers, replayed without a network.

The name of the model was not recorded, so the arms say so. The answers are in benchmarks/replies/frontier, with their prompts. A prompt
lists each block with its place in the network, and only that place is read, so a block is found again whatever the wording is today.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arms import shuffled

from proxyprune import ModelGraph, Ranking, Scorer, ScoringContext
from proxyprune.errors import InputError
from proxyprune.proxy.answers.agreement import measure_agreement
from proxyprune.proxy.answers.centre import borda

FRONTIER = Path(__file__).parent / "replies" / "frontier"
NAME = "frontier LLM (recorded, model not named)"
STRUCTURE, FIGURES = "A", "B"
"""Questions about the structure alone, and with measured figures."""

_LINE = re.compile(r"^(?P<label>b\d+) at (?P<place>\d+)/(?P<count>\d+) ", re.MULTILINE)


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


def answers_of(network: str, question: str) -> list[tuple[list[float], list[float]]]:
    """For each answer, by place in the network: values in [0, 1], and places in the list that was shown."""
    found = []
    for path in sorted(FRONTIER.glob(f"{network}-{question}-*.answer.json")):
        prompt = path.with_name(path.name.replace(".answer.json", ".prompt.txt")).read_text(encoding="utf-8")
        scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
        lines = list(_LINE.finditer(prompt))
        values, listed = [0.0] * len(lines), [0.0] * len(lines)
        for row, line in enumerate(lines):
            values[int(line["place"]) - 1] = scores[line["label"]] / 10
            listed[int(line["place"]) - 1] = float(row)
        found.append((values, listed))
    if not found:
        raise InputError(f"There are no recorded answers about {network!r} with question {question!r} in {FRONTIER}.")
    return found


def recorded_arms(network: str) -> dict[str, Scorer]:
    """Both questions, and the control of each: the same scores handed to other blocks."""
    arms: list[Scorer] = [RecordedLLM(network), RecordedLLM(network, FIGURES)]
    return {arm.name: arm for each in arms for arm in (each, shuffled(each))}
