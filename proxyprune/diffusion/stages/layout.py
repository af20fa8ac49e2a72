"""The layout of a run: its intervals and what compute each gets; decided once, before any expert is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from proxyprune.diffusion.process.complexity import Complexity
from proxyprune.diffusion.process.intervals import Interval, Intervals, balanced, dynamic, equal_db, uniform
from proxyprune.diffusion.process.noise_schedule import FloatArray
from proxyprune.diffusion.process.objective import Losses
from proxyprune.diffusion.records import read_json
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.base_complexity import complexity_of_base
from proxyprune.diffusion.stages.base_losses import losses_of_base, measured_intervals
from proxyprune.diffusion.stages.budgets import Budgets, by_burden, by_formula, by_measurement
from proxyprune.diffusion.stages.recovery import Measurement, fit_recovery
from proxyprune.diffusion.stages.timed_cut import timed_base
from proxyprune.diffusion.stages.trials import try_sizes
from proxyprune.diffusion.training.ledger import Entry, Ledger, split_allowance, training_macs
from proxyprune.errors import InputError, StorageError, TargetError
from proxyprune.planning.planner import plan_for
from proxyprune.scoring import score

_NO_LOSSES: Losses = ()
_CURVE = 100  # points of the SNR curve in a layout


@dataclass(frozen=True)
class Layout:
    """Intervals and budgets of a run.

    Attributes:
        intervals: The boundaries.
        members: The intervals with their timesteps.
        budgets: What each gets.
        measured: What measured budgets were read off, or None.
        ledger: What deciding cost.
        base_losses: (timestep, loss) of the base, where experts are weighed against it.
        complexity: How complex the base is by noise level, where intervals or budgets follow it, or None.
    """

    intervals: Intervals
    members: tuple[Interval, ...]
    budgets: Budgets
    measured: Measurement | None = field(default=None, repr=False)
    ledger: Ledger = field(default_factory=Ledger)
    base_losses: Losses = field(default=(), repr=False)
    complexity: Complexity | None = field(default=None, repr=False)


def choose_intervals(
    setup: Setup, weights: dict[str, Tensor] | None, complexity: Complexity | None = None
) -> tuple[Intervals, tuple[Entry, ...]]:
    """Choose intervals by the configured method.

    Args:
        setup: The run.
        weights: Of the trained base, or None.
        complexity: Of the base, or None.

    Returns:
        The intervals, and what finding them cost beside `complexity`.

    Raises:
        InputError: If the method measures and there is no base yet.
    """
    settings, clip = setup.config.intervals, setup.config.noise.clip_db
    if settings.count == 1:
        return Intervals((), settings.method), ()
    if settings.method == "measured":
        if weights is None:
            raise InputError("Measured intervals need a trained base; run the base stage first.")
        found, entry = measured_intervals(setup, setup.base_model(weights))
        return found, (entry,)
    if settings.method == "complexity":
        if complexity is None:
            raise InputError("Intervals of equal complexity need a trained base; run the base stage first.")
        return balanced(setup.schedule, settings.count, complexity.burden(setup.schedule)), ()
    if settings.method == "uniform":
        return uniform(setup.schedule, settings.count), ()
    return (dynamic if settings.method == "dynamic" else equal_db)(setup.schedule, settings.count, clip), ()


def decide(setup: Setup, weights: dict[str, Tensor] | None, limit_macs: int | None = None) -> Layout:
    """Intervals and budgets; without weights only what needs no measuring.

    Args:
        setup: The run.
        weights: Of the trained base, or None.
        limit_macs: What measuring may cost at most, or None.

    Raises:
        ComputeError: If measuring costs more.
        TrainingError: If a trial diverges.
        TargetError: If the network cannot be pruned to the size of an expert.
        InputError: If something has to be measured and there is no base.
    """
    layout = _decide(setup, weights, limit_macs)
    if layout.measured is None:  # sizes that were tried can be reached
        check_size(setup, min(layout.budgets.fractions))
    if setup.config.budgets.metric == "time" and min(layout.budgets.fractions) < 1.0:
        note = f"Fractions are of the time of a forward pass of {setup.config.budgets.time_batch} images on this machine."
        layout = replace(layout, budgets=replace(layout.budgets, notes=(*layout.budgets.notes, note), metric="time"))
    empty = [str(index) for index, count in enumerate(layout.budgets.steps) if not count]
    if not empty:
        return layout
    note = (
        f"None of the sampler's {sum(layout.budgets.steps)} steps falls into interval {', '.join(empty)}, whose experts are "
        "trained nevertheless; use fewer intervals, or more steps (budgets.sampler_steps)."
    )
    return replace(layout, budgets=replace(layout.budgets, notes=(*layout.budgets.notes, note)))


def _decide(setup: Setup, weights: dict[str, Tensor] | None, limit_macs: int | None) -> Layout:
    complexity, measuring = _complexity(setup, weights)
    intervals, entries = choose_intervals(setup, weights, complexity)
    entries = (*measuring, *entries)
    members = intervals.over(setup.schedule)
    settings, counts = setup.config.budgets, intervals.counts(setup.sampler_snr())
    whole, losses = setup.only_base, _NO_LOSSES
    if setup.config.experts.weighting == "relative" and weights is not None and not whole:
        losses, entry = losses_of_base(setup, setup.base_model(weights), members)
        entries = (*entries, entry)
    ledger = Ledger(limit_macs).add(*entries)
    measured = None
    if settings.method == "full" or whole:
        budgets = Budgets((1.0,) * len(members), counts, "full")
    elif settings.method == "even" or len(members) == 1:
        budgets = Budgets((settings.target,) * len(members), counts, "even")
    elif settings.method == "formula":
        budgets = by_formula(settings.target, counts, settings.capacity, settings.k)
    elif settings.method == "complexity":
        if complexity is None:
            raise InputError("Budgets by complexity need a trained base; run the base stage first.")
        burden = complexity.burden(setup.schedule)
        carried = [float(burden[member.first : member.last + 1].sum()) for member in members]
        budgets = by_burden(settings.target, counts, carried, min(settings.sizes))
    elif weights is None:
        raise InputError("Measured budgets need a trained base; run the base stage first.")
    else:
        budgets, measured, ledger = _measured_budgets(setup, weights, members, counts, ledger, losses)
    return Layout(intervals, members, budgets, measured, ledger, losses, complexity)


def _complexity(setup: Setup, weights: dict[str, Tensor] | None) -> tuple[Complexity | None, tuple[Entry, ...]]:
    """Measure the complexity of the base, where there is one and intervals or budgets follow it."""
    followed = "complexity" in (setup.config.intervals.method, setup.config.budgets.method)
    if weights is None or not followed or setup.config.intervals.count == 1:
        return None, ()
    found, entry = complexity_of_base(setup, setup.base_model(weights))
    return found, (entry,)


def _measured_budgets(
    setup: Setup, weights: dict[str, Tensor], members: tuple[Interval, ...], counts: tuple[int, ...], ledger: Ledger, losses: Losses
) -> tuple[Budgets, Measurement, Ledger]:
    """Budgets by trials on the trained base, with what they were read off, and the ledger with their cost."""
    settings, trials = setup.config.budgets, []
    for member in members:
        trials.append(try_sizes(setup, weights, member, losses))
        ledger = ledger.add(*trials[-1].entries)
    sizes, lengths = tuple(trial.sizes for trial in trials), setup.config.trial_lengths
    whole_losses, recovery = tuple(trial.whole_loss for trial in trials), fit_recovery(sizes, lengths)
    measured = Measurement(sizes, whole_losses, lengths, _expert_steps(setup, ledger), recovery)
    options = [measured.options(index, setup.base_macs, settings.damage) for index in range(len(members))]
    out_of_reach = tuple(note for trial in trials for note in trial.notes)
    try:
        budgets = by_measurement(options, counts, settings.target, setup.base_macs, settings.damage_per)
    except TargetError as error:
        raise TargetError(" ".join((str(error), *out_of_reach))) from error
    return replace(budgets, notes=(*budgets.notes, measured.note(), *out_of_reach)), measured, ledger


def _expert_steps(setup: Setup, ledger: Ledger) -> tuple[float, ...]:
    """Return steps of the whole network that the training of each interval's expert will cost as much as, about.

    Scoring and a teacher's passes are left out, and a cut that comes late, or in several rounds, is taken to come at once.
    """
    compute = setup.config.compute
    allowed = setup.limit_macs - int(compute.base_share * setup.limit_macs) if ledger.limit_macs is None else ledger.limit_macs
    left = allowed - ledger.spent_macs
    parts = split_allowance(max(0, left), compute.expert_weights or (1.0,) * setup.config.intervals.count)
    return tuple(max(1.0, part / training_macs(setup.base_macs, setup.config.run.batch_size)) for part in parts)


def check_size(setup: Setup, fraction: float) -> None:
    """Refuse a size that no choice of widths and blocks brings the network to.

    Raises:
        TargetError: If that is so; with the smallest size that there is.
    """
    if not setup.config.cuts or fraction >= 1.0:
        return
    by_time = setup.config.budgets.metric == "time"
    request = setup.config.pruning.request(fraction if by_time else int(fraction * setup.base_macs), "time" if by_time else "macs")
    graph = timed_base(setup) if request.needs_times else setup.graph
    try:  # every allocation reaches the same sizes, and a random ranking has no channels to weigh
        plan_for(graph, score(graph, "random"), replace(request, allocation="blocks"))
    except TargetError as error:
        raise TargetError(
            f"An expert would be {fraction:.1%} of the base. {error} Raise budgets.target (--target), or share it more evenly "
            "(budgets.method even, or fewer intervals)."
        ) from error


def read_layout(run: RunFolder, setup: Setup) -> Layout | None:
    """Read the layout of a run; None before it is decided.

    Raises:
        StorageError: If the file is damaged.
    """
    found = read_json(run.layout)
    if found is None:
        return None
    try:
        intervals = Intervals.from_dict(found["intervals"])
        measured = Measurement.from_dict(found["measured"]) if found.get("measured") else None
        budgets, ledger = Budgets.from_dict(found["budgets"]), Ledger.from_dict(found["ledger"])
        losses = tuple((time, loss) for time, loss in found.get("base_losses", ()))
        complexity = Complexity.from_dict(found["complexity"]) if found.get("complexity") else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StorageError(f"{run.layout} is malformed ({reason}). Remove it to decide intervals and budgets again.") from error
    return Layout(intervals, intervals.over(setup.schedule), budgets, measured, ledger, losses, complexity)


def layout_record(layout: Layout, snr_db: FloatArray) -> dict[str, Any]:
    """Return a layout as plain JSON types.

    Args:
        layout: The layout.
        snr_db: Exact SNR of every timestep; some of it goes into the record as "curve", [timestep, dB] for drawing.
    """
    spread = {round(part * (len(snr_db) - 1) / _CURVE) for part in range(_CURVE + 1)}
    shown = sorted(spread | {edge for member in layout.members for edge in (member.first, member.last)})
    return {
        "schema": 2,
        "intervals": layout.intervals.to_dict(),
        "members": [{**vars(m), "low_snr_db": _finite(m.low_snr_db), "high_snr_db": _finite(m.high_snr_db)} for m in layout.members],
        "budgets": layout.budgets.to_dict(),
        "measured": layout.measured.to_dict() if layout.measured else None,
        "ledger": layout.ledger.to_dict(),
        "base_losses": [list(pair) for pair in layout.base_losses],
        "complexity": layout.complexity.to_dict() if layout.complexity else None,
        "curve": [[time, _finite(float(snr_db[time]))] for time in shown],
    }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
