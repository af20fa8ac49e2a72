"""Set accelerate up for a run, with errors that name the settings."""

from __future__ import annotations

from typing import Any

from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.training.accelerator import Accelerator
from proxyprune.errors import InputError


def make_accelerator(config: StepAdaptiveConfig, run: RunFolder) -> Accelerator:
    """Make an Accelerator with the trackers of a run.

    Raises:
        InputError: If a tracker is not installed, or the device cannot compute in the precision.
    """
    import accelerate
    from accelerate.utils import GradientAccumulationPlugin

    from proxyprune.diffusion.training.trackers import JsonLines

    trackers: list[Any] = [JsonLines(run), *config.run.trackers]
    precision = config.run.mixed_precision
    try:
        accelerator = accelerate.Accelerator(
            cpu=config.run.cpu,
            mixed_precision=precision,
            log_with=trackers,
            project_dir=str(run.trackers),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # every batch is a step, whatever the environment says
        )
    except (ImportError, ValueError) as error:
        raise _refused(config, str(error)) from error
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would train in float32 and say nothing
        raise _no_precision(precision, "fp16 mixed precision requires another device than a CPU.")
    try:
        accelerator.init_trackers("proxyprune")
    except (ImportError, ValueError) as error:
        raise _refused(config, str(error)) from error
    found: Accelerator = accelerator
    return found


def _refused(config: StepAdaptiveConfig, reason: str) -> InputError:
    """Return what accelerate's refusal means for the settings of a run; its errors differ in their sentence only."""
    run = config.run
    if "mixed precision" in reason:
        return _no_precision(run.mixed_precision, reason)
    if "already been initialized" in reason:
        return InputError(
            f"run.mixed_precision is {run.mixed_precision!r} (run.cpu {run.cpu}), and accelerate keeps the settings of the first run in "
            "a process: start this run in its own process."
        )
    return InputError(f"accelerate cannot be set up: {reason}. Install what run.trackers ({list(run.trackers)}) needs.")


def _no_precision(precision: str, reason: str) -> InputError:
    return InputError(
        f"run.mixed_precision is {precision!r}, which the device cannot compute in: {reason} Choose bf16, which works on a CPU too, or no."
    )
