"""Values that a forward reads from tensors: note them while recording, and hand them out again in a run without data.

Some results do not follow from shapes: a number that Python code reads (`item`, `tolist`), the size of what `nonzero`, a mask or
non-maximum suppression selects. Such a result is taken as it came on the example inputs. A later run on empty tensors receives the same
result at the same place, so that it takes the same branches and has the same sizes. An op that has no implementation without data is
treated alike.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from proxyprune.support.nested import tensors_of
from proxyprune.tracing.empty_ops import EmptyOps, emptied, layout_of, on_meta, run_once

DECIDED = "decided"
"""Key in the metadata of a node whose result does not follow from shapes."""


def read_values(tensor: Tensor) -> None:
    """Stand in a graph for code that reads all values of a tensor (`tolist`, `numpy`, a format string).

    The node holds what was read as `meta["val"]`.
    """


_READS: Mapping[Any, Callable[[Any], Any]] = {
    Tensor.tolist: copy.deepcopy,
    Tensor.numpy: np.copy,
    Tensor.__array__: np.copy,
    Tensor.__format__: str,
    Tensor.__repr__: str,
}
"""Methods that read all values -> how to copy what they return. The ops that they call belong to no forward."""


_MAKERS = frozenset({torch.tensor, torch.as_tensor, torch.asarray})


class ReadValues(TorchFunctionMode):
    """Pass on every call of a function; `read` receives those that read all values of a tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at one function."""
        if func in _READS:
            return self.read(func, args, kwargs or {})
        if func in _MAKERS and isinstance(args[0], list | tuple):
            return func(self._numbers(args[0]), *args[1:], **(kwargs or {}))  # a tensor inside is read
        if func is Tensor.__setitem__ and isinstance(args[2], int | float) and makes_view(args[1]):
            args[0][args[1]].fill_(args[2])  # torch calls other ops for `x[:, 0] = 1.0` on the CPU than elsewhere
            return None
        return func(*args, **(kwargs or {}))

    def read(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what the function returns."""
        raise NotImplementedError

    def _numbers(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.read(Tensor.tolist, (value,), {})
        return [self._numbers(item) for item in value] if isinstance(value, list | tuple) else value


def makes_view(index: Any) -> bool:
    """Return True for an index that makes a view."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, slice) or type(part) is int for part in parts)


class NotedValues(ReadValues):
    """Hand every read to `note`: the tensor, and a copy of its values.

    Attributes:
        reading: True during a read, which may call ops that belong to no forward.
    """

    def __init__(self, note: Callable[[Tensor, Any], None]) -> None:
        super().__init__()
        self.note = note
        self.reading = False

    def read(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Read, and note it."""
        self.reading = True
        try:
            values = func(*args, **kwargs)
        finally:
            self.reading = False
        self.note(args[0], _READS[func](values))
        return values


class RepeatedValues(ReadValues):
    """Return the values that were noted, in order.

    Args:
        nodes: The calls of `read_values` of a program.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        super().__init__()
        self.nodes = iter(nodes)

    def read(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the next value; past the end, read the tensor itself, which fails for an empty one."""
        node = next(self.nodes, None)
        return func(*args, **kwargs) if node is None else _READS[func](node.meta["val"])


class FollowsFromShapes:
    """Decide whether an op's result follows from the layouts of its arguments, by running the op without data."""

    def __init__(self) -> None:
        self._ops = EmptyOps()

    def __call__(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> bool:
        """Return True if an empty run gives results of the same shapes.

        Args:
            func: The op.
            args: Positional arguments, with empty tensors.
            kwargs: Named arguments, likewise.
            result: What it returned on real tensors.
        """
        try:
            empty = self._ops.run(func, on_meta(args), {key: on_meta(value) for key, value in kwargs.items()})
        except Exception:  # noqa: BLE001  the op needs data, or has no implementation without it
            return False
        return bool(_sizes(empty) == _sizes(result))


def _sizes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_sizes(item) for item in value)
    return layout_of(value)


class Decisions:
    """The results that a run without data must not compute.

    Args:
        results: For each op in order: its node, and the shapes of its results in this run.
        on_meta: Whether empty tensors of the run live on the meta device; otherwise where the op's arguments are (fake tensors).
    """

    def __init__(self, results: Iterable[tuple[Node, Sequence[tuple[int, ...]]]], *, on_meta: bool) -> None:
        self._on_meta = on_meta
        self._results: dict[tuple[Any, int], tuple[Node, Sequence[tuple[int, ...]]]] = {}
        numbers: Counter[Any] = Counter()
        for node, shapes in results:
            if node.meta.get(DECIDED):
                self._results[node.target, numbers[node.target]] = node, shapes
            numbers[node.target] += 1
        self._decided = frozenset(func for func, _ in self._results)
        self._made: Counter[Any] = Counter()

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return the noted result of an op at its place in the run; run any other op."""
        if self._on_meta:
            args, kwargs = emptied(args), {key: emptied(value) for key, value in kwargs.items()}
        if func in self._decided:
            number = self._made[func]
            self._made[func] += 1
            if (func, number) in self._results:
                node, shapes = self._results[func, number]
                return self._result(node.meta["val"], shapes, next(tensors_of((args, kwargs)), None))
        return run_once(func, args, kwargs)

    def _result(self, noted: Any, shapes: Sequence[tuple[int, ...]], near: Tensor | None) -> Any:
        device = torch.device("meta") if self._on_meta else near.device if near is not None else torch.device("cpu")
        if isinstance(noted, Tensor):
            return torch.empty(shapes[0], dtype=noted.dtype, device=device)
        if isinstance(noted, list | tuple):
            items = zip(noted, shapes, strict=True)
            return type(noted)(
                torch.empty(shape, dtype=item.dtype, device=device) if isinstance(item, Tensor) else item for item, shape in items
            )
        return noted
