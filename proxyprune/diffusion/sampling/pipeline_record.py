"""The record of a step-adaptive pipeline, without its weights: the record in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import Intervals
from proxyprune.diffusion.records import read_json
from proxyprune.errors import StorageError
from proxyprune.support.dataclass_json import from_plain, to_plain

SCHEMA = 1
RECORD = "step_adaptive.json"


@dataclass(frozen=True)
class Provenance:
    """The training of a pipeline.

    Attributes:
        command: The command that trains it again.
        seed: Of the run.
        steps: Sampling steps that budgets were made for.
    """

    command: str
    seed: int
    steps: int


@dataclass(frozen=True)
class Blueprint:
    """Everything about a pipeline but its weights.

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
        source: Preset, config or model file of the network, as the run named it, without folders; empty if unknown.
        provenance: How the pipeline was trained, or None if unknown.
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
    source: str = ""
    provenance: Provenance | None = None

    @property
    def takes_embeddings(self) -> bool:
        """True if images need embeddings, which the pipeline cannot make itself."""
        return self.calling.condition is not None and not self.classes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": SCHEMA, **to_plain(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Blueprint:
        """Read what `to_dict` wrote.

        Raises:
            StorageError: If the data is of another schema or malformed.
        """
        if data.get("schema") != SCHEMA:
            raise StorageError(f"Expected a pipeline with schema {SCHEMA}, found {data.get('schema')!r}. Save it again.")
        try:
            found = from_plain(cls, data)
            if not len(found.macs) == len(found.params) == len(found.intervals):
                raise ValueError(f"{len(found.intervals)} intervals, {len(found.macs)} MACs and {len(found.params)} numbers of parameters")
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{RECORD} is malformed ({type(error).__name__}: {error}). Save the pipeline again.") from error


def read_blueprint(folder: Path) -> Blueprint:
    """Read the record of a pipeline's folder.

    Raises:
        StorageError: If there is none, or it is malformed.
    """
    data = read_json(folder / RECORD, "Copy the whole pipeline again.")
    if not isinstance(data, Mapping):
        raise StorageError(f"'{folder}' is not a step-adaptive pipeline: it lacks {RECORD}.")
    return Blueprint.from_dict(data)
