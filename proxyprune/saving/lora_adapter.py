"""LoRA adapters of the unpruned network for the pruned one: a state dict, a safetensors file, or a folder of PEFT."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from proxyprune.applying.lora import LoraState, carry_lora_state
from proxyprune.errors import InputError, StorageError
from proxyprune.result import PruneResult
from proxyprune.saving.destination import resolved
from proxyprune.saving.lora_config import check_config, with_new_names, without_removed
from proxyprune.saving.plain_folder import plain_form
from proxyprune.saving.storage_errors import storage_errors
from proxyprune.saving.tokenizer_files import copy_tokenizer_files
from proxyprune.support.files import put_folder, to_disk
from proxyprune.support.strict_json import loads

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_METADATA = "lora_adapter_metadata"
"""Entry of a safetensors file in which diffusers keeps the config of the adapter."""


@dataclass(frozen=True)
class CarriedLora:
    """A LoRA adapter for a pruned network.

    Attributes:
        state: Its entries.
        dropped: Keys of the entries that belonged to removed blocks.
        untouched: Keys that belong to other networks (with `prefix`); copied.
        config: The content of adapter_config.json, for a folder.
        path: The file or folder that was written, or None for a state dict.
    """

    state: Mapping[str, Tensor] = field(repr=False)
    dropped: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    path: Path | None = None


@dataclass(frozen=True)
class _Adapter:
    """An adapter as it was read: entries, config of PEFT, and metadata of the safetensors file."""

    state: Mapping[str, Tensor]
    config: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None


def carry_lora(
    adapter: Mapping[str, Tensor] | str | Path,
    result: PruneResult,
    to: str | Path | None = None,
    *,
    prefix: str | None = None,
    plain: bool = False,
) -> CarriedLora:
    """Cut a LoRA adapter of the unpruned network so that it fits the pruned one.

    The columns of A follow the inputs that the layer keeps, the rows of B its outputs; ranks and scales stay. The pruned network with the
    carried adapter merged is the cut of the dense network with its adapter merged. A refit (`compensate=True`) or training after the cut
    changes the network, not the adapter.

    Args:
        adapter: A state dict, a safetensors file, or a folder of PEFT (adapter_config.json and adapter_model.safetensors). Keys are those
            of PEFT (`base_model.model.<layer>.lora_A.weight`), diffusers (`unet.<layer>.lora.down.weight`) or kohya
            (`lora_unet_<layer with underscores>.lora_down.weight`); parameters that were trained with the adapter (`modules_to_save`,
            biases) are cut as well.
        result: From `prune`.
        to: File or folder to write, for a file or folder. An earlier file or PEFT folder is replaced.
        prefix: Beginning of the keys that belong to the pruned network, such as "unet."; all other keys are copied. If left out, it is
            found by structure, and every key must belong to the pruned network.
        plain: Use the names of the network that `save_pretrained` writes, in which layers after a removed one move up. Otherwise names are
            those of `result.model`, in which they keep their numbers.

    Returns:
        The adapter, and the keys that were dropped with removed blocks.

    Raises:
        PlanMismatchError: If the adapter was made for another network.
        InputError: If an entry cannot be cut exactly (a convolution in groups that was cut; magnitudes of DoRA on a layer whose inputs were
            cut), if it is no plain LoRA adapter, or if nothing of it is left.
        ConfigError: With `plain`, if no config of the class expresses the pruned network.
        StorageError: If a file cannot be read or written.
    """
    source = None if isinstance(adapter, Mapping) else resolved(adapter)
    target = _target(source, to)
    read = _Adapter(adapter) if isinstance(adapter, Mapping) else _read(Path(adapter))
    for described in _configs(read):
        check_config(described)
    graph = result.graph
    shapes = {**graph.program.shapes, **{alias: graph.program.shapes[name] for alias, name in graph.program.aliases.items()}}
    root = "" if graph.blueprint is None else graph.blueprint.module
    state = carry_lora_state(read.state, result.surgery, result.model, shapes, root=root, prefix=prefix)
    if len(state.tensors) == len(state.untouched):
        raise InputError(f"Nothing of the adapter is left: all of its {len(state.dropped)} entries belong to removed blocks.")
    config = None if read.config is None else without_removed(read.config, _modules(shapes), result.surgery)
    read = replace(read, config=config)
    carried = _renamed(read, state, result) if plain else replace(read, state=state.tensors)
    if target is not None:
        _write(carried, source, target)
    return CarriedLora(dict(carried.state), state.dropped, state.untouched, carried.config, None if to is None else Path(to))


def check_lora(adapter: str | Path, to: str | Path) -> None:
    """Raise if an adapter cannot be read or is no plain LoRA adapter, or if its place is taken.

    Args:
        adapter: A safetensors file, or a folder of PEFT.
        to: The file or folder that `carry_lora` will write.

    Raises:
        InputError: If it is no plain LoRA adapter.
        StorageError: If it cannot be read, or something else lies at `to`.
    """
    _target(resolved(adapter), to)
    for described in _configs(_read(Path(adapter))):
        check_config(described)


def _target(source: Path | None, to: str | Path | None) -> Path | None:
    """Return where the adapter goes.

    Raises:
        InputError: If a file or folder has no destination, or a state dict has one.
        StorageError: If something else lies there.
    """
    if (source is None) != (to is None):
        raise InputError(
            "A state dict is returned, not written: omit `to`, or pass a file or folder."
            if source is None
            else f"Expected a place for the carried adapter beside '{source}': carry_lora(adapter, result, to)."
        )
    if source is None or to is None:
        return None
    target = resolved(to)
    if target == source:
        raise StorageError(f"Cannot write to '{to}': the adapter of the unpruned network is there. Choose another place.")
    if source.is_dir() and target.exists() and not target.is_dir():
        raise StorageError(f"Cannot write to '{to}': it is a file. Choose a folder.")
    if target.is_dir() and (not source.is_dir() or (any(target.iterdir()) and not (target / CONFIG).is_file())):
        raise StorageError(f"Cannot write to '{to}': it holds files that are not of a PEFT adapter. Choose a new or empty place.")
    return target


def _read(path: Path) -> _Adapter:
    """Read a safetensors file, or a folder of PEFT.

    Raises:
        StorageError: If it cannot be read.
        InputError: If it is no such folder.
    """
    path = resolved(path)
    if path.is_dir():
        missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
        if missing:
            raise InputError(f"'{path}' is not an adapter folder of PEFT: expected {' and '.join(missing)}, found no such file.")
    with storage_errors(f"read the adapter '{path}'"):
        with safe_open(path / WEIGHTS if path.is_dir() else path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no mapping
            metadata = file.metadata()
        config = _json(path / CONFIG) if path.is_dir() else None
    return _Adapter(state, config, metadata)


def _configs(read: _Adapter) -> Iterator[Mapping[str, Any]]:
    """Yield the configs that come with an adapter: of PEFT's folder, and of each network in a file of diffusers."""
    if read.config is not None:
        yield read.config
    try:
        kept = loads((read.metadata or {}).get(_METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"The metadata '{_METADATA}' of the adapter is not JSON: {error}. Save the adapter again.") from error
    for network in {key.rpartition(".")[0] for key in kept}:
        fields = {key.rpartition(".")[2]: value for key, value in kept.items() if key.rpartition(".")[0] == network}
        yield {"peft_type": "LORA"} | fields


def _json(path: Path) -> dict[str, Any]:
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is not JSON: {error}. Save the adapter again.") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}' holds no config: expected a JSON object, found {type(content).__name__}.")
    return content


def _modules(shapes: Mapping[str, object]) -> set[str]:
    """Return the names of all modules around parameters."""
    parts = [name.split(".") for name in shapes]
    return {".".join(words[:count]) for words in parts for count in range(1, len(words))}


def _renamed(read: _Adapter, state: LoraState, result: PruneResult) -> _Adapter:
    """Return the adapter with the names of the plain network."""
    if result.example_inputs is None:
        raise InputError("The names of the plain network need example inputs, and this result has none. Prune again, or omit plain.")
    standard = plain_form(result, result.example_inputs)[0].config
    root = standard.blueprint.prefix
    inner = {name: name.removeprefix(root) for name in state.modules.values()}
    names = {name: str(standard.name_of(inner[name])) for name in inner}
    tensors = {_new_key(key, state, root, names): tensor for key, tensor in state.tensors.items()}
    if read.metadata is not None and _METADATA in read.metadata and standard.renumbered:
        raise InputError(
            f"The file keeps the config of its adapter in its metadata ('{_METADATA}'), with the old numbers of layers. "
            "Omit plain, or pass the state dict."
        )
    config = read.config if read.config is None or not standard.renumbered else with_new_names(read.config, state, names)
    return replace(read, state=tensors, config=config)


def _new_key(key: str, state: LoraState, root: str, names: Mapping[str, str]) -> str:
    """Return a key with the name that its layer has in the plain network."""
    if key not in state.modules:
        return key
    full = state.modules[key]
    rest = key.removeprefix(state.prefix).removeprefix(root)
    old, new = full.removeprefix(root).split("."), names[full].split(".")
    end = max((position + 1 for position, (one, other) in enumerate(zip(old, new, strict=True)) if one != other), default=0)
    head = "".join(f"{part}." for part in old[:end])
    if rest.startswith(head):
        return state.prefix + "".join(f"{part}." for part in new[:end]) + rest.removeprefix(head)
    inner, parameter = rest.removeprefix(root.replace(".", "_")).partition(".")[::2]
    if inner != "_".join(old):
        raise InputError(f"'{key}' cannot be renumbered: expected a key that begins with '{state.prefix}{head}'.")
    return f"{state.prefix}{'_'.join(new)}.{parameter}"


def _write(adapter: _Adapter, source: Path | None, target: Path) -> None:
    """Write a file or a folder as a whole, or not at all."""
    tensors = {key: tensor.contiguous() for key, tensor in adapter.state.items()}
    metadata = adapter.metadata or {"format": "pt"}
    with storage_errors(f"write the adapter '{target}'"):
        target.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".saving", dir=target.parent))
        try:
            fresh = room / "adapter"
            fresh.mkdir()
            weights = fresh / WEIGHTS
            safetensors.torch.save_file(tensors, weights, metadata=metadata)
            weights.chmod(0o644)
            to_disk(weights)
            if adapter.config is None or source is None:
                weights.replace(target)
                to_disk(target.parent)
                return
            (fresh / CONFIG).write_text(json.dumps(adapter.config, indent=2, sort_keys=True), encoding="utf-8")
            copy_tokenizer_files(source, fresh)
            put_folder(fresh, target)
        finally:
            shutil.rmtree(room, ignore_errors=True)
