"""The result of a compensation, as numbers and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxyprune.support.checks import listed
from proxyprune.support.wording import counted, figure

LOSS, OUTPUT_ERROR = "loss", "relative output error"
_LISTED = 5


@dataclass(frozen=True)
class RefittedLayer:
    """One layer that reads a cut group, judged on the held-out batches.

    Attributes:
        layer: Qualified module name.
        error_before: Squared error of the output against the unpruned layer's, relative to that output's square, with the weights as cut.
        error_after: The same with the refitted weights.
        ridge: Strength of the ridge that the held-out batches chose, relative to the mean square of an input.
        refitted: True if the layer has the refitted weights.
    """

    layer: str
    error_before: float | None
    error_after: float | None
    ridge: float
    refitted: bool


@dataclass(frozen=True)
class CompensationReport:
    """The layers that were refitted, and the change on batches that the fit did not see.

    Attributes:
        measure: Of the whole network, on the held-out batches: "loss", or "relative output error" to the unpruned network.
        before: The measure after the cut; None if it is not finite.
        after: The measure at the end; never larger than before.
        accepted: True if the refitted weights were kept; otherwise every weight is as the cut left it.
        tried: The measure with all refitted layers, whether they were kept or not.
        fit_batches: Batches that the weights were fitted to.
        held_out_batches: Batches that decided.
        layers: Every layer that could be refitted.
        skipped: Layer or parameter that reads a cut group, or removed block -> why it was left alone.
        norms: Batch norms whose running statistics were estimated again.
        buffer_bytes: Most memory that the sums took at a time.
        passes: Runs of both networks over all batches.
        substitutes: Removed block -> layers before it that were refitted to yield what it yielded.
    """

    measure: str
    before: float | None
    after: float | None
    accepted: bool
    tried: float | None
    fit_batches: int
    held_out_batches: int
    layers: tuple[RefittedLayer, ...] = field(repr=False)
    skipped: Mapping[str, str] = field(repr=False)
    norms: tuple[str, ...] = ()
    buffer_bytes: int = 0
    passes: int = 0
    substitutes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def refitted(self) -> tuple[str, ...]:
        """Names of the layers that have refitted weights."""
        return tuple(entry.layer for entry in self.layers if entry.refitted)

    @property
    def _concerned(self) -> str:
        return "read a cut group or stand before a removed block" if self.substitutes else "read a cut group"

    @property
    def _pairs(self) -> list[str]:
        return [f"{' and '.join(layers)} for {block}" for block, layers in self.substitutes.items()]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for a reader of the result."""
        plural = "" if self.held_out_batches == 1 else "es"
        changed = f"{self.measure} on {self.held_out_batches} held-out batch{plural}"
        if self.accepted:
            lines = [
                f"Compensation refitted {len(self.refitted)} of {counted(len(self.layers), 'layer')} that {self._concerned}: "
                f"{changed} {figure(self.before)} before, {figure(self.after)} after."
            ]
        elif self.layers or self.norms:
            figures = f"{changed}: {figure(self.before)} before, {figure(self.tried)} with it"
            lines = [f"Compensation did not help ({figures}); the weights are as cut."]
        else:
            lines = ["Compensation found no layer that it can refit; the weights are as cut."]
        if self.norms and self.accepted:
            lines.append(f"Running statistics of {counted(len(self.norms), 'batch norm')} were estimated again.")
        if self.substitutes:
            lines.append(
                f"Layers before {counted(len(self.substitutes), 'removed block')} do what these did: {listed(self._pairs, _LISTED)}."
            )
        reasons: dict[str, list[str]] = {}
        for name, why in self.skipped.items():
            reasons.setdefault(why, []).append(name)
        lines += [f"Not compensated, because {why}: {listed(names, _LISTED)}." for why, names in reasons.items()]
        return tuple(lines)
