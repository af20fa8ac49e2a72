"""Checkpoints: one safetensors file each, complete, put in place by one rename, so that a kill leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from proxyprune.diffusion.run_folder import StageFolder
from proxyprune.errors import StorageError
from proxyprune.support.files import to_disk

SCHEMA = 1
_ABANDONED = 3600.0
"""Seconds after which a file that was being written is nobody's."""


@dataclass(frozen=True)
class Checkpoint:
    """All that training goes on from.

    Attributes:
        model: State of the network.
        ema: Averaged state; empty without averaging.
        optimizer: Tensors of the optimizer by "parameter/key".
        rng: State of torch's generator of each process, [processes, bytes].
        record: Everything else, as plain JSON types: phase, step, optimizer groups, ledger.
    """

    model: Mapping[str, Tensor] = field(repr=False)
    ema: Mapping[str, Tensor] = field(repr=False)
    optimizer: Mapping[str, Tensor] = field(repr=False)
    rng: Tensor = field(repr=False)
    record: Mapping[str, Any]

    def write(self, folder: Path) -> Path:
        """Write to a folder, atomically.

        Raises:
            StorageError: If that fails; an earlier checkpoint is as it was.
        """
        parts = (("model", self.model), ("ema", self.ema), ("optimizer", self.optimizer), ("rng", {"torch": self.rng}))
        tensors = {f"{part}/{name}": value.detach().cpu().contiguous().clone() for part, values in parts for name, value in values.items()}
        metadata = {"schema": str(SCHEMA), "record": json.dumps(dict(self.record), allow_nan=False)}
        path = StageFolder(folder).checkpoint
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".checkpoint.", suffix=".saving", dir=folder)
            os.close(handle)
            try:
                save_file(tensors, temporary, metadata)
                to_disk(Path(temporary))
                Path(temporary).replace(path)
            finally:
                Path(temporary).unlink(missing_ok=True)
            to_disk(folder)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"The checkpoint {path} cannot be written: {error}. Check the free space and permissions.") from error
        return path

    @classmethod
    def read(cls, folder: Path) -> Checkpoint | None:
        """Read the checkpoint of a folder; None when there is none.

        Raises:
            StorageError: If there is one, and it is damaged.
        """
        path = StageFolder(folder).checkpoint
        _sweep(folder)
        if not path.is_file():
            return None
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}, "rng": {}}
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                for key in file.keys():  # noqa: SIM118  not a mapping
                    part, _, name = key.partition("/")
                    parts[part][name] = file.get_tensor(key)
            if metadata.get("schema") != str(SCHEMA):
                raise StorageError(f"{path} has schema {metadata.get('schema')!r}, expected {SCHEMA}. Remove it to start the stage again.")
            record = json.loads(metadata["record"])
            return cls(parts["model"], parts["ema"], parts["optimizer"], parts["rng"]["torch"], record)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"The checkpoint {path} is damaged ({error}). Remove it to start the stage again.") from error


def _sweep(folder: Path) -> None:
    """Remove what a killed run left while writing; young files may be another job's that writes at this moment."""
    for left in folder.glob(".checkpoint.*.saving") if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of an optimizer by "parameter/key", and the other values in the same way."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            place = f"{names[id(parameter)]}/{key}"
            if isinstance(value, Tensor):
                tensors[place] = value
            else:
                plain[place] = value
    return tensors, plain


def restore_optimizer(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Read what `optimizer_state` wrote."""
    parameters = dict(model.named_parameters())
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for place, value in {**tensors, **plain}.items():
        name, _, key = place.rpartition("/")
        parameter = parameters[name]
        entry, group = optimizer.state[parameter], groups[id(parameter)]
        inside = bool(group.get("fused") or group.get("capturable"))  # then the count of steps lives with the parameter too, as in torch
        moved = value.to(parameter.device) if isinstance(value, Tensor) and (value.numel() > 1 or inside) else value
        entry[key] = moved.clone() if isinstance(moved, Tensor) else moved


def rng_state() -> Tensor:
    """State of torch's generator on the CPU."""
    return torch.get_rng_state()
