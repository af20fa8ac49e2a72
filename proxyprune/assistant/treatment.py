"""The treatment of a network after the cut, before it is measured or saved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Treatment:
    """The treatment of a network after the cut.

    Attributes:
        compensate: Refit the remaining weights in closed form.
        recovery: Fine-tune shortly, afterwards.
    """

    compensate: bool = False
    recovery: bool = False

    @property
    def label(self) -> str:
        """Name in answers and in the log."""
        return _LABELS[self.compensate, self.recovery]


_LABELS = {
    (False, False): "cut",
    (False, True): "recovered",
    (True, False): "compensated",
    (True, True): "compensated and recovered",
}
LABELS = tuple(_LABELS.values())
"""All treatments."""
