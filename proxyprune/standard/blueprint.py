"""The class and the config that a network was built from, and the networks that other configs of that class give.

Networks are built on the meta device, so a build costs milliseconds and no memory, and it goes through the same conversion as
`from_pretrained`: config to plain JSON types, values changed there, and back.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from proxyprune.tracing.names import is_inside, named_state

Path = tuple[str | int, ...]
"""Keys from a config's outermost level to one value; an integer is a position in a list."""

Values = Mapping[Path, Any]
"""New values of a config, by path."""

Attribute = tuple[str, str]
"""Qualified module name and attribute name."""


@dataclass(frozen=True)
class Blueprint:
    """A class and a config.

    Attributes:
        kind: The network's class.
        config_kind: Class of its config; None for a plain mapping, as diffusers has.
        text: The config as JSON.
        module: Name of the network within the traced model; "" when it is the traced model itself.
    """

    kind: type[nn.Module]
    config_kind: type | None
    text: str = field(repr=False)
    module: str = ""

    @property
    def prefix(self) -> str:
        """The text before the network's own names in the traced model; "" when it is the traced model itself."""
        return f"{self.module}." if self.module else ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config as plain JSON types; not to be changed."""
        content: dict[str, Any] = json.loads(self.text)
        return content

    def with_values(self, values: Values) -> Blueprint:
        """Return the blueprint with some values changed."""
        content = copy.deepcopy(self.config)
        for path, value in values.items():
            put(content, path, value)
        return Blueprint(self.kind, self.config_kind, json.dumps(content), self.module)

    def make_config(self) -> Any:
        """Build the config object, as `from_pretrained` reads it from a file."""
        content = copy.deepcopy(self.config)
        with _quiet():
            return content if self.config_kind is None else self.config_kind.from_dict(content)  # type: ignore[attr-defined]  # a config class of transformers

    def build(self, device: str = "meta", config: Any = None) -> nn.Module:
        """Build the network; its weights are random, or absent on the meta device.

        Args:
            device: Where its tensors are made.
            config: The config to use, made by `make_config`.
        """
        config = self.make_config() if config is None else config
        kind: Any = self.kind
        with _quiet(), torch.device(device):
            if self.config_kind is not None:
                model = kind(config)
            else:
                model = kind.from_config(config) if hasattr(kind, "from_config") else kind(**config)
        return model.eval()  # type: ignore[no-any-return]  # the class is known at run time only

    def try_build(self) -> nn.Module | None:
        """Build the network without data; None if the class rejects the config."""
        try:
            return self.build()
        except Exception:  # noqa: BLE001  a class may reject a config with any exception
            return None


def find_blueprint(model: nn.Module) -> Blueprint | None:
    """Return class and config of a model, or of the one network that it wraps; None if there is none.

    A wrapper may hold no parameters besides those of the network inside.
    """
    found: dict[str, Blueprint] = {}
    for name, module in model.named_modules():
        if not any(is_inside(name, outer) for outer in found):
            made = _of_module(name, module)
            if made is not None:
                found[name] = made
    if len(found) != 1:
        return None
    ((name, blueprint),) = found.items()
    outside = [parameter for parameter, _ in model.named_parameters() if not is_inside(parameter, name)]
    return None if outside else blueprint


def _of_module(name: str, module: nn.Module) -> Blueprint | None:
    config = getattr(module, "config", None)
    if config is None or not hasattr(module, "save_pretrained"):
        return None
    try:
        if isinstance(config, Mapping):
            content = {key: value for key, value in config.items() if not str(key).startswith("_")}
            return Blueprint(type(module), None, json.dumps(content), name)
        return Blueprint(type(module), type(config), config.to_json_string(use_diff=False), name)
    except (TypeError, ValueError, AttributeError):  # not a config that goes through a file
        return None


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer, shared ones by each of their names."""
    return {name: tuple(tensor.shape) for name, tensor in named_state(model)}


def attributes_of(model: nn.Module) -> dict[Attribute, int | float | tuple[Any, ...]]:
    """Return the numbers that modules hold as plain attributes."""
    found: dict[Attribute, int | float | tuple[Any, ...]] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key.startswith("_") or key == "training":
                continue
            if type(value) in (int, float) or (isinstance(value, tuple) and all(type(item) is int for item in value)):
                found[name, key] = value
    return found


def settings_of(model: nn.Module) -> dict[Attribute, Any]:
    """Return the plain attributes of modules, but for fractions: rates of dropped paths follow the depth, and training alone reads them."""
    return {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and (value is None or isinstance(value, bool | int | str | tuple))
    }


def put(content: Any, path: Path, value: Any) -> None:
    """Set one value of a config in place; a number becomes a list if the path has a position in it."""
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


def value_at(content: Any, path: Path) -> Any:
    """Return one value of a config."""
    for key in path:
        content = content[key]
    return content


def written(path: Path) -> str:
    """Return a path as people write it: text_config.hidden_size, block_out_channels[0]."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave the caller's random state alone, and keep a library's remarks on unusual configs from the user."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
