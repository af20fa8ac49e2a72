"""Sizes that a network states about its features, in the attributes that timm gives its networks.

`num_features` and `embed_dim` are channels of `forward_features`, `head_hidden_size` those in front of the classifier, and each entry of
`feature_info` names a module and its channels. No forward uses them as sizes, so they follow by running both networks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.support.nested import tensors_of
from proxyprune.surgery.surgery import AttributeChange
from proxyprune.tracing.model_call import Call, call_arguments, evaluation, on_device_of
from proxyprune.tracing.module_state import unchanged

RECORD = "pretrained_cfg"
"""Attribute that says which weights and which preprocessing belong to a network of timm."""

_CHANGED = " (pruned)"
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")
_OF_FEATURES = ("num_features", "embed_dim")
_OF_HEAD = "head_hidden_size"
_INFO = "feature_info"

Path = tuple[str, ...]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class FeatureSizes:
    """Stated sizes of one network inside a model, and the shapes of what they describe.

    Attributes:
        module: Name of the network; "" for the model itself.
        stated: Path of an attribute -> its value.
        shapes: Path of an attribute -> shapes of the tensors that it describes.
        unknown: Path of an attribute -> why these shapes could not be found.
    """

    module: str
    stated: Mapping[Path, int]
    shapes: Mapping[Path, Shapes]
    unknown: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, inputs: Call, module: str | None = None) -> FeatureSizes | None:
        """Run a model, and read the sizes of its features; None if it states none.

        Args:
            model: Any model.
            inputs: One call of it.
            module: Name of the network that states sizes; found if None.
        """
        name = _stating(model) if module is None else module
        if name is None:
            return None
        network = model.get_submodule(name)
        stated = dict(_stated(network))
        args, kwargs = call_arguments(on_device_of(model, inputs))
        with unchanged(model, keep_resized=True), evaluation(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            shapes, unknown = _measured(model, network, args, kwargs, stated)
        return cls(name, stated, shapes, unknown)

    def changes(self, pruned: FeatureSizes) -> tuple[AttributeChange, ...]:
        """Return the new values that follow from a run of the pruned model: sizes at the place where a shape had the stated size."""
        found = []
        for path, value in self.stated.items():
            sizes = self._became(path, value, pruned)
            if len(sizes) == 1 and (size := sizes.pop()) != value:
                found.append(AttributeChange(self.module, path, value, size))
        return tuple(found)

    def stay(self, pruned: FeatureSizes) -> dict[str, str]:
        """Return the stated sizes of which the run does not say whether they changed, with the reason."""
        found = {}
        for path, value in self.stated.items():
            why = self.unknown.get(path) or pruned.unknown.get(path)
            sizes = self._became(path, value, pruned)
            if why is None and len(sizes) > 1:
                why = f"a size of {value} in the features became {' or '.join(map(str, sorted(sizes)))}"
            if why is not None:
                found[".".join((self.module, *path)).removeprefix(".")] = f"stays {value}: {why}."
        return found

    def _became(self, path: Path, value: int, pruned: FeatureSizes) -> set[int]:
        pairs = zip(self.shapes.get(path, ()), pruned.shapes.get(path, ()), strict=False)
        sizes = [(old, new) for before, after in pairs if len(before) == len(after) for old, new in zip(before, after, strict=True)]
        places = [new for old, new in sizes if old == value]
        return {new for new in places if new != value} or set(places)


def mark_pruned(model: nn.Module) -> None:
    """Let the record of pretrained weights name no architecture and no source of weights that the pruned model does not have.

    Preprocessing, classes and names of the first and last layer stay. timm builds no network of the new name, so a folder that it writes
    from a pruned model cannot be loaded as the unpruned architecture.
    """
    for module in model.modules():
        record = vars(module).get(RECORD)
        if not isinstance(record, dict) or str(record.get("architecture", "")).endswith(_CHANGED):
            continue
        changed = {key: value for key, value in record.items() if key not in _SOURCES}
        if record.get("architecture"):
            changed["architecture"] = f"{record['architecture']}{_CHANGED}"
        for name, value in list(vars(module).items()):
            if isinstance(value, dict) and value == record:  # timm has the same record under an older name
                setattr(module, name, changed)


def architecture_of(model: nn.Module) -> str | None:
    """Return the architecture that the record of weights in a model named before the cut; None if there is no such record."""
    name = _stating(model)
    return None if name is None else str(vars(model.get_submodule(name))[RECORD].get("architecture", "")).removesuffix(_CHANGED)


def _stating(model: nn.Module) -> str | None:
    return next((name for name, module in model.named_modules() if isinstance(vars(module).get(RECORD), dict)), None)


def _stated(network: nn.Module) -> Iterator[tuple[Path, int]]:
    for name in (*_OF_FEATURES, _OF_HEAD):
        if type(vars(network).get(name)) is int:
            yield (name,), vars(network)[name]
    for index, entry in _entries(network):
        yield (_INFO, str(index), "num_chs"), entry["num_chs"]


def _entries(network: nn.Module) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the entries of feature_info that name a module and its channels, with their positions."""
    names = {name for name, _ in network.named_modules()}
    info = vars(network).get(_INFO)
    for index, entry in enumerate(info if isinstance(info, list) else ()):
        if isinstance(entry, dict) and entry.get("module") in names and type(entry.get("num_chs")) is int:
            yield index, entry


def _measured(
    model: nn.Module, network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], stated: Mapping[Path, int]
) -> tuple[dict[Path, Shapes], dict[Path, str]]:
    """Return the shapes that each stated size describes, and why those of others are unknown."""
    shapes: dict[Path, Shapes] = {}
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with contextlib.ExitStack() as hooks:
        hooks.callback(network.register_forward_pre_hook(lambda _, given, named: calls.append((given, named)), with_kwargs=True).remove)
        for index, entry in _entries(network):
            path = (_INFO, str(index), "num_chs")

            def keep(_: nn.Module, __: Any, output: Any, path: Path = path) -> None:
                shapes.setdefault(path, _shapes(output))

            hooks.callback(network.get_submodule(entry["module"]).register_forward_hook(keep).remove)
        model(*args, **kwargs)
    unknown = {path: "its module did not run" for path in stated if path[0] == _INFO and path not in shapes}
    runnable: Any = network
    described = {path: path[0] == _OF_HEAD for path in stated if path[0] != _INFO}
    try:
        given, named = calls[0]
        features = runnable.forward_features(*given, **named)
        shapes |= {path: _shapes(features) for path, head in described.items() if not head}
        if any(described.values()):
            shapes[_OF_HEAD,] = _shapes(runnable.forward_head(features, pre_logits=True))
    except Exception as error:  # noqa: BLE001  methods that the network's own forward does not need may be missing or raise anything
        why = f"features could not be computed ({type(error).__name__}: {error})"
        unknown |= {path: why for path in described if path not in shapes}
    return shapes, unknown


def _shapes(output: Any) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors_of(output) if isinstance(tensor, Tensor))
