"""Choices that decide how channels couple: options of the caller and amendments found by probing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from proxyprune.support.dataclass_json import from_plain, to_plain


@dataclass(frozen=True)
class Amendments:
    """What probing found out that no op shows; part of a plan's options, so that the same groups are found again.

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


@dataclass(frozen=True)
class Options:
    """How norm groups and convolution groups may shrink, and the rules that the caller registered.

    Attributes:
        norm_groups: "balanced" keeps the number of norm groups and takes the same number of channels from each; "whole" removes
            whole norm groups; "reduced" may lower the number of norm groups for finer steps.
        conv_groups: "balanced" keeps the number of convolution groups; "whole" removes whole ones.
        rules: Registered rule by op name ("mylib.swish"), as they were when the trace began.
    """

    norm_groups: str = "balanced"
    conv_groups: str = "balanced"
    rules: Mapping[str, Callable[[Any, Node], Any]] = field(default_factory=dict, repr=False)
