"""Watch the pruned model's own run: every op of it must be the one that was predicted.

The run on the example inputs has to happen anyway, so where the attributes that must follow are obvious, it is the verification as well:
ops in order, their integers, floats and other settings, and the shapes they return. One difference ends it, and the search on a skeleton
takes over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.width_factors import follows_width
from proxyprune.tracing.dispatch import WholeOps

_NOT_COMPARED = ("aten::detach", "aten::alias", "aten::contiguous", "aten::_assert", "prim::")
"""Bookkeeping, and a copy that depends on the strides of a kernel alone."""

_SIZES_SHOW = tuple("view reshape expand empty zeros ones full repeat split as_strided upsample flatten norm".split())
"""Sizes among the arguments of these show in the result; -1 and the number that it stands for are the same."""


class Parted(BaseException):
    """Ends a run at its first difference; no `except Exception` in a forward swallows it."""


class Observer(WholeOps):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Raises `Parted` as soon as the run inside it differs from a prediction without removed blocks."""

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        self.prediction = prediction
        self.expected = _compared(prediction)
        self.defaults: dict[Any, dict[str, Any]] = {}

    def op(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compare one op."""
        if func._schema.name.startswith(_NOT_COMPARED):
            return func(*args, **kwargs)
        node = next(self.expected, None)
        if node is None or not self._same_call(node, func, args, kwargs):
            raise Parted
        result = func(*args, **kwargs)
        for index, item in enumerate(result if isinstance(result, list | tuple) else (result,)):
            if isinstance(item, Tensor) and tuple(item.shape) != self.prediction.output_shape(node, index):
                raise Parted
        return result

    def ended(self) -> None:
        """The run is over: nothing that was predicted may be missing."""
        if next(self.expected, None) is not None:
            raise Parted

    def _same_call(self, node: Node, func: object, args: Any, kwargs: dict[str, Any]) -> bool:
        if node.target is not func:
            return False
        one, other = self._by_name(func, *self.prediction.arguments(node)), self._by_name(func, args, kwargs)
        sizes_show = any(part in str(func) for part in _SIZES_SHOW) and "group_norm" not in str(func)
        return all(
            _same(one[name], other.get(name), sizes_show=sizes_show) or follows_width(self.prediction, node, one[name], other.get(name))
            for name in one
        )

    def _by_name(self, func: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of a call; torch leaves out those at the end that have their default."""
        if func not in self.defaults:
            self.defaults[func] = {argument.name: argument.default_value for argument in func._schema.arguments}
        return self.defaults[func] | dict(zip(self.defaults[func], args, strict=False)) | kwargs


def _compared(prediction: Prediction) -> Iterator[Node]:
    for node in prediction.graph.program.calls:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and not schema.name.startswith(_NOT_COMPARED):
            yield node


def _same(predicted: Any, found: Any, *, sizes_show: bool) -> bool:
    """Whether an argument is what was predicted; devices and flags of the backend may differ."""
    if isinstance(predicted, Node):
        return isinstance(found, Tensor)
    if isinstance(predicted, list | tuple):
        alike = isinstance(found, list | tuple) and len(found) == len(predicted)
        return alike and all(_same(one, other, sizes_show=sizes_show) for one, other in zip(predicted, found, strict=True))
    if isinstance(predicted, torch.device | bool) or isinstance(found, torch.device):
        return True
    if isinstance(predicted, int) and isinstance(found, int):
        return sizes_show or predicted == found
    return bool(predicted == found) or (predicted != predicted and found != found)
