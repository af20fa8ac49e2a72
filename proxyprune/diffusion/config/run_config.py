"""Every knob of a step-adaptive run, frozen, with JSON both ways; all mistakes in a configuration are reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxyprune.diffusion.config.presets import CONFIGS
from proxyprune.diffusion.config.setting_checks import problems
from proxyprune.errors import InputError, StorageError, UnknownNameError
from proxyprune.planning.limits import AUTO, Limits
from proxyprune.planning.request import PlanRequest
from proxyprune.support.dataclass_json import from_plain, to_plain
from proxyprune.support.wording import counted

SCHEMA = 1
_FOR_TRIALS, _MOST_FOR_TRIALS, _ENOUGH_STEPS = 0.02, 0.05, 20
"""Share of the reference's compute that trials of measured budgets take, unless their steps are given; more where they would be short."""


@dataclass(frozen=True)
class DataConfig:
    """The images.

    Attributes:
        source: "digits", "fashion-mnist", "cifar10", an .npz file, a folder of images, or "hub:NAME" through the package `datasets`.
        path: Where the files are, when not at the usual place.
        size: Pixels along a side; None takes those that the network is made for.
        held_out: Images that are never trained on (from the start of a fixed shuffle); sources with a test split use that. None holds out
            297 of the digits, and of other data a tenth, at most 5,000.
        labels: Give labels to the denoiser.
        channels: 1 or 3 for folders and hub data.
    """

    source: str = "digits"
    path: str | None = None
    size: int | None = None
    held_out: int | None = None
    labels: bool = False
    channels: int = 3


@dataclass(frozen=True)
class NoiseConfig:
    """The noise process; samplers are chosen when sampling.

    Attributes:
        schedule: Beta schedule as diffusers names it, or "flow" for straight paths.
        prediction: What the network predicts.
        timesteps: Steps of the training process.
        beta_start: First beta of "linear" and "scaled_linear"; the cosine and straight paths have none.
        beta_end: Last one; published networks differ in it, such as 0.012 with "scaled_linear" for latents.
        zero_terminal_snr: Rescale so that the last timestep is pure noise.
        clip_db: SNR is clipped to +- this before intervals are made.
        shift: Shift of the flow sigmas.
    """

    schedule: str = "linear"
    prediction: str = "epsilon"
    timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    zero_terminal_snr: bool = False
    clip_db: float = 20.0
    shift: float = 1.0


@dataclass(frozen=True)
class IntervalConfig:
    """The split of the timesteps.

    Attributes:
        count: Number of intervals N.
        method: "uniform" in t, "equal-db", "dynamic" (least absolute deviation of clipped dB), "measured" (gradients of the base), or
            "complexity" (equal burden, measured on the base with two passes of a few images).
        bins: Bins of timesteps that "measured" and "complexity" look at.
        images: Images in each bin.
        monitor: What "complexity" measures: "acceleration" of the sampling path, or Dirichlet "energy" of the flow.
        exponent: The density of the burden is the monitor to this power.
        loss_weight: Weight of the loss beside the gradients' direction in "measured".
        margin: How far an expert's training reaches into its neighbours, as a share of its own timesteps; it samples its own only.
    """

    count: int = 4
    method: str = "equal-db"
    bins: int = 16
    images: int = 64
    monitor: str = "acceleration"
    exponent: float = 0.5
    loss_weight: float = 0.5
    margin: float = 0.0


@dataclass(frozen=True)
class BudgetConfig:
    """The compute of each interval.

    Attributes:
        method: "formula", "measured", "complexity" (in proportion to the burden of each interval), "full" (no pruning), or "even" (the
            target for every interval).
        target: Mean cost of a step over the sampler's steps, as a fraction of the base's.
        metric: What fractions are shares of: "macs", or "time" of a forward pass on the machine that trains. Cuts to a time are measured
            in turns with the base and corrected; as they rest on measurements, such a run does not repeat bit for bit.
        time_batch: Images of that forward pass.
        capacity: Which end the formula favours: "clean" (low noise) or "noisy".
        k: k of the formula; None solves it from the target.
        sampler_steps: Steps of the sampler that the mean is taken over.
        sampler: That sampler, which the pipeline then has: a short name ("ddim", "dpm++", ...) or a class of diffusers. None takes DDIM, or
            Euler for flow matching.
        sizes: Fractions that "measured" tries; the smallest is the least that an expert may get, by "complexity" too.
        trial_steps: Recovery steps of each trial, of the whole network; a smaller one gets as much compute, so more of them, unless
            compute.saved_to_recovery is off. None takes as many as cost a fiftieth of the reference's compute, all trials together, and
            up to a twentieth for trials of twenty steps.
            What is left of the damage after an expert's own steps is read off an eighth, a quarter, a half and all of them.
        trial_images: Training images, fixed with their noise, that a trial is judged on each of these times; and the base in each
            interval, where experts are weighed against it.
        damage: What "measured" adds up. "relative": log of the loss's ratio to the whole network's, which is in step with what images
            lose. "absolute": loss above the whole network's.
        damage_per: Over what it is added up: intervals, each of which counts the same ("interval"), or the sampler's steps ("step").
    """

    method: str = "formula"
    target: float = 0.8
    metric: str = "macs"
    time_batch: int = 64
    capacity: str = "clean"
    k: float | None = None
    sampler_steps: int = 50
    sampler: str | None = None
    sizes: tuple[float, ...] = (0.5, 0.35)
    trial_steps: int | None = None
    trial_images: int = 256
    damage: str = "relative"
    damage_per: str = "interval"


@dataclass(frozen=True)
class PruningConfig:
    """The cut of an expert.

    Attributes:
        scorer: Registered name; `proxyprune scorers` lists them.
        mode: "width", "depth" or "both".
        round_to: Widths become multiples of this where they can; "auto" takes for each group the multiple that pays on this machine. None
            takes 1, and "auto" where budgets are of time.
        keep: Patterns that stay as they are.
        floors: Least that stays, by pattern: a fraction (0.5) or a number of channels (32).
        ceilings: Most that stays, by pattern, in the same units.
        allocation: Where widths come from: "channels", "blocks" or "auto"; see `proxyprune.CutKeywords`.
        norm_groups: How GroupNorm shrinks; see `proxyprune.TraceKeywords`.
        calibration_batches: Batches for scorers that measure; drawn from the interval's timesteps.
        calibration_images: Images in each.
        rounds: Cuts on the way to the budget, equal steps in log size, with training in between.
        compensate: After each cut, refit the remaining weights in closed form on the calibration batches, before training goes on; see
            `proxyprune.compensate`. What it computes is in the ledger.
        accept_unreliable: Cut even if a ranking is marked unreliable. A run that stopped for that may go on with
            it.
        accept_uncosted: Cut although the MACs of some ops are unknown; no figure and no budget of the run counts them.
        uniform: Cut so that repeated layers keep equal widths and the config of the denoiser's class fits; see `proxyprune.CutKeywords`.
        options: Arguments for making the scorer.
    """

    scorer: str = "taylor"
    mode: str = "width"
    round_to: int | str | None = None
    keep: tuple[str, ...] = ()
    floors: Mapping[str, float | int] = field(default_factory=dict)
    ceilings: Mapping[str, float | int] = field(default_factory=dict)
    allocation: str = "auto"
    norm_groups: str = "balanced"
    calibration_batches: int = 8
    calibration_images: int = 64
    rounds: int = 1
    compensate: bool = False
    accept_unreliable: bool = False
    accept_uncosted: bool = False
    uniform: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def multiple(self, metric: str) -> int | str:
        """Return the multiple that widths take under this metric: `round_to`, or the metric's default if it is None."""
        usual = AUTO if metric == "time" else Limits.round_to
        return usual if self.round_to is None else self.round_to

    def request(self, target: int | float, metric: str = "macs") -> PlanRequest:
        """Return what is asked of a plan that cuts an expert to a number of MACs, or to a share of the time."""
        limits = Limits(self.keep, self.floors, self.ceilings, self.multiple(metric))
        return PlanRequest(target, self.mode, metric, self.allocation, limits, self.accept_unreliable, self.accept_uncosted, self.uniform)


@dataclass(frozen=True)
class StageConfig:
    """The training of one stage.

    Attributes:
        learning_rate: Peak.
        warmup: Share of the steps in which it rises.
        decay: How it falls afterwards.
        floor: What is left of it at the end, as a share.
        weight_decay: AdamW's.
        betas: AdamW's.
        clip: Largest gradient norm; None for no clipping.
        ema: Decay of the averaged weights; 0 turns averaging off. Shorter at the start of training.
        min_snr_gamma: Cap of the loss weight (arXiv:2303.09556), or None.
        weighting: "plain" adds up squared errors as they are. "relative", for experts, divides them by what the base has at that timestep:
            inside an interval errors differ several times, and plain sums leave the timesteps with small ones to chance.
        teacher: "none", "base", or "expert" (the full-size expert before the first cut).
        teacher_weight: Share of the distillation term in the loss.
    """

    learning_rate: float = 1e-3
    warmup: float = 0.05
    decay: str = "cosine"
    floor: float = 0.02
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    ema: float = 0.999
    min_snr_gamma: float | None = None
    weighting: str = "plain"
    teacher: str = "none"
    teacher_weight: float = 0.5


@dataclass(frozen=True)
class ComputeConfig:
    """The amount of training, all of it measured against one full-size model.

    Attributes:
        reference_steps: Optimizer steps of the full-size model that the whole run may cost as much as.
        base_share: Share of that compute for the base; the rest goes to the experts.
        whole_share: Share of an expert's compute that is spent before its first cut.
        between_share: Share spent between the first cut and the last, when there are several.
        saved_to_recovery: Give the steps that a smaller expert saves to its own training; otherwise all experts get as many steps as a
            full-size one would.
        expert_weights: How the experts' compute is split; empty means equally.
    """

    reference_steps: int = 1000
    base_share: float = 0.6
    whole_share: float = 0.0
    between_share: float = 0.3
    saved_to_recovery: bool = True
    expert_weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunConfig:
    """The behaviour of a run, without influence on what one process on one machine computes.

    Attributes:
        batch_size: Images of one optimizer step, over all processes.
        mixed_precision: "no", "fp16" or "bf16".
        cpu: Stay on the CPU even where there is something faster.
        checkpoint_every: Steps between checkpoints; 1 loses nothing but the unfinished step.
        checkpoint_minutes: Minutes after which a checkpoint is written in any case; 0 counts steps alone.
        log_every: Steps between lines of the log.
        sample_every: Steps between sample grids of base and experts; 0 draws none.
        trackers: Further trackers of accelerate, such as "tensorboard".
        divergence: Stop when the averaged loss is this many times the best so far.
        loss_bins: Bins of timesteps in which base and experts are compared at the end; 0 leaves that out.
        loss_images: Held-out images in each bin.
    """

    batch_size: int = 64
    mixed_precision: str = "no"
    cpu: bool = False
    checkpoint_every: int = 200
    checkpoint_minutes: float = 10.0
    log_every: int = 20
    sample_every: int = 0
    trackers: tuple[str, ...] = ()
    divergence: float = 50.0
    loss_bins: int = 16
    loss_images: int = 128


@dataclass(frozen=True)
class StepAdaptiveConfig:
    """Everything that decides what a run computes.

    Attributes:
        model: A preset (see `proxyprune.diffusion.networks`), or a model file `path.py[:factory]`.
        weights: Safetensors file to start the base from, or None.
        seed: All randomness follows from it.
    """

    model: str = "digits"
    weights: str | None = None
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    intervals: IntervalConfig = field(default_factory=IntervalConfig)
    budgets: BudgetConfig = field(default_factory=BudgetConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    base: StageConfig = field(default_factory=StageConfig)
    experts: StageConfig = field(default_factory=lambda: StageConfig(learning_rate=5e-4))
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        values = {
            f"{group}.{name}": value
            for group, part in vars(self).items()
            if dataclasses.is_dataclass(part)
            for name, value in vars(part).items()
        }
        if found := problems(values):
            raise _unusable(found)

    @property
    def cuts(self) -> bool:
        """True if anything is pruned, so that a scorer is needed."""
        return self.budgets.method != "full" and self.compute.base_share < 1.0

    @property
    def trial_steps(self) -> int:
        """Recovery steps of each trial of measured budgets."""
        if self.budgets.trial_steps is not None:
            return self.budgets.trial_steps
        trials = self.intervals.count * (1 + len(self.budgets.sizes))
        usual, most = (round(share * self.compute.reference_steps / trials) for share in (_FOR_TRIALS, _MOST_FOR_TRIALS))
        return max(1, usual, min(most, _ENOUGH_STEPS))

    @property
    def trial_lengths(self) -> tuple[int, ...]:
        """Steps after which a trial is looked at, in steps of the whole network: an eighth of it, a quarter, a half, all."""
        return tuple(sorted({max(1, self.trial_steps >> halvings) for halvings in range(4)}))

    @classmethod
    def preset(cls, name: str) -> StepAdaptiveConfig:
        """Return a whole configuration by its name in `proxyprune.diffusion.config.presets.CONFIGS`, such as "digits" or "fashion16".

        Raises:
            UnknownNameError: If there is none of this name.
        """
        if name not in CONFIGS:
            raise UnknownNameError(f"There is no preset {name!r}; the presets are {', '.join(CONFIGS)}. Use --model for a model file.")
        return cls.from_dict(CONFIGS[name])

    def with_values(self, values: Mapping[str, Any]) -> StepAdaptiveConfig:
        """Return a copy with other values.

        Args:
            values: By dotted name: {"budgets.target": 0.5}; `settings` lists all names.

        Raises:
            UnknownNameError: If a name does not exist.
            InputError: If a value does not fit.
        """
        data = self.to_dict()
        for name, value in values.items():
            *path, last = name.split(".")
            place: Any = data
            for part in path:
                place = place.get(part) if isinstance(place, dict) else None
            free = path == ["pruning", "options"]
            if not isinstance(place, dict) or last == "schema" or (last not in place and not free):
                raise UnknownNameError(f"There is no setting {name!r}{_close(name)}.")
            place[last] = value
        return self.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the schema number."""
        return {"schema": SCHEMA, **to_plain(self)}

    @classmethod
    def from_dict(cls, data: object) -> StepAdaptiveConfig:
        """Read what `to_dict` wrote; what is left out keeps its default.

        Raises:
            InputError: If a setting is unknown or of the wrong kind; all of them at once.
        """
        if not isinstance(data, Mapping) or data.get("schema", SCHEMA) != SCHEMA:
            other = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise InputError(f"Expected a configuration with schema {SCHEMA}, found {other!r}.")
        given = {name: value for name, value in data.items() if name != "schema"}
        return from_plain(cls, given, _unusable, unknown=lambda name: f"there is no setting {name!r}{_close(name)}")

    @classmethod
    def from_json(cls, path: str | Path) -> StepAdaptiveConfig:
        """Read a configuration file.

        Raises:
            StorageError: If it cannot be read.
            InputError: If it is no configuration.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise StorageError(f"The configuration {path} cannot be read: {error.strerror}.") from error
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not JSON: {error}.") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def to_text(self) -> str:
        """JSON, one setting a line."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"


def settings() -> dict[str, Any]:
    """Every setting by dotted name, with its default."""
    found: dict[str, Any] = {}
    for name, value in StepAdaptiveConfig().to_dict().items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": default for inner, default in value.items()}
        elif name != "schema":
            found[name] = value
    return found


def _unusable(found: list[str]) -> InputError:
    return InputError(f"Invalid configuration ({counted(len(found), 'problem')}): {'; '.join(found)}.")


def _close(name: str) -> str:
    close = difflib.get_close_matches(name, list(settings()), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else " (`proxyprune diffusion plan --json` prints all of them)"
