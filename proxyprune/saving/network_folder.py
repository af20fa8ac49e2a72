"""Saved networks: a folder that holds a plan, what it changed, and the weights; written all or nothing, read without pickle.

plan.json           what was cut, for people and for replaying
surgery.json        what that meant for parameters, attributes and blocks
model.safetensors   the weights
ranking.json  graph.txt  graph.json  report.json    for the reader; loading does not need them
manifest.json       schema, hashes of the files, structure of the unpruned model
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from proxyprune.errors import ModelFileError, PlanFormatError, PlanMismatchError, ProxyPruneError, StorageError, WeightsError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.plan import PrunePlan
from proxyprune.saving.destination import refuse_foreign, resolved
from proxyprune.saving.manifest import (
    FILES,
    GRAPH,
    MANIFEST,
    PLAN,
    RANKING,
    REPORT,
    STRUCTURE,
    SURGERY,
    WEIGHTS,
    Manifest,
    read_manifest,
    sha256_of,
)
from proxyprune.saving.storage_errors import storage_errors
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.tools.weights import is_fake
from proxyprune.standard.blueprint import find_blueprint
from proxyprune.standard.follow_config import follow_config_unrun
from proxyprune.support.checks import listed
from proxyprune.support.files import put_folder, to_disk
from proxyprune.support.wrapped_names import wrapper_prefix
from proxyprune.surgery.perform import perform
from proxyprune.surgery.surgery import Surgery
from proxyprune.tracing.names import named_state

_DAMAGED: Mapping[str, type[ProxyPruneError]] = {PLAN: PlanFormatError, SURGERY: PlanFormatError, WEIGHTS: WeightsError}

Factory = Callable[[], Any]


class Record(Protocol):
    """Something with a plain JSON form."""

    def to_dict(self) -> Mapping[str, Any]:
        """Plain JSON types."""


class Saveable(Protocol):
    """The part that `save` reads from the result of pruning."""

    @property
    def model(self) -> nn.Module:
        """The pruned model."""

    @property
    def plan(self) -> PrunePlan:
        """The plan that was applied."""

    @property
    def surgery(self) -> Surgery:
        """The changes that applying it made."""

    @property
    def ranking(self) -> Ranking:
        """The ranking behind the plan."""

    @property
    def report(self) -> Record:
        """Figures for the reader."""

    @property
    def graph(self) -> ModelGraph:
        """Graph of the unpruned model."""


def save(result: Saveable, folder: str | Path) -> Path:
    """Write a pruned network to a folder, all or nothing.

    The files are written beside the folder and moved into place when all of them are on disk: when anything fails, a folder that was
    there before is as it was. Saving over an earlier save replaces its files and keeps what else lies in it; any other non-empty folder
    is refused.

    Args:
        result: What `prune` returned; its model may have been trained since.
        folder: Where to; parents are created.

    Returns:
        The folder.

    Raises:
        StorageError: If the folder cannot be written, or holds something else.
        WeightsError: If the model has no values (meta device) or holds state that is not a tensor.
    """
    target = resolved(folder)
    tensors, shared = _stored_once(result.model)
    _check_unwrapped(result.model, tensors, result.graph.parameter_shapes)
    with storage_errors(f"save to '{folder}'"):
        refuse_foreign(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".saving", dir=target.parent))
        try:
            _write_all(result, tensors, shared, fresh)
            put_folder(fresh, target, foreign=_extras)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return Path(folder)


def replace_weights(folder: Path, model: nn.Module) -> None:
    """Give a saved network other weights; it stays loadable.

    Args:
        folder: What `save` wrote, where nobody reads it yet: the two files are written one after the other.
        model: The network of that folder, trained since.

    Raises:
        StorageError: If that fails.
        WeightsError: If its state cannot be saved.
    """
    tensors, shared = _stored_once(model)
    with storage_errors(f"save to '{folder}'"):
        manifest = read_manifest(folder)
        safetensors.torch.save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
        to_disk(folder / WEIGHTS)
        hashes = dict(manifest.sha256) | {WEIGHTS: sha256_of(folder / WEIGHTS)}
        _write(folder / MANIFEST, _json(replace(manifest, sha256=hashes, shared=shared).to_dict()))


def load(folder: str | Path, factory: Factory) -> nn.Module:
    """Rebuild a saved network.

    Args:
        folder: What `save` wrote.
        factory: Builds the unpruned model; its weights do not matter. May also return (model, example inputs, ...), or be a module with a
            function `build_model`.

    Returns:
        The pruned model: saved weights, dtypes and training modes, on the device of the factory's model.

    Raises:
        StorageError: If the folder or one of its files is missing, unreadable or of another schema.
        PlanFormatError: If the plan or the surgery record was damaged.
        WeightsError: If the weights were damaged, or do not fit.
        PlanMismatchError: If the factory builds another structure than the one that was pruned.
        ModelFileError: If the factory raises or builds no module.
    """
    where = Path(folder)
    with storage_errors(f"load from '{folder}'"):
        manifest = read_manifest(where)
        for name in (PLAN, SURGERY, WEIGHTS):
            _check_hash(where / name, manifest.sha256.get(name))
        plan = PrunePlan.from_json(where / PLAN)
        surgery = _read_surgery(where / SURGERY)
        tensors = _read_weights(where / WEIGHTS)
    model = _build(factory)
    _check_structure(model, manifest.structure, {cut.parameter for cut in surgery.cuts})
    blueprint = find_blueprint(model)
    perform(model, surgery)
    _fill(model, tensors | {alias: tensors[name] for alias, name in manifest.shared.items() if name in tensors}, where)
    _set_modes(model, manifest)
    if blueprint is not None:
        follow_config_unrun(model, blueprint, manifest.structure, uniform=bool(plan.options.get("uniform")))
    return model


def _stored_once(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to store, and the further names of shared ones."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    memory: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"'{name}' in the state of {type(model).__name__} is {type(value).__name__}, not a tensor; such state cannot be saved "
                "without pickle. Remove it from the state dict (see get_extra_state of that module), or make it a buffer."
            )
        if is_fake(value):
            raise WeightsError(f"Parameter '{name}' {tuple(value.shape)} has no values. Load the weights before saving.")
        tensor = value.detach()
        identity = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and identity in first:
            shared[name] = first[identity]
            continue
        first[identity] = name
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        overlaps = storage in memory and tensor.numel() > 0
        memory[storage] = name
        tensor = tensor.clone(memory_format=torch.contiguous_format) if overlaps else tensor.contiguous()
        tensors[name] = tensor.cpu()
    return tensors, shared


def _write_all(result: Saveable, tensors: Mapping[str, Tensor], shared: Mapping[str, str], folder: Path) -> None:
    _write(folder / PLAN, result.plan.to_text())
    _write(folder / SURGERY, _json(result.surgery.to_dict()))
    _write(folder / RANKING, _json(result.ranking.to_dict()))
    _write(folder / GRAPH, result.graph.to_text())
    _write(folder / STRUCTURE, _json(result.graph.to_dict()))
    _write(folder / REPORT, _json(result.report.to_dict()))
    safetensors.torch.save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    to_disk(folder / WEIGHTS)
    training = result.model.training
    manifest = Manifest(
        sha256={name: sha256_of(folder / name) for name in FILES if name != MANIFEST},
        structure=result.graph.parameter_shapes,
        shared=shared,
        training=training,
        exceptions=tuple(name for name, module in result.model.named_modules() if module.training != training),
    )
    _write(folder / MANIFEST, _json(manifest.to_dict()))
    to_disk(folder)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _extras(folder: Path) -> Iterable[Path]:
    return [path for path in folder.iterdir() if path.name not in FILES]


def _check_hash(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise StorageError(f"'{path}' is missing. Restore it, or save the network again.")
    found = sha256_of(path)
    if found != expected:
        raise _DAMAGED[path.name](
            f"'{path}' was changed or truncated after it was saved: expected sha256 {str(expected)[:12]}…, found {found[:12]}…. "
            "Restore the file, or save the network again."
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"'{path}' is not a readable safetensors file: {error}. Save the network again.") from error


def _read_surgery(path: Path) -> Surgery:
    try:
        return Surgery.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ProxyPruneError:
        raise
    except (ValueError, RecursionError) as error:
        raise PlanFormatError(f"'{path}' is not JSON: {error}. Save the network again.") from error


def _build(factory: Factory) -> nn.Module:
    if isinstance(factory, nn.Module):
        raise ModelFileError(
            f"Expected a function that builds the unpruned model, found a model ({type(factory).__name__}). Pass the function itself: "
            "build_model, not build_model()."
        )
    build = getattr(factory, "build_model", factory)
    if not callable(build):
        raise ModelFileError(f"Expected a factory that builds the unpruned model, found {type(factory).__name__}.")
    try:
        built = build()
    except Exception as error:
        raise ModelFileError(f"The factory raised {type(error).__name__}: {error}. It must build the unpruned model.") from error
    model = built[0] if isinstance(built, tuple) and built else built
    if not isinstance(model, nn.Module):
        raise ModelFileError(f"Expected the factory to build a torch module, found {type(model).__name__}.")
    return model


def _check_structure(model: nn.Module, structure: Mapping[str, tuple[int, ...]], cut: Collection[str]) -> None:
    """Raise if the factory's model is not what was pruned.

    A buffer outside the state dict is not saved, and a forward may give it another size; its size matters only if it is cut.
    """
    tensors = dict(named_state(model))
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_wrapper(model, found, structure)
    unsaved = {name for name, _ in model.named_buffers()} - set(model.state_dict(keep_vars=True))
    known = {id(tensor) for name, tensor in tensors.items() if name in structure}
    differences = [
        f"'{name}' has shape {found[name]} instead of {shape}"
        for name, shape in structure.items()
        if name in found and found[name] != shape and (name in cut or name not in unsaved)
    ]
    differences += [f"'{name}' is new" for name, tensor in tensors.items() if id(tensor) not in known]
    differences += [f"'{name}' is missing" for name in structure if name not in found]
    if differences:
        raise PlanMismatchError(
            f"The factory builds a {type(model).__name__} of another structure than the one that was pruned: "
            f"{listed(differences, 5, '; ')}. Use the factory that the network was pruned with."
        )


def _check_wrapper(model: nn.Module, found: Mapping[str, tuple[int, ...]], structure: Mapping[str, tuple[int, ...]]) -> None:
    """Raise if one of two networks is wrapped and the other is not; the message names the wrapper."""
    kind = type(model).__name__
    if (prefix := wrapper_prefix(found, structure)) and all(name.startswith(prefix) for name in found):
        raise PlanMismatchError(
            f"The factory builds a wrapped network ({kind}): its names start with '{prefix}', and those of the pruned one do not. "
            f"Let the factory return the network inside (model.{prefix.rstrip('.')}), and wrap what load returns."
        )
    if (prefix := wrapper_prefix(structure, found)) and all(name.startswith(prefix) for name in structure):
        raise PlanMismatchError(
            f"The network was pruned inside a wrapper: its names start with '{prefix}', and those of the {kind} that the factory builds do "
            "not. Let the factory wrap it in the same way (as DataParallel does for 'module.'), or prune the network inside the wrapper."
        )


def _check_unwrapped(model: nn.Module, names: Collection[str], structure: Mapping[str, tuple[int, ...]]) -> None:
    """Raise if a pruned network was wrapped after pruning: its weights could not be loaded under these names."""
    held = {name for name in names if name not in structure}
    prefix = next((name[: -len(other)] for name in sorted(held) for other in structure if name.endswith(f".{other}")), "")
    if held and prefix and all(name.startswith(prefix) for name in names):
        raise WeightsError(
            f"The pruned network is wrapped ({type(model).__name__}): its names start with '{prefix}'. "
            f"Save the network inside: dataclasses.replace(result, model=result.model.{prefix.rstrip('.')})."
        )


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy saved tensors into a model of exactly these names and shapes; the dtypes become the saved ones."""
    state = model.state_dict(keep_vars=True)
    differences = [f"'{name}' is not in the file" for name in state if name not in tensors]
    differences += [f"'{name}' is not in the model" for name in tensors if name not in state]
    differences += [
        f"'{name}' has shape {tuple(tensors[name].shape)} in the file and {tuple(value.shape)} in the model"
        for name, value in state.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if differences:
        raise WeightsError(
            f"The weights in '{where}' do not fit the rebuilt network: {listed(differences, 5, '; ')}. Save the network again."
        )
    with torch.no_grad():
        for name, value in state.items():
            saved = tensors[name]
            if value.is_meta:
                raise WeightsError(f"The factory builds '{name}' without values (meta device). Build the model on a real device.")
            if value.dtype != saved.dtype:
                value.data = value.data.to(saved.dtype)
            value.data.copy_(saved)


def _set_modes(model: nn.Module, manifest: Manifest) -> None:
    flipped = frozenset(manifest.exceptions)
    for name, module in model.named_modules():
        module.training = manifest.training != (name in flipped)
