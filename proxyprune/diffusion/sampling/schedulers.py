"""Any diffusers scheduler as a sampler of a process: the right betas, a start that the network can be asked at, and no clip that hurts.

Why each setting is as it is, with figures: docs/design/step-adaptive.md, "Samplers".
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from proxyprune.diffusion.process.noise_schedule import alphas_of, is_flow, snr_of_steps
from proxyprune.diffusion.process.scheduler import Scheduler
from proxyprune.errors import InputError, ProxyPruneError

_PROCESS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "clip_sample",
    "shift",
)
"""Settings that make a process what it is. They are handed over by name: `from_config` drops those that were left at their defaults, and
the other class's defaults are other betas. How steps are spaced is the sampler's own business, so that stays its default."""
LOWEST_DB = -31.0
"""SNR in dB below which a network that predicts noise is not asked, on a schedule that goes far below. Its error comes out divided by the
signal's share: by 1/35 here, by 1/20,000 at the last timestep of the cosine schedule. Images are as good as noise here and begin as that.
Fifty steps of DDIM just begin above it."""
DB_OF_LAMBDA = 20.0 / math.log(10.0)
"""Decibels of one unit of lambda, half the log SNR, in which solvers count."""
_LINEAR_DB = -44.3
"""The end of the linear schedule, which is sampled from there everywhere."""
_NO_SIGNAL = 1e-6
"""Of the variance, -60 dB: there a solver that counts in noise over signal takes its first step from a thousand and more."""
_NOISE_DB = -10.0
"""SNR above which an image has too much signal to be begun as noise."""
_NOISE_SHARE = 0.01
"""Signal's share of the variance below which a process goes far beyond that."""
_FEW = 5
"""Steps up to which a sampler may well begin in the middle: its steps are that long."""
FITTING = "ddim, ddpm and dpm++ fit every process that is trained here but straight paths; flow fits those."
_SAME_ALPHA = 1e-5
"""Difference of cumulative alphas that rounding makes."""

_RAISED = (ImportError, NotImplementedError, AssertionError, ArithmeticError, ValueError, TypeError, AttributeError, LookupError)
"""Each by some scheduler of diffusers; running out of memory, a RuntimeError, is not the scheduler's doing."""


def sampler(name: str, scheduler: Scheduler) -> Scheduler:
    """Another diffusers scheduler for the same process.

    Args:
        name: "ddim", "ddpm", "dpm++", "euler", "heun", "unipc", "flow", or the name of a class in diffusers.
        scheduler: One that fits the process.

    Raises:
        InputError: If diffusers has no such scheduler, or it samples another process.
    """
    import diffusers

    short = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm++": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}
    short |= {"heun": "HeunDiscreteScheduler", "unipc": "UniPCMultistepScheduler", "flow": "FlowMatchEulerDiscreteScheduler"}
    kind = getattr(diffusers, short.get(name, name), None)
    with named(short.get(name, name)):
        if kind is None or not hasattr(kind, "set_timesteps"):
            raise InputError(
                f"diffusers has no scheduler {name!r}. Short names are {', '.join(short)}; a class name of diffusers works too."
            )
        if is_flow(scheduler) and "FlowMatch" not in kind.__name__:
            return _on_straight_paths(kind, scheduler)
        found: Scheduler = kind(**_settings(kind, scheduler))
    check_process(found, scheduler)
    return found


@contextlib.contextmanager
def named(scheduler: str) -> Iterator[None]:
    """Whatever a scheduler of diffusers raises about what it cannot do comes out with its name.

    Args:
        scheduler: Name of the class.

    Raises:
        InputError: In place of an error about missing packages, arguments, or parts of an interface.
    """
    try:
        yield
    except ProxyPruneError:
        raise
    except _RAISED as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"diffusers' {scheduler} does not support this noise process: {type(error).__name__}: {reason}. {FITTING}"
        ) from error


def _on_straight_paths(kind: Any, scheduler: Scheduler) -> Scheduler:
    if "use_flow_sigmas" not in _parameters(kind):
        raise InputError(f"The network was trained on straight paths (flow matching), which {kind.__name__} cannot sample; use flow.")
    found: Scheduler = kind(
        num_train_timesteps=scheduler.config["num_train_timesteps"],
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=scheduler.config.get("shift", scheduler.config.get("flow_shift", 1.0)),
    )
    return found


def _settings(kind: Any, scheduler: Scheduler) -> dict[str, Any]:
    """Return settings of a diffusers class for the process of a scheduler: the process, where to begin, and whether to clip."""
    accepted = _parameters(kind)
    found = {name: scheduler.config[name] for name in _PROCESS if name in scheduler.config and name in accepted}
    if "clip_sample" in accepted:  # where the end amplifies, `unusable_steps` leaves out the steps for which it would be needed
        found["clip_sample"] = _clips(scheduler) and not _amplifies_at_the_end(scheduler)
    if _blows_up_at_the_end(kind, scheduler):
        found["timestep_spacing"] = "leading"
    elif (scheduler.config.get("rescale_betas_zero_snr") or _asked_at_the_end(kind, scheduler)) and "timestep_spacing" in accepted:
        found["timestep_spacing"] = "trailing"  # the only spacing that begins at the last timestep, with nothing but noise
    elif _amplifies_at_the_end(scheduler):
        if "lambda_min_clipped" in accepted:
            found["lambda_min_clipped"] = LOWEST_DB / DB_OF_LAMBDA
        elif "timestep_spacing" in accepted:
            found["timestep_spacing"] = "leading"
    elif _clips(scheduler) and "clip_sample" not in accepted and "thresholding" in accepted:
        # With no room above the range, diffusers' dynamic thresholding is a clip to it.
        found |= {"thresholding": True, "sample_max_value": scheduler.config.get("clip_sample_range", 1.0)}
    return found


def check_process(found: Scheduler, scheduler: Scheduler) -> None:
    """Refuse a sampler of another process: its images would be far from the data, and nothing would say so.

    Args:
        found: The sampler.
        scheduler: Of the process that the network was trained on.

    Raises:
        InputError: If its cumulative alphas are not those that the network was trained with.
    """
    expected, own = getattr(scheduler, "alphas_cumprod", None), getattr(found, "alphas_cumprod", None)
    if expected is None:
        return
    if own is None or len(own) != len(expected) or float((own.double() - expected.double()).abs().max()) > _SAME_ALPHA:
        raise InputError(
            f"{type(found).__name__} samples another process than the one that the network was trained on"
            f"{' (it cannot end in pure noise, as zero_terminal_snr has it)' if scheduler.config.get('rescale_betas_zero_snr') else ''}. "
            f"{FITTING}"
        )


def _ends_in_noise(scheduler: Scheduler) -> bool:
    return float(alphas_of(scheduler)[-1]) < _NO_SIGNAL


def _blows_up_at_the_end(kind: Any, scheduler: Scheduler) -> bool:
    """Solvers of second order (Heun) whose first step, from next to no signal, throws images out of the range for good."""
    return getattr(kind, "order", 1) > 1 and hasattr(scheduler, "alphas_cumprod") and _ends_in_noise(scheduler)


def _asked_at_the_end(kind: Any, scheduler: Scheduler) -> bool:
    """Return True if a deterministic sampler of "leading" spacing can begin at the last timestep: if the network predicts v or the image.

    From a few steps before, where that spacing begins, images that start as noise lack what signal there is by then.
    """
    parameters = inspect.signature(kind.step).parameters
    spacing = inspect.signature(kind.__init__).parameters.get("timestep_spacing")
    deterministic = spacing is not None and spacing.default == "leading" and ("generator" not in parameters or "eta" in parameters)
    predicts = scheduler.config.get("prediction_type")
    return deterministic and predicts in ("v_prediction", "sample") and hasattr(scheduler, "alphas_cumprod") and _ends_in_noise(scheduler)


def _amplifies_at_the_end(scheduler: Scheduler) -> bool:
    if scheduler.config.get("prediction_type") != "epsilon" or not hasattr(scheduler, "alphas_cumprod"):
        return False
    abar = float(alphas_of(scheduler)[-1])
    return abar > 0.0 and 10.0 * math.log10(abar / (1.0 - abar)) < _LINEAR_DB


def _clips(scheduler: Scheduler) -> bool:
    """Return True if the estimates of the clean image by a network that predicts noise are clipped to the range of images, as in DDPM.

    At high noise they are the prediction's error divided by the signal's share, which can throw a sample out of the range for good.
    """
    return scheduler.config.get("prediction_type") == "epsilon" and bool(scheduler.config.get("clip_sample"))


def step_arguments(scheduler: Scheduler, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Return what a scheduler's step takes beside the prediction.

    A scheduler that clips its estimate of the clean image and keeps the noise of the unclipped one mixes two states that do not belong
    together; DDIM does so unless asked otherwise, and its images come out two to three times as far from the data.

    Args:
        scheduler: Any of diffusers.
        generators: One for each image.
    """
    accepted = inspect.signature(scheduler.step).parameters
    clips = bool(scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"))
    found: dict[str, Any] = {"generator": list(generators)} if "generator" in accepted else {}
    return found | ({"use_clipped_model_output": True} if clips and "use_clipped_model_output" in accepted else {})


def begin_at(scheduler: Scheduler, place: int) -> None:
    """Say which step comes first: schedulers look it up by its timestep, and find another where timesteps repeat.

    Args:
        scheduler: After `set_timesteps`.
        place: Number of the step.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(place)


def unusable_steps(scheduler: Scheduler) -> int:
    """Return the number of a scheduler's steps, from the first on, that lie below `LOWEST_DB` where that matters; after `set_timesteps`.

    Solvers, which have sigmas, begin above it by themselves. Samplers that could clip their estimate (DDIM, DDPM) do not, and need not
    when these steps are left out.
    """
    solver = hasattr(scheduler, "sigmas")
    if solver or scheduler.config.get("clip_sample", True) or not _amplifies_at_the_end(scheduler):
        return 0
    return int((snr_of_steps(scheduler) < LOWEST_DB).sum())


def check_start(scheduler: Scheduler, steps: int, start_db: float) -> None:
    """Refuse a scheduler that stops before the image, and a number of steps with which it starts in the middle.

    "Leading" spacing rounds its stride down, so that many steps do not reach the end.

    Args:
        scheduler: After `set_timesteps`.
        steps: How many.
        start_db: SNR of the first.

    Raises:
        InputError: If it stops so, or if images are no longer noise at the first of more than a few steps and the process goes further.
    """
    if is_flow(scheduler) and float(cast(Any, scheduler).sigmas[-1]) > 0.0:
        raise InputError(f"{type(scheduler).__name__} stops before the image on straight paths (flow matching); use flow, dpm++ or unipc.")
    if steps <= _FEW or start_db <= _NOISE_DB or not hasattr(scheduler, "alphas_cumprod"):
        return
    abar = float(alphas_of(scheduler)[-1])
    if abar < _NOISE_SHARE:
        raise InputError(
            f"{type(scheduler).__name__} would begin {steps} steps at {start_db:.0f} dB, where images are no longer noise; its spacing "
            f"({scheduler.config.get('timestep_spacing', 'unnamed')}) does not reach the end with so many. Take fewer steps."
        )


def _parameters(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.__init__).parameters)
