"""Experts on disk and in memory: what a folder of networks, one for each interval, looks like, and how one of them is brought back."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_model
from torch import nn

from proxyprune.diffusion.sampling.compiled import Compiled
from proxyprune.diffusion.sampling.placement import Trial, move, place_network
from proxyprune.diffusion.sampling.step_cache import disable_cache, enable_cache, forget
from proxyprune.errors import InputError, PlanFormatError, StorageError
from proxyprune.modelfile import load_weights
from proxyprune.result import PruneResult
from proxyprune.saving.manifest import MANIFEST
from proxyprune.saving.network_folder import load, replace_weights, save
from proxyprune.support.files import write_json, write_text
from proxyprune.surgery.perform import perform
from proxyprune.surgery.surgery import Surgery

WHOLE = "model.safetensors"
EARLIER = "earlier"

Factory = Callable[[], nn.Module]


def save_expert(folder: Path, model: nn.Module, cuts: Sequence[PruneResult]) -> None:
    """Write an expert: `proxyprune.save`'s folder for one that was cut, weights alone for one that is whole.

    Args:
        folder: Where to.
        model: The trained network.
        cuts: How it was pruned, in order; the surgeries of all but the last go into a folder `earlier`.
    """
    if not cuts:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / WHOLE))
        return
    last = cuts[-1]
    save(PruneResult(model, last.plan, last.ranking, last.report, last.surgery, last.graph), folder)
    for number, cut in enumerate(cuts[:-1]):
        write_json(folder / EARLIER / f"{number}.surgery.json", cut.surgery.to_dict())
        write_text(folder / EARLIER / f"{number}.plan.json", cut.plan.to_text())


def load_expert(folder: Path, factory: Factory) -> nn.Module:
    """Bring an expert back.

    Args:
        folder: What `save_expert` wrote.
        factory: Builds the unpruned network.

    Raises:
        StorageError: If the folder holds no expert.
        ProxyPruneError: As `proxyprune.load` does.
    """
    if (folder / MANIFEST).is_file():
        return load(folder, lambda: _cut_before(factory, folder / EARLIER)).eval()
    check_expert(folder)
    model = factory()
    load_weights(model, folder / WHOLE)
    return model.eval()


def is_whole(folder: Path) -> bool:
    """Return whether a saved expert was not cut."""
    return not (folder / MANIFEST).is_file()


def copy_expert(source: Path, target: Path, model: nn.Module | None) -> None:
    """Copy a saved expert; one that is in memory, and was changed there, with the weights that it has now.

    The file keeps its precision: weights that were only rounded to another dtype in memory count as unchanged.

    Args:
        source: What `save_expert` wrote.
        target: Where to.
        model: The expert in memory, or None.

    Raises:
        StorageError: If there is none.
    """
    check_expert(source)
    shutil.copytree(source, target)
    if model is None:
        return
    saved = load_file(target / WHOLE)  # `proxyprune.save` calls its weights so, too
    held = model.state_dict()
    if all(name in held and torch.equal(held[name].cpu(), tensor.to(held[name].dtype)) for name, tensor in saved.items()):
        return
    if any(tensor.dtype != held[name].dtype for name, tensor in saved.items()):
        precise = next(tensor.dtype for tensor in saved.values() if tensor.is_floating_point())
        model = copy.deepcopy(model).to(precise)
    if (target / MANIFEST).is_file():
        replace_weights(target, model)
    else:
        save_model(model, str(target / WHOLE))


def check_expert(folder: Path) -> None:
    """Refuse a folder that holds no expert, without reading it.

    Raises:
        StorageError: If the file with its weights is missing.
    """
    if not (folder / WHOLE).is_file():
        raise StorageError(f"'{folder}' holds no expert: there is no {WHOLE}. Copy the whole folder again, or train the expert.")


def _cut_before(factory: Factory, folder: Path) -> nn.Module:
    model = factory()
    for path in sorted(folder.glob("*.surgery.json"), key=lambda path: int(path.name.split(".")[0])) if folder.is_dir() else ():
        perform(model, read_surgery(path))
    return model


def read_surgery(path: Path) -> Surgery:
    """Read a surgery record.

    Raises:
        PlanFormatError: If it is damaged.
    """
    try:
        return Surgery.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PlanFormatError(f"'{path}' cannot be read: {error}. Prune the model again.") from error


@dataclass
class Experts:
    """The networks of a pipeline: all in memory, or one at a time.

    Attributes:
        macs: Exact MACs of each, per image.
        params: Parameters of each.
        load: Makes the network of an interval.
        resident: Keep all of them in memory.
        device: Where they run.
        dtype: Of their weights, or None for that of the files.
        compile_options: For torch.compile, or None to run them as they are.
        cache: A configuration of diffusers.hooks for all of them, or None; set by `enable_cache`.
    """

    macs: tuple[int, ...]
    params: tuple[int, ...]
    load: Callable[[int], nn.Module] = field(repr=False)
    resident: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None
    compile_options: Mapping[str, Any] | None = None
    cache: Any = None
    _held: dict[int, nn.Module] = field(default_factory=dict, init=False, repr=False)
    _compiled: dict[int, Callable[..., Any]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.macs)

    def __getitem__(self, index: int) -> nn.Module:
        """Return the network of an interval, on the device, ready to run."""
        if index not in self._held:
            if not self.resident:
                self._held.clear()
                self._compiled.clear()
            model = place_network(self.load(index).eval().requires_grad_(False), self.device, self.dtype)
            found = sum(parameter.numel() for parameter in model.parameters())
            if found != self.params[index]:
                raise StorageError(
                    f"Expert {index} has {found:,} parameters where the record of the pipeline says {self.params[index]:,}: experts were "
                    "moved or exchanged. Copy the whole folder again."
                )
            if self.cache is not None:
                enable_cache(model, self.cache)
            self._held[index] = model
        return self._held[index]

    def enable_cache(self, config: Any) -> None:
        """Give a cache of diffusers to what is loaded, and to what will be. If that fails for a loaded network, none has one.

        Args:
            config: A configuration of diffusers.hooks.

        Raises:
            InputError: If a cache is enabled already, or this one does not fit the networks.
        """
        if self.cache is not None:
            raise InputError(f"{type(self.cache).__name__} is enabled already; call disable_cache() first.")
        if not self._held:
            self[0]
        done: list[nn.Module] = []
        try:
            for model in self._held.values():
                enable_cache(model, config)
                done.append(model)
        except InputError:
            for model in done:
                disable_cache(model)
            raise
        self.cache = config
        self._compiled.clear()

    def disable_cache(self) -> None:
        """Remove the caches; nothing happens without one."""
        if self.cache is None:
            return
        for model in self._held.values():
            disable_cache(model)
        self.cache = None
        self._compiled.clear()

    def forget(self) -> None:
        """Drop what caches hold, before other images."""
        if self.cache is not None:
            for model in self._held.values():
                forget(model)

    def held(self, index: int) -> nn.Module | None:
        """Return the network of an interval, if it is in memory."""
        return self._held.get(index)

    def callable(self, index: int) -> Any:
        """Return the network as it is called: compiled, when that was asked for."""
        model = self[index]
        if self.compile_options is None:
            return model
        if index not in self._compiled:
            self._compiled[index] = Compiled(model, self.compile_options, networks=len(self))
        return self._compiled[index]

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None, trial: Trial | None = None) -> None:
        """Move what is loaded, and what will be. If that fails, all of them stay as they were.

        Args:
            device: Where to; None keeps it.
            dtype: Of the weights; None keeps it.
            trial: Runs a network in another dtype, before it is used; one is loaded for it if none is.

        Raises:
            InputError: If the device holds no values, is not there, has no room, or does not run the networks in this dtype.
        """
        device = self.device if device is None else device
        trial = None if dtype is None else trial
        if trial is not None and not self._held:
            self[0]
        self.forget()  # a cache holds tensors of the present device and dtype
        move(self._held.values(), device, dtype, trial)
        self.device, self.dtype = device, self.dtype if dtype is None else dtype
        self._compiled.clear()

    @property
    def in_memory(self) -> int:
        """The number of loaded experts."""
        return len(self._held)

    @classmethod
    def of(cls, models: Sequence[nn.Module], macs: Sequence[int]) -> Experts:
        """Networks that are in memory already."""
        params = tuple(sum(p.numel() for p in model.parameters()) for model in models)
        return cls(tuple(macs), params, lambda index: models[index])
