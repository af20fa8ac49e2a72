"""A timer whose times are a formula, for tests of what is made from times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from proxyprune.measuring.op_calls import OpCall

NANOSECONDS_PER_ENTRY = 10


class Clockwork:
    """Times a call by the entries of its tensors, and a network by a constant.

    Attributes:
        asked: Texts of all calls that were measured, in order.
        network: Nanoseconds of any whole network.
        refused: Calls of ops whose text contains this cannot be measured.
    """

    def __init__(self, network: int = 10**9, refused: str = "nothing") -> None:
        self.asked: list[str] = []
        self.network = network
        self.refused = refused

    def measure(self, calls: Sequence[OpCall]) -> Iterator[tuple[OpCall, int]]:
        """Yield ten nanoseconds for each entry."""
        for call in calls:
            self.asked.append(call.text)
            if self.refused not in call.text:
                yield call, NANOSECONDS_PER_ENTRY * sum(math.prod(spec.shape) for spec in call.tensors)

    def whole(self, run: Callable[[], Any]) -> int:
        """Return the constant, after one run."""
        run()
        return self.network
