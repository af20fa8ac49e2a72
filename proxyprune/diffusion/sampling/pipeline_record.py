"""What is known about a step-adaptive pipeline besides its weights: the record in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import Intervals
from proxyprune.errors import StorageError

SCHEMA = 1
RECORD = "step_adaptive.json"


@dataclass(frozen=True)
class Blueprint:
    """What is known about a pipeline besides its weights.

    Attributes:
        intervals: Which expert works where.
        calling: How networks are called.
        shape: Channels, height and width of an image.
        classes: Number of classes, 0 for none.
        macs: Exact MACs of each expert.
        params: Parameters of each expert.
        base_macs: MACs of the unpruned network.
        network: Class and settings of the unpruned diffusers network, or None for a model file.
        notes: For the reader.
    """

    intervals: Intervals
    calling: Calling
    shape: tuple[int, int, int]
    classes: int
    macs: tuple[int, ...]
    params: tuple[int, ...]
    base_macs: int
    network: Mapping[str, Any] | None = field(repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": SCHEMA,
            "intervals": self.intervals.to_dict(),
            "calling": asdict(self.calling),
            "shape": list(self.shape),
            "classes": self.classes,
            "macs": list(self.macs),
            "params": list(self.params),
            "base_macs": self.base_macs,
            "network": None if self.network is None else dict(self.network),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Blueprint:
        """The inverse of `to_dict`.

        Raises:
            StorageError: If the data is of another schema or malformed.
        """
        if data.get("schema") != SCHEMA:
            raise StorageError(f"Expected a pipeline with schema {SCHEMA}, found {data.get('schema')!r}. Save it again.")
        try:
            channels, height, width = (int(size) for size in data["shape"])
            intervals = Intervals.from_dict(data["intervals"])
            if not len(data["macs"]) == len(data["params"]) == len(intervals):
                raise ValueError(f"{len(intervals)} intervals, {len(data['macs'])} MACs and {len(data['params'])} numbers of parameters")
            return cls(
                intervals,
                Calling(**data["calling"]),
                (channels, height, width),
                int(data["classes"]),
                tuple(int(value) for value in data["macs"]),
                tuple(int(value) for value in data["params"]),
                int(data["base_macs"]),
                data["network"],
                tuple(str(note) for note in data["notes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{RECORD} is malformed ({type(error).__name__}: {error}). Save the pipeline again.") from error
