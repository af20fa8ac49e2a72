"""The noise process: how much signal and how much noise each timestep has, read from diffusers' own schedulers.

Every process here is x_t = signal(t) * x_0 + noise(t) * epsilon, and difficulty is the signal-to-noise ratio in decibels:
SNR(t) = 10 log10(signal(t)**2 / noise(t)**2), which is 10 log10(abar_t / (1 - abar_t)) for variance-preserving processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proxyprune.diffusion.config.run_config import NoiseConfig
from proxyprune.diffusion.process.scheduler import Scheduler
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
        times: Value that the network takes as the time of each timestep, [T].
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
        """SNR of every timestep in dB, [T], clipped: what lies beyond is equally easy, and infinities become numbers.

        Args:
            limit: In dB, at both ends.
        """
        return np.asarray(np.clip(self.snr_db, -limit, limit))

    @classmethod
    def of(cls, config: NoiseConfig) -> NoiseSchedule:
        """Return the process of a configuration.

        Args:
            config: Schedule, prediction, timesteps.
        """
        return cls.from_scheduler(training_scheduler(config), config.prediction)

    @classmethod
    def from_scheduler(cls, scheduler: Scheduler, prediction: str | None = None) -> NoiseSchedule:
        """Read the process that a diffusers scheduler samples.

        Args:
            scheduler: Of the DDPM family, or of flow matching.
            prediction: What the network predicts; None reads it from the scheduler.

        Raises:
            InputError: If the scheduler has neither cumulative alphas nor flow sigmas.
        """
        settings = {"class": type(scheduler).__name__, "config": dict(scheduler.config)}
        if is_flow(scheduler):
            count = int(scheduler.config["num_train_timesteps"])
            sigmas = np.arange(1, count + 1, dtype=np.float64) / count
            shift = float(scheduler.config.get("shift", scheduler.config.get("flow_shift", 1.0)) or 1.0)
            sigmas = shift * sigmas / (1.0 + (shift - 1.0) * sigmas)
            return cls(1.0 - sigmas, sigmas, sigmas * count, prediction or "flow", settings)
        if not hasattr(scheduler, "alphas_cumprod"):
            raise InputError(
                f"{type(scheduler).__name__} has neither alphas_cumprod nor flow sigmas, so its noise levels are unknown. "
                "Use a scheduler of the DDPM family or a flow-matching one."
            )
        abar = alphas_of(scheduler).double().numpy()
        found = prediction or str(scheduler.config.get("prediction_type", "epsilon"))
        return cls(np.sqrt(abar), np.sqrt(1.0 - abar), np.arange(len(abar), dtype=np.float64), found, settings)


def alphas_of(scheduler: Scheduler) -> Tensor:
    """Return the cumulative alphas of a scheduler of the DDPM family."""
    found: Tensor = cast(Any, scheduler).alphas_cumprod  # a member of this family only
    return found


def is_flow(scheduler: Scheduler) -> bool:
    """Return True if a scheduler's sigmas mix image and noise on a straight path: x = (1 - sigma) * x_0 + sigma * epsilon."""
    config = scheduler.config
    flagged = bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"
    return flagged or "FlowMatch" in type(scheduler).__name__


def training_scheduler(config: NoiseConfig) -> Scheduler:
    """Make the diffusers scheduler of a configuration: DDPM's, or flow matching's."""
    found: Scheduler
    if config.schedule == "flow":
        from diffusers import FlowMatchEulerDiscreteScheduler

        found = FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.timesteps, shift=config.shift)
        return found
    from diffusers import DDPMScheduler

    found = DDPMScheduler(
        num_train_timesteps=config.timesteps,
        beta_schedule=config.schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type=config.prediction,
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing" if config.zero_terminal_snr else "leading",
        clip_sample=config.prediction == "epsilon",  # see samplers.py; networks that predict v or the image lose by it
    )
    return found


def snr_of_steps(scheduler: Scheduler) -> FloatArray:
    """SNR in dB of every step that a scheduler is about to take, after `set_timesteps`; the same scale as in training.

    Sigmas are used where the scheduler has them, because respacing, Karras spacing and shifts show there; otherwise, and where it calls
    the network between two of its sigmas (KDPM2), the timesteps look cumulative alphas up, by interpolation of the SNR in dB.
    """
    timesteps = np.asarray(scheduler.timesteps.detach().cpu().double())
    sigmas = getattr(scheduler, "sigmas", None)
    between = hasattr(scheduler, "sigmas_interpol")
    if sigmas is not None and len(sigmas) >= len(timesteps) and not between and "DDPM" not in type(scheduler).__name__:
        values = np.asarray(sigmas.detach().cpu().double())[: len(timesteps)]
        return snr_db(np.clip(1.0 - values, 0.0, None), values) if is_flow(scheduler) else snr_db(np.ones_like(values), values)
    abar = alphas_of(scheduler).double().numpy()
    exact = snr_db(np.sqrt(abar), np.sqrt(1.0 - abar))
    finite = np.where(np.isfinite(exact), exact, -1e4)  # zero terminal SNR: far below every boundary
    found = np.interp(timesteps, np.arange(len(exact)), finite)
    return np.asarray(np.where(found <= -1e4, -np.inf, found))
