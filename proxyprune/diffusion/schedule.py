"""The noise process: how much signal and how much noise each timestep has, read from diffusers' own schedulers.

Every process here is x_t = signal(t) * x_0 + noise(t) * epsilon, and difficulty is the signal-to-noise ratio in decibels:
SNR(t) = 10 log10(signal(t)**2 / noise(t)**2), which is 10 log10(abar_t / (1 - abar_t)) for variance-preserving processes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxyprune.diffusion.config import NoiseConfig
from proxyprune.errors import InputError

FloatArray = NDArray[np.float64]


def snr_db(signal: FloatArray, noise: FloatArray) -> FloatArray:
    """Signal-to-noise ratio in decibels; +inf without noise, -inf without signal."""
    with np.errstate(divide="ignore"):
        return np.asarray(20.0 * (np.log10(signal) - np.log10(noise)))


@dataclass(frozen=True)
class NoiseSchedule:
    """Signal and noise of every training timestep.

    Attributes:
        signal: Factor of the clean image at each timestep, [T], in [0, 1].
        noise: Factor of the noise, [T].
        times: What the network is told for each timestep, [T].
        prediction: "epsilon", "v_prediction", "sample" or "flow".
        scheduler: Class name and settings of the diffusers scheduler that it came from.
    """

    signal: FloatArray = field(repr=False)
    noise: FloatArray = field(repr=False)
    times: FloatArray = field(repr=False)
    prediction: str
    scheduler: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        if not (len(self.signal) == len(self.noise) == len(self.times) > 1):
            raise InputError(f"Expected signal, noise and times of one length above 1, found {len(self.signal)}, {len(self.noise)}.")
        if np.any(np.diff(self.snr_db) >= 0):
            raise InputError("Expected a schedule whose signal-to-noise ratio falls from one timestep to the next.")

    @property
    def snr_db(self) -> FloatArray:
        """Exact SNR of every timestep, [T], falling."""
        return snr_db(self.signal, self.noise)

    def clipped_db(self, limit: float) -> FloatArray:
        """SNR clipped to +- `limit` dB: what lies beyond is equally easy, and infinities become numbers."""
        return np.asarray(np.clip(self.snr_db, -limit, limit))

    @classmethod
    def of(cls, config: NoiseConfig) -> NoiseSchedule:
        """The process of a configuration."""
        return cls.from_scheduler(training_scheduler(config), config.prediction)

    @classmethod
    def from_scheduler(cls, scheduler: Any, prediction: str | None = None) -> NoiseSchedule:
        """Read the process that a diffusers scheduler samples.

        Raises:
            InputError: If the scheduler has neither cumulative alphas nor flow sigmas.
        """
        settings = {"class": type(scheduler).__name__, "config": dict(scheduler.config)}
        if is_flow(scheduler):
            count = int(scheduler.config.num_train_timesteps)
            sigmas = np.arange(1, count + 1, dtype=np.float64) / count
            shift = float(scheduler.config.get("shift", scheduler.config.get("flow_shift", 1.0)) or 1.0)
            sigmas = shift * sigmas / (1.0 + (shift - 1.0) * sigmas)
            return cls(1.0 - sigmas, sigmas, sigmas * count, prediction or "flow", settings)
        if not hasattr(scheduler, "alphas_cumprod"):
            raise InputError(
                f"{type(scheduler).__name__} has neither alphas_cumprod nor flow sigmas, so its noise levels are unknown. "
                "Use a scheduler of the DDPM family or a flow-matching one."
            )
        abar = scheduler.alphas_cumprod.double().numpy()
        found = prediction or str(scheduler.config.get("prediction_type", "epsilon"))
        return cls(np.sqrt(abar), np.sqrt(1.0 - abar), np.arange(len(abar), dtype=np.float64), found, settings)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler's sigmas mix image and noise on a straight path: x = (1 - sigma) * x_0 + sigma * epsilon."""
    config = scheduler.config
    flagged = bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"
    return flagged or "FlowMatch" in type(scheduler).__name__


def training_scheduler(config: NoiseConfig) -> Any:
    """The diffusers scheduler of a configuration: DDPM's, or flow matching's."""
    if config.schedule == "flow":
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.timesteps, shift=config.shift)
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=config.timesteps,
        beta_schedule=config.schedule,
        prediction_type=config.prediction,
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing" if config.zero_terminal_snr else "leading",
        clip_sample=config.prediction == "epsilon",  # see `_clips`; networks that predict v or the image need none and lose by it
    )


def sampler(name: str, scheduler: Any) -> Any:
    """Another diffusers scheduler for the same process.

    Args:
        name: "ddim", "ddpm", "dpm++", "euler", "heun", "unipc", "flow", or the name of a class in diffusers.
        scheduler: One that fits the process.

    Raises:
        InputError: If diffusers has no such scheduler.
    """
    import diffusers

    short = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm++": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}
    short |= {"heun": "HeunDiscreteScheduler", "unipc": "UniPCMultistepScheduler", "flow": "FlowMatchEulerDiscreteScheduler"}
    kind = getattr(diffusers, short.get(name, name), None)
    if kind is None or not hasattr(kind, "set_timesteps"):
        raise InputError(f"diffusers has no scheduler {name!r}. Short names are {', '.join(short)}; a class name of diffusers works too.")
    if is_flow(scheduler) and "FlowMatch" not in kind.__name__:
        if "use_flow_sigmas" not in _defaults(kind):
            raise InputError(f"The network was trained on straight paths (flow matching), which {kind.__name__} cannot sample; use flow.")
        return kind(
            num_train_timesteps=scheduler.config.num_train_timesteps,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=scheduler.config.get("shift", 1.0),
        )
    accepted = _defaults(kind)
    process = {name: scheduler.config[name] for name in _PROCESS if name in scheduler.config and name in accepted}
    if "clip_sample" in accepted:  # where the end amplifies, `unusable_steps` leaves out the steps for which it would be needed
        process["clip_sample"] = _clips(scheduler) and not _amplifies_at_the_end(scheduler)
    if _blows_up_at_the_end(kind, scheduler):
        process["timestep_spacing"] = "leading"
    elif (scheduler.config.get("rescale_betas_zero_snr") or _asked_at_the_end(kind, scheduler)) and "timestep_spacing" in accepted:
        process["timestep_spacing"] = "trailing"  # the only spacing that begins at the last timestep, with nothing but noise
    elif _amplifies_at_the_end(scheduler):
        if "lambda_min_clipped" in accepted:
            process["lambda_min_clipped"] = LOWEST_DB / DB_OF_LAMBDA
        elif "timestep_spacing" in accepted:
            process["timestep_spacing"] = "leading"
    elif _clips(scheduler) and "clip_sample" not in accepted and "thresholding" in accepted:
        # With no room above the range, diffusers' dynamic thresholding is a clip to it.
        process |= {"thresholding": True, "sample_max_value": scheduler.config.get("clip_sample_range", 1.0)}
    found = kind(**process)
    _check_process(found, scheduler)
    return found


def _check_process(found: Any, scheduler: Any) -> None:
    """Refuse a sampler of another process: its images would be far from the data, and nothing would say so.

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
            "ddim, ddpm and dpm++ fit every process that is trained here but straight paths; flow fits those."
        )


_SAME_ALPHA = 1e-5


def _ends_in_noise(scheduler: Any) -> bool:
    return float(scheduler.alphas_cumprod[-1]) < _NO_SIGNAL


_NO_SIGNAL = 1e-6
"""Of the variance, -60 dB: there a solver that counts in noise over signal takes its first step from a thousand and more."""


def _blows_up_at_the_end(kind: Any, scheduler: Any) -> bool:
    """Solvers of second order (Heun) whose first step, from next to no signal, throws images out of the range for good."""
    return getattr(kind, "order", 1) > 1 and hasattr(scheduler, "alphas_cumprod") and _ends_in_noise(scheduler)


def _asked_at_the_end(kind: Any, scheduler: Any) -> bool:
    """Whether a deterministic sampler of "leading" spacing can begin at the last timestep: networks that predict v or the image stand that.

    From a few steps before, where that spacing begins, images that start as noise lack what signal there is by then.
    """
    parameters = inspect.signature(kind.step).parameters
    spacing = inspect.signature(kind.__init__).parameters.get("timestep_spacing")
    deterministic = spacing is not None and spacing.default == "leading" and ("generator" not in parameters or "eta" in parameters)
    predicts = scheduler.config.get("prediction_type")
    return deterministic and predicts in ("v_prediction", "sample") and hasattr(scheduler, "alphas_cumprod") and _ends_in_noise(scheduler)


LOWEST_DB = -31.0
"""SNR in dB below which a network that predicts noise is not asked, on a schedule that goes far below. Its error comes out divided by the
signal's share: by 1/35 here, by 1/20,000 at the last timestep of the cosine schedule. Images are as good as noise here and begin as that.
Fifty steps of DDIM just begin above it."""
DB_OF_LAMBDA = 20.0 / math.log(10.0)
"""Decibels of one unit of lambda, half the log SNR, in which solvers count."""
_LINEAR_DB = -44.3
"""Where the linear schedule ends, which is sampled from there everywhere."""


def _amplifies_at_the_end(scheduler: Any) -> bool:
    if scheduler.config.get("prediction_type") != "epsilon" or not hasattr(scheduler, "alphas_cumprod"):
        return False
    abar = float(scheduler.alphas_cumprod[-1])
    return abar > 0.0 and 10.0 * math.log10(abar / (1.0 - abar)) < _LINEAR_DB


def _clips(scheduler: Any) -> bool:
    """Whether a network that predicts noise has its estimates of the clean image clipped to the images' range, as DDPM's sampler does.

    At high noise they are the prediction's error divided by the signal's share, which can throw a sample out of the range for good.
    """
    return scheduler.config.get("prediction_type") == "epsilon" and bool(scheduler.config.get("clip_sample"))


def unusable_steps(scheduler: Any) -> int:
    """How many of a scheduler's steps, from the first on, lie below `LOWEST_DB` where that matters; after `set_timesteps`.

    Solvers, which have sigmas, begin above it by themselves. Samplers that could clip their estimate (DDIM, DDPM) do not, and need not
    when these steps are left out.
    """
    solver = hasattr(scheduler, "sigmas")
    if solver or scheduler.config.get("clip_sample", True) or not _amplifies_at_the_end(scheduler):
        return 0
    return int((snr_of_steps(scheduler) < LOWEST_DB).sum())


def check_start(scheduler: Any, steps: int, start_db: float) -> None:
    """Refuse a scheduler that stops before the image, and a number of steps with which it starts in the middle.

    "Leading" spacing rounds its stride down, so that many steps do not reach the end.

    Args:
        scheduler: After `set_timesteps`.
        steps: How many.
        start_db: SNR of the first.

    Raises:
        InputError: If it stops so, or if images are no noise any more at the first of more than a few steps and the process goes further.
    """
    if is_flow(scheduler) and float(scheduler.sigmas[-1]) > 0.0:
        raise InputError(f"{type(scheduler).__name__} stops before the image on straight paths (flow matching); use flow, dpm++ or unipc.")
    if steps <= _FEW or start_db <= _NOISE_DB or not hasattr(scheduler, "alphas_cumprod"):
        return
    abar = float(scheduler.alphas_cumprod[-1])
    if abar < _NOISE_SHARE:
        raise InputError(
            f"{type(scheduler).__name__} would begin {steps} steps at {start_db:.0f} dB, where images are no noise any more; its spacing "
            f"({scheduler.config.get('timestep_spacing', 'unnamed')}) does not reach the end with so many. Take fewer steps."
        )


_NOISE_DB = -10.0
_NOISE_SHARE = 0.01
"""The signal's share of the variance, -20 dB."""
_FEW = 5


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


def _defaults(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.__init__).parameters)


def snr_of_steps(scheduler: Any) -> FloatArray:
    """SNR in dB of every step that a scheduler is about to take, after `set_timesteps`; the same scale as in training.

    Sigmas are used where the scheduler has them, because respacing, Karras spacing and shifts show there; otherwise the timesteps
    look cumulative alphas up, between two of them by interpolation of the SNR in dB.
    """
    timesteps = np.asarray(scheduler.timesteps.detach().cpu().double())
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) >= len(timesteps) and "DDPM" not in type(scheduler).__name__:
        values = np.asarray(sigmas.detach().cpu().double())[: len(timesteps)]
        return snr_db(1.0 - values, values) if is_flow(scheduler) else snr_db(np.ones_like(values), values)
    abar = scheduler.alphas_cumprod.double().numpy()
    exact = snr_db(np.sqrt(abar), np.sqrt(1.0 - abar))
    finite = np.where(np.isfinite(exact), exact, -1e4)  # zero terminal SNR: far below every boundary
    found = np.interp(timesteps, np.arange(len(exact)), finite)
    return np.asarray(np.where(found <= -1e4, -np.inf, found))
