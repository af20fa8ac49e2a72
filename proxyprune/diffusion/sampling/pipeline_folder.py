"""The folder of a pipeline: written as a whole or not at all, and read without running its code.

model_index.json      as diffusers writes it: class, schedulers
step_adaptive.json    intervals, costs and the network's class and settings
scheduler/  training_scheduler/    configs of diffusers
experts/N/            an expert each
README.md             the model card; kept if a user changed it
pipeline.py           the code that plain diffusers runs if it is trusted; experts/ holds another part of it and a copy of the record
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers

from proxyprune.diffusion.networks import from_record
from proxyprune.diffusion.process.scheduler import Scheduler
from proxyprune.diffusion.records import read_json
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.sampling.experts import Factory
from proxyprune.diffusion.sampling.folder_code import CLASS_NAME, EXPERTS_CLASS, PIPELINE, write_code
from proxyprune.diffusion.sampling.pipeline_card import CARD, is_written_by_us, pipeline_card
from proxyprune.diffusion.sampling.pipeline_record import RECORD, Blueprint
from proxyprune.errors import ModelFileError, StorageError
from proxyprune.saving.manifest import PLAN
from proxyprune.support.files import put_folder, write_json, write_text

INDEX = "model_index.json"
TRAINED_WITH = "training_scheduler"
"""Entry of the index and folder of the scheduler that says how the networks were trained; other samplers are made from it."""
EXPERTS = "experts"
_OURS = (INDEX, RECORD, f"{PIPELINE}.py", TRAINED_WITH, "scheduler", EXPERTS)


def read_pipeline(folder: Path) -> tuple[Blueprint, Mapping[str, Any]]:
    """Read the record and the index of a pipeline.

    Raises:
        StorageError: If the folder is no pipeline, or damaged.
    """
    record = folder / RECORD if (folder / RECORD).is_file() else folder / EXPERTS / RECORD
    data, index = (read_json(path, "Copy the whole pipeline again.") for path in (record, folder / INDEX))
    if not isinstance(data, Mapping) or not isinstance(index, Mapping):
        inside = RunFolder(folder).pipeline
        advice = f"Did you mean '{inside}'?" if (inside / RECORD).is_file() else "`proxyprune diffusion train` makes one."
        raise StorageError(f"'{folder}' is not a step-adaptive pipeline: it lacks {RECORD} or {INDEX}. {advice}")
    return Blueprint.from_dict(data), index


def replace_pipeline(target: Path, write: Callable[[Path], None]) -> None:
    """Write a pipeline beside its place and move it there; what else lies in an earlier pipeline's folder is kept.

    Args:
        target: The folder of the pipeline.
        write: Fills an empty folder.

    Raises:
        StorageError: If the folder cannot be written, or holds something else.
    """
    if target.exists() and not (target / RECORD).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"Cannot save to '{target}': it holds something else. Choose a new or empty folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".saving", dir=target.parent))
        try:
            write(fresh)
            if not is_written_by_us(target / CARD):
                (fresh / CARD).unlink()
            put_folder(fresh, target, foreign=_not_ours)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"The pipeline cannot be saved to '{target}': {error}. Check the free space and permissions.") from error


def write_description(folder: Path, blueprint: Blueprint, schedulers: Mapping[str, Scheduler]) -> None:
    """Write everything of a pipeline but its experts.

    Args:
        folder: An empty folder.
        blueprint: The record.
        schedulers: By their entry in the index.
    """
    for entry, scheduler in schedulers.items():
        scheduler.save_pretrained(str(folder / entry))
    for place in (folder, folder / EXPERTS):
        write_json(place / RECORD, blueprint.to_dict())
    write_code(folder)
    index: dict[str, Any] = {"_class_name": list(CLASS_NAME), "_diffusers_version": diffusers.__version__, EXPERTS: list(EXPERTS_CLASS)}
    write_json(folder / INDEX, index | {entry: ["diffusers", type(scheduler).__name__] for entry, scheduler in schedulers.items()})


def factory_of(blueprint: Blueprint) -> Factory:
    """Return what builds the unpruned network, from its class and settings.

    Raises:
        ModelFileError: If the folder does not hold them.
    """
    network = blueprint.network
    if network is None:
        file = blueprint.source or "FILE.py"
        raise ModelFileError(
            f"The networks of this pipeline came from a model file{f' ({file})' if blueprint.source else ''}, which the folder does not "
            f"hold. On the command line, add --model {shlex.quote(file)}. In Python, give its build_model: "
            "from_pretrained(folder, factory=build_model)."
        )
    return lambda: from_record(network)


def _not_ours(folder: Path) -> list[Path]:
    """Return what the user put there; a card is among it only if the user changed it."""
    ours = (*_OURS, *([CARD] if is_written_by_us(folder / CARD) else []))
    return [path for path in folder.iterdir() if path.name not in ours]


def read_scheduler(folder: Path, index: Mapping[str, Any], entry: str = "scheduler") -> Scheduler:
    """Read a scheduler of diffusers.

    Args:
        folder: Of the pipeline.
        index: Its model_index.json.
        entry: Name in the index, and of the folder.

    Raises:
        StorageError: If it cannot be read, or diffusers has no such class.
    """
    named = index.get(entry)
    name = named[1] if isinstance(named, list) and len(named) == 2 else named
    kind: Any = getattr(diffusers, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        raise StorageError(f"'{folder / INDEX}' names the scheduler {name!r}, which diffusers does not have.")
    try:
        found: Scheduler = kind.from_pretrained(str(folder / entry))
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise StorageError(f"The scheduler in '{folder}' cannot be read: {error}") from error
    return found


def write_card(folder: Path, blueprint: Blueprint, scheduler: Scheduler) -> None:
    """Write the model card.

    Args:
        folder: Of the pipeline, with its experts.
        blueprint: Its record.
        scheduler: Its sampler.
    """
    plans = [(folder / EXPERTS / str(index) / PLAN).is_file() for index in range(len(blueprint.macs))]
    write_text(folder / CARD, pipeline_card(blueprint, type(scheduler).__name__, plans))
