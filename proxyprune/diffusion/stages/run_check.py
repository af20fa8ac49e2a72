"""A run that goes on has to be the run that was begun: its settings and its images are compared with what its folder says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
from proxyprune.diffusion.data.image_data import ImageData
from proxyprune.diffusion.records import read_json
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.errors import StorageError

_FREE = {
    "run": ("cpu", "checkpoint_every", "checkpoint_minutes", "log_every", "trackers", "divergence", "loss_bins", "loss_images"),
    "pruning": ("accept_unreliable",),
}
"""Settings that may differ when a run goes on."""


def check_settings(run: RunFolder, config: StepAdaptiveConfig) -> None:
    """Reject a folder that holds a run with other settings.

    Args:
        run: The folder.
        config: The requested configuration.

    Raises:
        StorageError: If they differ in something that decides what is computed, or the folder is a file.
    """
    if run.path.exists() and not run.path.is_dir():
        raise StorageError(f"The run's folder {run.path} is a file. Choose another name.")
    if not run.config.is_file():
        return
    changed = sorted(_differences(_meaning(StepAdaptiveConfig.from_json(run.config)), _meaning(config)))
    if changed:
        raise StorageError(
            f"{run.path} holds a run with other settings: {', '.join(changed)}. Continue with its own settings (--config {run.config}), "
            "or choose another folder."
        )


def check_images(run: RunFolder, data: ImageData) -> None:
    """Reject other images than the run was begun with: some that were trained on would be among those that are held out.

    Raises:
        StorageError: If the run began with others.
    """
    before, now = fingerprint_of(run), data.fingerprint()
    if before is not None and before != now:
        raise StorageError(
            f"{run.path} was started with {before.get('train')} training and {before.get('held_out')} held-out images of "
            f"{data.name}, which has other images now ({now['train']} and {now['held_out']}). Restore them, or choose another folder."
        )


def fingerprint_of(run: RunFolder) -> dict[str, Any] | None:
    """Read the fingerprint of the images that a run was begun with; None for a new folder."""
    found: dict[str, Any] | None = read_json(run.images, "Remove it if the images are those that the run began with.")
    return found


def _meaning(config: StepAdaptiveConfig) -> dict[str, Any]:
    """Return the settings with defaults that depend on others filled in, so that None and the value that it stands for are equal."""
    values = config.to_dict()
    values["pruning"]["round_to"] = config.pruning.multiple(config.budgets.metric)
    return values


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    found = set()
    for name, value in now.items():
        if isinstance(value, dict) and name != "options":
            free = _FREE.get(name, ())
            found |= {f"{name}.{key}" for key, item in value.items() if key not in free and before[name].get(key) != item}
        elif before.get(name) != value:
            found.add(name)
    return found
