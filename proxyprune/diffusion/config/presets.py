"""Settings that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DIGITS: dict[str, Any] = {
    "model": "digits",
    "data": {"source": "digits", "held_out": 297},
    "noise": {"schedule": "squaredcos_cap_v2"},
    "base": {"learning_rate": 2e-3, "ema": 0.995},
    "experts": {"learning_rate": 1e-3, "ema": 0.995},
    "budgets": {"sampler_steps": 20},
    "pruning": {"calibration_batches": 4},
    "compute": {"reference_steps": 2000},
    "run": {"checkpoint_every": 200},
}


# So small that it is done training within a minute or two; what experts can gain is then to be seen.
_DIGITS_SMALL: dict[str, Any] = {
    **_DIGITS,
    "model": "digits-small",
    "intervals": {"count": 3},
    "base": {"learning_rate": 1e-2, "decay": "constant", "ema": 0.99},
    "experts": {"learning_rate": 1e-2, "ema": 0.99},
    "budgets": {"sampler_steps": 20, "capacity": "noisy"},
    "compute": {"reference_steps": 1000, "base_share": 0.55},
}


_FASHION: dict[str, Any] = {
    "data": {"source": "fashion-mnist"},
    "noise": {"schedule": "squaredcos_cap_v2"},
    "base": {"learning_rate": 1e-3, "ema": 0.999},
    "experts": {"learning_rate": 5e-4, "ema": 0.998, "weighting": "relative"},
    "pruning": {"rounds": 2},
    "compute": {"reference_steps": 12000},
}


CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "digits": _DIGITS,
    "digits-small": _DIGITS_SMALL,
    "digits-class": {**_DIGITS, "data": {**_DIGITS["data"], "labels": True}},
    "digits-dit": {**_DIGITS, "model": "digits-dit", "data": {**_DIGITS["data"], "labels": True}},
    "fashion16": {"model": "fashion16", **_FASHION},
    "fashion28": {"model": "fashion28", **_FASHION},
    "fashion32": {"model": "fashion32", **_FASHION},
    "ddpm-cifar10": {
        "model": "ddpm-cifar10",
        "data": {"source": "hub:uoft-cs/cifar10", "held_out": 5000},
        "noise": {"schedule": "linear"},
        "base": {"learning_rate": 2e-4, "warmup": 0.0125, "decay": "constant", "ema": 0.9999},
        "experts": {"learning_rate": 1e-4, "ema": 0.9999},
        "compute": {"reference_steps": 800000},
        "run": {"batch_size": 128, "checkpoint_every": 1000},
    },
}
"""Whole configurations."""
