"""The list at the end of a prompt: one line for each block or stage, in random order, under labels that mean nothing.

Labels are numbered in the order of the list, and the list is shuffled anew for every sample. A model that answers by position, or by the
number in the label, thus contradicts itself from one sample to the next instead of looking sure.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.structure import Block
from proxyprune.support.seeds import derived_seed

_LONGEST_NAME = 80
_INPUT = "input"
_OUTSIDE = "outside"


@dataclass(frozen=True)
class PromptLabels:
    """The meaning of each label in one prompt.

    Attributes:
        of: Label of each key (a block id or a stage's name), in the order of the list.
    """

    of: Mapping[str, str]

    @property
    def keys(self) -> Mapping[str, str]:
        """Key of each label, in the order of the list."""
        return {label: key for key, label in self.of.items()}

    @property
    def order(self) -> tuple[str, ...]:
        """The labels as they are listed."""
        return tuple(self.of.values())


def shuffled_labels(keys: Sequence[str], prefix: str, seed: int, *purpose: str | int) -> PromptLabels:
    """Put keys into random order and number them."""
    order = list(keys)
    random.Random(derived_seed(seed, "listing", *purpose)).shuffle(order)
    digits = max(2, len(str(len(order) - 1)))
    return PromptLabels({key: f"{prefix}{place:0{digits}d}" for place, key in enumerate(order)})


def block_line(
    graph: ModelGraph,
    block: Block,
    place: int,
    labels: Mapping[str, str],
    *,
    measured: Mapping[str, float],
    real_name: bool,
    time: str = "",
) -> str:
    """One block, without its label.

    Args:
        graph: The whole network.
        block: The block.
        place: Its place in the order of execution, from 1.
        labels: PromptLabels of the blocks, or of their stages, that `reads` may mention.
        measured: z-score by the name of the statistic.
        real_name: Whether to add the module's name.
        time: Its share of the time of a run; empty shows none.
    """
    widths = ">".join("?" if width is None else str(width) for width in block.widths)
    parts = [f"at {place}/{len(graph.blocks)}", block.kind]
    if block.widths != (None, None):
        parts.append(widths)
    if block.resolution:
        parts.append("@" + "x".join(map(str, block.resolution)))
    parts.append(f"MACs {share(block.macs, graph.macs)} params {share(block.params, graph.params)}" + (f" time {time}" if time else ""))
    parts.append("reads " + _sources(block.inputs, labels))
    tail = ["removable"] if block.removable else []
    tail += [f"measured {figures(measured)}"] if measured else []
    tail += [f"name {quoted(block.id)}"] if real_name else []
    return "; ".join([" ".join(parts), *tail])


def share(part: int, whole: int) -> str:
    """Percentage with enough digits to tell small blocks apart."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f}%" if percent >= 10 else f"{percent:.2f}%"


def figures(measured: Mapping[str, float]) -> str:
    """z-scores with their sign."""
    return " ".join(f"{name} {value:+.2f}" for name, value in measured.items())


def quoted(name: str) -> str:
    """Return a name as inert text: quotation marks, control characters and everything beyond ASCII escaped, and cut to a sane length."""
    shown = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
    return json.dumps(shown, ensure_ascii=True)


def _sources(inputs: Sequence[str], labels: Mapping[str, str]) -> str:
    named = (labels.get(source, _INPUT if source == _INPUT else _OUTSIDE) for source in inputs)
    return ", ".join(dict.fromkeys(named)) or "nothing"
