"""Allowed values of a configuration, by dotted name; all mistakes are found at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from proxyprune.errors import InputError
from proxyprune.planning.limits import Limits
from proxyprune.planning.request import ALLOCATIONS, MODES

_DECAYS = ("cosine", "linear", "constant")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "noise.schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "flow"),
    "noise.prediction": ("epsilon", "v_prediction", "sample", "flow"),
    "intervals.method": ("uniform", "equal-db", "dynamic", "measured", "complexity"),
    "intervals.monitor": ("acceleration", "energy"),
    "budgets.method": ("formula", "measured", "complexity", "full", "even"),
    "budgets.metric": ("macs", "time"),
    "budgets.capacity": ("clean", "noisy"),
    "budgets.damage": ("relative", "absolute"),
    "budgets.damage_per": ("step", "interval"),
    "base.decay": _DECAYS,
    "base.teacher": ("none",),
    "base.weighting": ("plain",),
    "experts.decay": _DECAYS,
    "experts.teacher": ("none", "base", "expert"),
    "experts.weighting": ("plain", "relative"),
    "pruning.mode": MODES,
    "pruning.allocation": ALLOCATIONS,
    "run.mixed_precision": ("no", "fp16", "bf16"),
}
AT_LEAST_ONE = (
    "noise.timesteps",
    "intervals.count",
    "intervals.bins",
    "intervals.images",
    "budgets.sampler_steps",
    "pruning.rounds",
    "pruning.calibration_batches",
    "pruning.calibration_images",
    "budgets.trial_images",
    "budgets.trial_steps",
    "compute.reference_steps",
    "run.batch_size",
    "run.checkpoint_every",
    "run.log_every",
    "run.loss_images",
    "data.size",
    "budgets.time_batch",
)
"""Whole numbers; those that may be None count when they are given."""
SHARES = (
    "intervals.margin",
    "compute.whole_share",
    "compute.between_share",
    "base.warmup",
    "base.floor",
    "base.ema",
    "experts.warmup",
    "experts.floor",
    "experts.ema",
    "experts.teacher_weight",
)
"""Between 0 and 1, both included."""
PARTS_OF_THE_WHOLE = ("budgets.target", "compute.base_share", "budgets.k")
"""Above 0, at most 1; k may be None."""
_OF_A_STAGE = ("learning_rate", "clip", "min_snr_gamma")
ABOVE_ZERO = (
    *(f"{stage}.{name}" for stage in ("base", "experts") for name in _OF_A_STAGE),
    "noise.clip_db",
    "noise.shift",
    "intervals.exponent",
    "run.divergence",
)
"""Finite and above 0; a clip and a gamma may be None."""
NOT_NEGATIVE = (
    "base.weight_decay",
    "experts.weight_decay",
    "intervals.loss_weight",
    "run.sample_every",
    "run.loss_bins",
    "run.checkpoint_minutes",
)
"""Finite and at least 0."""


def problems(values: Mapping[str, Any]) -> list[str]:
    """Return one sentence, without its full stop, for each setting or pair of settings that cannot be used.

    Args:
        values: All settings by dotted name, such as "budgets.target".
    """
    return [*_choices(values), *_ranges(values), *_limits(values), *_contradictions(values)]


def _limits(values: Mapping[str, Any]) -> list[str]:
    """Check patterns and bounds as for any plan."""
    round_to = values["pruning.round_to"]
    try:
        Limits(
            values["pruning.keep"],
            values["pruning.floors"],
            values["pruning.ceilings"],
            Limits.round_to if round_to is None else round_to,
        )
    except InputError as error:
        return [f"pruning.keep, pruning.floors, pruning.ceilings or pruning.round_to: {str(error).removesuffix('.')}"]
    return []


def _choices(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} must be one of {', '.join(allowed)}, found {values[name]!r}"
        for name, allowed in CHOICES.items()
        if values[name] not in allowed
    ]


def _ranges(values: Mapping[str, Any]) -> list[str]:
    found = [f"{name} must be at least 1, found {values[name]!r}" for name in AT_LEAST_ONE if values[name] is not None and values[name] < 1]
    found += [f"{name} must lie in [0, 1], found {values[name]!r}" for name in SHARES if not 0.0 <= values[name] <= 1.0]
    found += [
        f"{name} must lie in (0, 1], found {values[name]!r}"
        for name in PARTS_OF_THE_WHOLE
        if values[name] is not None and not 0.0 < values[name] <= 1.0
    ]
    found += [
        f"{name} must be above 0, found {values[name]!r}"
        for name in ABOVE_ZERO
        if values[name] is not None and not (math.isfinite(values[name]) and values[name] > 0)
    ]
    found += [
        f"{name} must be finite and not negative, found {values[name]!r}"
        for name in NOT_NEGATIVE
        if values[name] is not None and not 0 <= values[name] < math.inf
    ]
    found += [
        f"{stage}.betas must be two numbers in [0, 1), found {values[f'{stage}.betas']!r}"
        for stage in ("base", "experts")
        if len(values[f"{stage}.betas"]) != 2 or not all(0.0 <= beta < 1.0 for beta in values[f"{stage}.betas"])
    ]
    sizes = values["budgets.sizes"]
    if not sizes or any(not 0.0 < size < 1.0 for size in sizes) or len(set(sizes)) < len(sizes):
        found.append(f"budgets.sizes must be different fractions between 0 and 1, found {sizes!r}")
    if not all(math.isfinite(weight) and weight > 0 for weight in values["compute.expert_weights"]):
        found.append(f"compute.expert_weights must be above 0, found {values['compute.expert_weights']!r}")
    return found


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    found = []
    weights, count = values["compute.expert_weights"], values["intervals.count"]
    if weights and len(weights) != count:
        found.append(f"compute.expert_weights must hold {count} weights, found {len(weights)}")
    if values["intervals.method"] in ("measured", "complexity") and values["intervals.bins"] < count:
        found.append(f"intervals.bins must be at least intervals.count ({count}) to measure intervals, found {values['intervals.bins']}")
    by_size = values["budgets.method"] in ("measured", "complexity")
    if by_size and 0.0 < values["budgets.target"] < min(values["budgets.sizes"], default=0.0):
        found.append(f"budgets.sizes must hold a size of at most budgets.target ({values['budgets.target']}) to measure budgets")
    if values["budgets.sampler_steps"] > values["noise.timesteps"] >= 1:
        found.append(
            f"budgets.sampler_steps must be at most noise.timesteps ({values['noise.timesteps']}), found {values['budgets.sampler_steps']}"
        )
    if values["experts.teacher"] == "expert" and values["compute.whole_share"] == 0.0:
        found.append("experts.teacher 'expert' needs a full-size expert: set compute.whole_share above 0")
    if values["experts.weighting"] == "relative" and values["experts.min_snr_gamma"] is not None:
        found.append("experts.weighting 'relative' and experts.min_snr_gamma are two weights for one loss; set one of them")
    if (values["noise.schedule"] == "flow") != (values["noise.prediction"] == "flow"):
        found.append("noise.schedule 'flow' and noise.prediction 'flow' go together")
    first, last = values["noise.beta_start"], values["noise.beta_end"]
    if not 0.0 < first < last < 1.0:
        found.append(f"noise.beta_start and noise.beta_end must rise within (0, 1), found {first!r} and {last!r}")
    if values["noise.zero_terminal_snr"] and values["noise.prediction"] == "epsilon":
        found.append("noise.zero_terminal_snr leaves nothing to predict noise from at the last timestep; use v_prediction or sample")
    return found
