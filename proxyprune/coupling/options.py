"""Choices that decide how channels couple: options of the caller and amendments found by probing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from torch.fx import Node

from proxyprune.errors import InputError
from proxyprune.support.dataclass_json import from_plain, to_plain

NORM_GROUPS = ("balanced", "whole", "reduced")
CONV_GROUPS = ("balanced", "whole")
ADAPTER_RANKS = ("keep", "cut")


@dataclass(frozen=True)
class Amendments:
    """Findings of probing that no op shows; part of a plan's options, so that the same groups are found again.

    Attributes:
        pins: "parameter:dim" -> why this dimension must stay.
        ties: Pairs of "parameter:dim" of equal size whose positions leave pairwise together.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pins or self.ties)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Amendments:
        """Return the inverse of `to_dict`."""
        return from_plain(cls, data)


class TraceKeywords(TypedDict, total=False):
    """Keyword arguments that decide how grouped layers and adapters may shrink.

    Attributes:
        norm_groups: How GroupNorm shrinks: "balanced" (default) keeps the number of groups and takes as many channels from each, "whole"
            takes whole groups, "reduced" may lower the number of groups for finer steps.
        conv_groups: How a grouped convolution shrinks: "balanced" (default) keeps its groups, "whole" takes whole groups.
        adapter_ranks: "keep" (default) leaves the inner ranks of adapters (LoRA) whole, "cut" lets them shrink.
    """

    norm_groups: str
    conv_groups: str
    adapter_ranks: str


@dataclass(frozen=True)
class Options:
    """The ways in which norm groups and convolution groups may shrink, and the rules that the caller registered.

    Attributes:
        norm_groups: "balanced", "whole" or "reduced"; see `TraceKeywords`.
        conv_groups: "balanced" or "whole".
        adapter_ranks: "keep" or "cut".
        rules: Registered rule by op name ("mylib.swish"), as they were when the trace began.

    Raises:
        InputError: If a value is unknown.
    """

    norm_groups: str = "balanced"
    conv_groups: str = "balanced"
    rules: Mapping[str, Callable[[Any, Node], Any]] = field(default_factory=dict, repr=False)
    adapter_ranks: str = "keep"

    def __post_init__(self) -> None:
        known_values = {"norm_groups": NORM_GROUPS, "conv_groups": CONV_GROUPS, "adapter_ranks": ADAPTER_RANKS}
        for name, known in known_values.items():
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}; found {value!r}.")
