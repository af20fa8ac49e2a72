"""Settings of time measurements, as one value. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from proxyprune.errors import InputError
from proxyprune.support.checks import is_count

DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Timing:
    """The conditions under which a forward pass is timed.

    Attributes:
        batch: Samples in one run; the example inputs are repeated along their first dimension. None takes them as they are.
        threads: Threads of the processor, or None for torch's current number.
        dtype: "float32", "float16", "bfloat16" or "float64" for weights and floating-point inputs; None takes the model's own.
        compiled: Time under `torch.compile`.
        repeats: Timed runs of each network.

    Raises:
        InputError: If a value is out of range.
    """

    batch: int | None = None
    threads: int | None = None
    dtype: str | None = None
    compiled: bool = False
    repeats: int = 15

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("threads", 1), ("repeats", 3)):
            value = getattr(self, name)
            if not (value is None and name != "repeats") and not is_count(value, least):
                raise InputError(f"Expected {name} of a timing as a whole number from {least} up, found {value!r}.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"Unknown dtype {self.dtype!r} of a timing; expected one of {', '.join(DTYPES)}, or None for the model's own.")

    def to_dict(self) -> dict[str, int | str | bool | None]:
        """Return plain JSON types."""
        return asdict(self)
