"""Plain attributes of modules: restore what a forward changed, and copy models that hold computed tensors or locks.

A forward may store anything on `self`: the last features, a cache, a counter. The object walk here follows what `copy.deepcopy` follows
(containers, and objects that it copies attribute by attribute), so that a logger or another shared object is left alone.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from proxyprune.errors import InputError

_ATOMS = (bool, int, float, complex, str, bytes, type(None), type, FunctionType, MethodType, ModuleType, torch.dtype, torch.device)
_TABLES = ("_parameters", "_buffers", "_modules")


def _parts(value: Any) -> Iterator[Any]:
    """Yield what `value` holds directly."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from value
    elif (attributes := plain_attributes(value)) is not None:
        yield attributes


def plain_attributes(value: Any) -> dict[str, Any] | None:
    """Return the `__dict__` of a module, or of an object that deepcopy copies attribute by attribute; None for other objects."""
    kind: Any = type(value)
    plain = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    if isinstance(value, Tensor) or not (plain or isinstance(value, nn.Module)):
        return None
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else None


def _reachable(root: Any) -> Iterator[Any]:
    """Every object that a value holds, itself included, once each."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _ATOMS) or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        waiting.extend(_parts(value))


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a model holds: parameters, buffers, and tensors in plain attributes, inside containers and objects too."""
    for value in _reachable(model):
        if isinstance(value, Tensor):
            yield value


@contextlib.contextmanager
def unchanged(model: nn.Module, *, keep_resized: bool = False) -> Iterator[None]:
    """Put every attribute of every module back afterwards, whatever a forward stored, replaced or deleted.

    Containers and objects in attributes keep their identity and get their former content. Buffers and tensors in plain attributes also
    get their former values. Values of parameters are not copied: no forward should change them.

    Args:
        model: Any module.
        keep_resized: Leave a stored tensor that replaced one of another shape. After a cut, what the unpruned forward stored (a masked
            weight, the last features) has the old width.
    """
    containers: list[tuple[Any, Any]] = []
    tensors: list[tuple[Tensor, Tensor]] = []
    for value in _reachable(model):
        if isinstance(value, dict | list | set | deque):
            containers.append((value, copy.copy(value) if type(value) in (list, set, deque) else _contents(value)))
        elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and _has_plain_values(value):
            tensors.append((value, value.detach().clone()))
    try:
        yield
    finally:
        for container, content in containers:
            _refill(container, _with_resized(container, content) if keep_resized and isinstance(container, dict) else content)
        for tensor, values in tensors:
            _rewrite(tensor, values)


def _with_resized(now: dict[Any, Any], content: dict[Any, Any]) -> dict[Any, Any]:
    """Return the former items, with tensors that have another shape now as they are now."""
    resized = {
        key: now[key]
        for key, value in content.items()
        if isinstance(value, Tensor) and isinstance(now.get(key), Tensor) and now[key].shape != value.shape
    }
    return content | resized


def _contents(value: Any) -> Any:
    """Return the items of a dict, or of another container whose class may override copying."""
    return dict(dict.items(value)) if isinstance(value, dict) else list(value)


def _refill(container: Any, content: Any) -> None:
    """Give a container its former items back, in their order."""
    if isinstance(container, dict):
        now = list(container.items())
        if len(now) != len(content) or any(k is not n or v is not m for (k, v), (n, m) in zip(now, content.items(), strict=True)):
            container.clear()
            container.update(content)
    elif isinstance(container, list):
        if len(container) != len(content) or any(one is not other for one, other in zip(container, content, strict=True)):
            container[:] = content
    elif set(map(id, container)) != set(map(id, content)) or isinstance(container, deque):
        container.clear()
        container.update(content) if isinstance(container, set) else container.extend(content)


def _has_plain_values(tensor: Tensor) -> bool:
    return not (tensor.is_meta or isinstance(tensor, FakeTensor) or tensor.is_quantized) and tensor.layout is torch.strided


def _rewrite(tensor: Tensor, values: Tensor) -> None:
    # Compared by value: batch norm writes its running statistics without counting up the tensor's version.
    if tensor.shape == values.shape and tensor.dtype == values.dtype and torch.equal(tensor.detach(), values):
        return
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if tensor.shape == values.shape and tensor.dtype == values.dtype:
            tensor.detach().copy_(values)
        else:
            tensor.data = values


def copied(model: nn.Module, memo: dict[int, Any], *, share_uncopyable: bool = False, detached: bool = False) -> nn.Module:
    """Copy a model that may hold computed tensors, which `copy.deepcopy` rejects; the copy holds their values without a graph.

    Args:
        model: Any module; not changed.
        memo: Replacements by the id of what they replace, as for `copy.deepcopy`.
        share_uncopyable: Let the copy hold the same locks, files and other objects that cannot be copied, instead of raising.
        detached: `memo` has every tensor that the model holds, so that none of them need be looked for.

    Raises:
        InputError: If something cannot be copied; the message names the module and the attribute.
    """
    for tensor in () if detached else held_tensors(model):
        if not tensor.is_leaf and id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:
        culprits = list(_uncopyable_attributes(model, memo))
        if not culprits:
            raise InputError(
                f"This {type(model).__name__} cannot be copied ({type(error).__name__}: {error}). "
                "Make it support copy.deepcopy, or use inplace=True."
            ) from error
        if share_uncopyable:
            for culprit in culprits:
                memo.setdefault(id(culprit.value), culprit.value)
            return _copied_sharing(model, memo, culprits[0])
        raise culprits[0].as_error() from error


def _copied_sharing(model: nn.Module, memo: dict[int, Any], first: _Uncopyable) -> nn.Module:
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:
        raise first.as_error() from error


@dataclass(frozen=True)
class _Uncopyable:
    """An object that cannot be copied, and the attribute that holds it."""

    module: str
    kind: str
    attribute: str
    value: Any
    error: Exception

    def as_error(self) -> InputError:
        where = f"module '{self.module}' ({self.kind})" if self.module else f"the model ({self.kind})"
        return InputError(
            f"Attribute '{self.attribute}' of {where} holds a {type(self.value).__name__}, which cannot be copied "
            f"({type(self.error).__name__}: {self.error}). Remove the attribute before pruning and set it again afterwards, "
            "or prune with inplace=True, which makes no copy."
        )


def _uncopyable_attributes(model: nn.Module, memo: dict[int, Any]) -> Iterator[_Uncopyable]:
    modules = {id(module): module for module in model.modules()}
    known = {**memo, **modules}
    for tensor in held_tensors(model):
        known.setdefault(id(tensor), tensor)
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in _TABLES:
                for culprit, error in _uncopyable_parts(value, known, set()):
                    yield _Uncopyable(name, type(module).__name__, attribute, culprit, error)


def _uncopyable_parts(value: Any, known: dict[int, Any], seen: set[int]) -> Iterator[tuple[Any, Exception]]:
    """Yield the innermost objects that make a value impossible to copy."""
    if isinstance(value, _ATOMS) or id(value) in known or id(value) in seen:
        return
    seen.add(id(value))
    try:
        copy.deepcopy(value, dict(known))
    except Exception as error:  # noqa: BLE001  whatever a copy raises is the finding
        inner = [found for part in _parts(value) for found in _uncopyable_parts(part, known, seen)]
        yield from inner or [(value, error)]
