"""Refit the readers of cut groups in closed form, wave by wave, and keep only what held-out batches confirm."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from proxyprune.compensation.calibration_pass import CalibrationData, Pass, measuring, paired_moments, survey
from proxyprune.compensation.moments import Moments
from proxyprune.compensation.norm_statistics import batch_norms, reestimated
from proxyprune.compensation.readers import Networks, Reader, find_readers
from proxyprune.compensation.report import LOSS, OUTPUT_ERROR, CompensationReport, RefittedLayer
from proxyprune.compensation.ridge import Solution, ridge
from proxyprune.compensation.substitutes import NO_GAIN, NO_LAYER, NOT_ONCE, Substitute, find_gaps, substitute_moments, substitutes_of
from proxyprune.errors import InputError, MissingNeedError
from proxyprune.support.nested import tensors_of

STRENGTHS = (1e-4, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge strengths, relative to the mean square of an input; the held-out batches choose one for each layer."""

BUFFER_BYTES = 512 * 2**20
"""Memory for sums that the refit keeps within if its largest layer does."""

DENSE, PRUNED = "dense", "pruned"

LARGEST_FEATURES = 4096
"""Convolutions with more features (input channels of a group times taps) are estimated by channel."""

LEAST_GAIN = 1e-3
"""Share of its held-out error that a refit must take away from a layer."""

Advance = Callable[[float, str], None]
"""Takes the share that is done, and a remark."""

REST = 1e-10
"""Relative error below which a layer has nothing to repair."""


@dataclass(frozen=True)
class CompensationSettings:
    """Settings of a compensation; measurements chose the defaults.

    Attributes:
        buffer_bytes: Memory for sums; more layers are refitted in one run of the networks if it is large.
        weighted: Weight positions of linear layers by the inverse of the squared norm of the dense output.
        sources: Networks that the inputs are taken from, one round of refits after the other: "dense", "pruned". The round with the best
            held-out measure is kept.
        waves: Fewest runs in a round on the pruned network; layers of later runs read what earlier ones repaired.
        largest_features: Convolutions with more features are estimated by channel.
    """

    buffer_bytes: int = BUFFER_BYTES
    weighted: bool = True
    sources: tuple[str, ...] = (DENSE,)
    waves: int = 1

    def __post_init__(self) -> None:
        if not self.sources or any(source not in (DENSE, PRUNED) for source in self.sources):
            raise InputError(f"Expected sources to name {DENSE!r} or {PRUNED!r}, found {self.sources!r}.")
        if min(self.buffer_bytes, self.waves, self.largest_features) < 1:
            raise InputError("Expected buffer_bytes, waves and largest_features to be at least 1.")

    largest_features: int = LARGEST_FEATURES


class _Changes:
    """Tensors of the pruned network that a refit wrote, with the values that the cut left."""

    def __init__(self) -> None:
        self._as_cut: dict[tuple[nn.Module, str], Tensor] = {}

    def __len__(self) -> int:
        return len(self._as_cut)

    def as_cut(self, module: nn.Module, name: str) -> Tensor:
        """Return the values that the cut left."""
        former = self._as_cut.get((module, name))
        tensor: Tensor = getattr(module, name)
        return tensor.detach() if former is None else former

    def put(self, module: nn.Module, name: str, value: Tensor) -> None:
        """Write new values, and remember those that the cut left."""
        tensor = getattr(module, name)
        if (module, name) not in self._as_cut:
            self._as_cut[module, name] = tensor.detach().clone()
        with torch.no_grad():
            tensor.copy_(value)

    def take_back(self, module: nn.Module, name: str) -> None:
        """Restore one tensor."""
        former = self._as_cut.pop((module, name), None)
        if former is not None:
            with torch.no_grad():
                getattr(module, name).copy_(former)

    @contextlib.contextmanager
    def taken_back(self) -> Iterator[None]:
        """Inside, every tensor has the value that the cut left; afterwards the new one again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for (module, name), former in self._as_cut.items():
                tensor = getattr(module, name)
                new = tensor.detach().clone()
                tensor.copy_(former)
                former.copy_(new)

    def values(self) -> dict[tuple[nn.Module, str], Tensor]:
        """Return copies of the new values."""
        return {(module, name): getattr(module, name).detach().clone() for module, name in self._as_cut}

    def set(self, values: Mapping[tuple[nn.Module, str], Tensor]) -> None:
        """Return to the values of an earlier moment."""
        for module, name in list(self._as_cut):
            if (module, name) not in values:
                self.take_back(module, name)
        for (module, name), value in values.items():
            self.put(module, name, value)

    def undo(self, down_to: int = 0) -> None:
        """Restore all tensors but the first `down_to` that were written."""
        for module, name in list(self._as_cut)[down_to:]:
            self.take_back(module, name)


@contextlib.contextmanager
def _undone_on_error() -> Iterator[_Changes]:
    changes = _Changes()
    try:
        yield changes
    except BaseException:
        changes.undo()
        raise


@dataclass(frozen=True)
class _Round:
    """The network after one refit of all layers: its measure, the layers, and copies of what was written if other rounds follow."""

    value: float
    layers: Mapping[str, RefittedLayer]
    weights: Mapping[tuple[nn.Module, str], Tensor] | None


def _silent(share: float, note: str) -> None:
    return


def refit(
    networks: Networks, data: CalibrationData, settings: CompensationSettings | None = None, advance: Advance = _silent
) -> CompensationReport:
    """Refit the layers of the pruned network that read a cut group, in place.

    Args:
        networks: Before and after the cut. The weights of the pruned one change if that helps, and stay bit for bit if it does not.
        data: At least two batches; those of even index fit, the others decide.
        settings: How; None takes the defaults.
        advance: Called with the share that is done and a remark, for a progress bar.

    Raises:
        MissingNeedError: If there are fewer than two batches.
        InputError: If a network cannot be run on a batch.
    """
    count = len(data.batches)
    if count < 2:
        raise MissingNeedError(
            f"Compensation needs at least two calibration batches, found {count}: half of them fit, the other half decides. "
            "Split the batch, or give more (batches=[...]; in a model file, calibration_batches())."
        )
    settings = settings or CompensationSettings()
    found = find_readers(networks, largest_features=settings.largest_features)
    skipped = dict(found.skipped)
    with _undone_on_error() as changes, measuring(networks.dense, networks.pruned):
        seen = survey(networks, found.readers, data)
        rounds = [waves_of(seen.readers, settings.buffer_bytes, settings.waves if source == PRUNED else 1) for source in settings.sources]
        plan = _Plan(settings, seen.once, advance)
        best = _best_round(networks, data, rounds, changes, plan)
        replaced = _replaced(networks, data, changes, plan, best)
        verdict = _judged(networks, data, changes, replaced.value)
    for module, name, value in verdict.statistics:  # `measuring` restored the buffers
        changes.put(module, name, value)
    return CompensationReport(
        measure=LOSS if data.loss_fn is not None else OUTPUT_ERROR,
        before=_finite(verdict.before),
        after=_finite(verdict.after),
        accepted=verdict.accepted,
        tried=_finite(verdict.tried),
        fit_batches=(count + 1) // 2,
        held_out_batches=count // 2,
        layers=tuple(replace(entry, refitted=entry.refitted and verdict.refitted) for entry in {**best.layers, **replaced.layers}.values()),
        skipped=skipped | dict(seen.skipped) | replaced.skipped,
        norms=verdict.norms,
        buffer_bytes=max((sum(2 * reader.sizes().bytes for reader in wave) for own in rounds for wave in own), default=0),
        passes=sum(map(len, rounds)) + replaced.passes,
        substitutes=replaced.substitutes if verdict.refitted else {},
    )


@dataclass(frozen=True)
class _Plan:
    settings: CompensationSettings
    may_stop: bool
    advance: Advance


def _best_round(
    networks: Networks, data: CalibrationData, rounds: Sequence[tuple[tuple[Reader, ...], ...]], changes: _Changes, plan: _Plan
) -> _Round:
    """Refit all layers once for each source of inputs, and leave the network as the best round made it."""
    best: _Round | None = None
    done, waves = 0, sum(map(len, rounds))
    for source, own in zip(plan.settings.sources, rounds, strict=True):
        how = Pass(from_dense=source == DENSE, weighted=plan.settings.weighted, may_stop=plan.may_stop)
        layers: dict[str, RefittedLayer] = {}
        for wave in own:
            moments = paired_moments(networks, wave, data, how, _within(plan.advance, done, waves, len(data.batches)))
            layers |= {reader.name: _refitted(reader, *moments.pop(reader.name), changes) for reader in wave}
            done += 1
        value = measured(networks, data)
        if best is None or value < best.value:
            best = _Round(value, layers, changes.values() if len(rounds) > 1 else None)
    assert best is not None  # the settings have a source
    if best.weights is not None:
        changes.set(best.weights)
    return best


@dataclass(frozen=True)
class _Replaced:
    """Layers that were refitted to take the place of removed blocks.

    Attributes:
        value: Measure of the network afterwards.
        layers: What was done with each layer.
        substitutes: Removed block -> layers that do what it did.
        skipped: Removed block -> why none do.
        passes: Runs of both networks over all batches.
    """

    value: float
    layers: dict[str, RefittedLayer]
    substitutes: dict[str, tuple[str, ...]]
    skipped: dict[str, str]
    passes: int = 0


def _replaced(networks: Networks, data: CalibrationData, changes: _Changes, plan: _Plan, best: _Round) -> _Replaced:
    """Refit the layers before removed blocks, first block first, and keep each refit that lowers the measure of the network."""
    removed = [entry.module for entry in networks.surgery.removed_blocks]
    value = best.value
    if not removed:
        return _Replaced(value, {}, {}, {})
    layers: dict[str, RefittedLayer] = {}
    done: dict[str, tuple[str, ...]] = {}
    skipped = dict.fromkeys(removed, NOT_ONCE)
    passes = 0
    for gap in find_gaps(networks, data):
        found = substitutes_of(networks, gap, data, largest_features=plan.settings.largest_features)
        skipped |= dict.fromkeys(gap.blocks, NO_GAIN if found else NO_LAYER)
        for layer in found:
            before = changes.values()
            note = _within(lambda share, text: plan.advance(1.0, text), passes, passes + 1, len(data.batches))
            moments = substitute_moments(networks, layer, data, weighted=plan.settings.weighted, advance=note)
            passes += 1
            entry = _refitted(layer, *moments, changes)
            after = measured(networks, data) if entry.refitted else math.inf
            kept = entry.refitted and after < value
            if kept:
                value = after
                done |= {block: (*done.get(block, ()), layer.name) for block in gap.blocks}
            else:
                changes.set(before)
            if kept or layer.name not in {**best.layers, **layers}:
                layers[layer.name] = replace(entry, refitted=kept)
    left = {block: why for block, why in skipped.items() if block not in done}
    return _Replaced(value, layers, done, left, passes)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _within(advance: Advance, wave: int, waves: int, batches: int) -> Callable[[int], None]:
    """Turn batches of one wave into a share of the whole."""
    return lambda done: advance((wave + done / batches) / waves, f"wave {wave + 1} of {waves}")


def waves_of(readers: Sequence[Reader], buffer_bytes: int, fewest: int) -> tuple[tuple[Reader, ...], ...]:
    """Cut readers into runs whose sums fit the buffer; a single layer that does not fit has a wave of its own."""
    waves: list[list[Reader]] = []
    used, longest = 0, math.ceil(len(readers) / fewest)
    for reader in readers:
        needed = 2 * reader.sizes().bytes
        if not waves or used + needed > buffer_bytes or len(waves[-1]) >= longest:
            waves.append([])
            used = 0
        waves[-1].append(reader)
        used += needed
    return tuple(map(tuple, waves))


def _refitted(reader: Reader | Substitute, fit: Moments, held_out: Moments, changes: _Changes) -> RefittedLayer:
    """Solve one layer for every strength, and write the solution with the least held-out error if it beats the layer as it was.

    A reader is compared with the layer as cut, a substitute with the layer as it is now: it may have been refitted as a reader.
    """
    module, is_reader = reader.pruned, isinstance(reader, Reader)

    def former(name: str) -> Tensor:
        return changes.as_cut(module, name) if is_reader else module.get_parameter(name).detach()

    size = reader.total(held_out.target_square)
    before = reader.total(Solution.unchanged(reader.start(former("weight"))).error(held_out)) / size if size > 0.0 else 0.0
    best, after, chosen = None, before * (1.0 - LEAST_GAIN), 0.0
    if before > REST and fit.positions and math.isfinite(before):
        start = reader.start(module.get_parameter("weight").detach())
        for strength in STRENGTHS:
            solution = ridge(fit, start, strength, intercept=reader.has_bias)
            error = reader.total(solution.error(held_out)) / size
            if error < after:
                best, after, chosen = solution, error, strength
    if best is None:
        for name in ("weight", "bias") if is_reader else ():
            changes.take_back(module, name)
        return RefittedLayer(reader.name, _finite(before), _finite(before), 0.0, refitted=False)
    weights = reader.weights(best.slope)
    if reader.has_bias:
        changes.put(module, "bias", former("bias").double() + reader.shift(best.intercept))
    changes.put(module, "weight", weights)
    return RefittedLayer(reader.name, before, after, chosen, refitted=True)


@dataclass(frozen=True)
class _Verdict:
    before: float
    after: float
    tried: float
    accepted: bool
    norms: tuple[str, ...] = ()
    statistics: tuple[tuple[nn.Module, str, Tensor], ...] = ()
    refitted: bool = False


def _judged(networks: Networks, data: CalibrationData, changes: _Changes, tried: float) -> _Verdict:
    """Measure the whole network as cut, refitted, and with new norm statistics; leave it in the best of these states."""
    with changes.taken_back():
        before = after = measured(networks, data)
    if tried < before:
        after = tried
    else:
        changes.undo()
    norms = batch_norms(networks.pruned)
    if norms:
        found = reestimated(networks.pruned, norms, data)
        statistics = tuple((norms[name], key, value) for name, values in found.items() for key, value in values.items())
        kept = len(changes)
        for module, name, value in statistics:
            changes.put(module, name, value)
        with_norms = measured(networks, data)
        changes.undo(kept)
        tried = min(tried, with_norms)
        if with_norms < after:
            return _Verdict(before, with_norms, tried, True, tuple(found), statistics, kept > 0)
    return _Verdict(before, after, tried, len(changes) > 0, refitted=len(changes) > 0)


def measured(networks: Networks, data: CalibrationData) -> float:
    """Return the mean loss over the held-out batches, or the relative output error to the unpruned network if there is no loss.

    Returns:
        A number; infinity if any batch gives no finite one.
    """
    error = size = 0.0
    for index in range(1, len(data.batches), 2):
        if data.loss_fn is not None:
            error += float(data.run(networks.pruned, index))
            size += 1.0
            continue
        pairs = zip(tensors_of(data.run(networks.pruned, index)), tensors_of(data.run(networks.dense, index)), strict=True)
        for found, wanted in pairs:
            if wanted.is_floating_point() and found.shape == wanted.shape:
                error += float((found.double() - wanted.double()).square().sum())
                size += float(wanted.double().square().sum())
    value = error / size if size else 0.0
    return value if math.isfinite(value) else math.inf
