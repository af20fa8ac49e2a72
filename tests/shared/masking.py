"""Promise 3, checked without the package's own machinery: pruning equals masking.

`assert_equals_masking` builds two networks in double precision, the pruned one and a copy of the original in which every parameter
slice of every dropped atom is zero, runs both, and compares. The slices come from the plan's kept atoms and the members of the channel
groups; nothing else of the package is used.

Normalisation statistics are held out of the way, because a mean over 32 channels of which 8 are zero is not the mean over the 24 that
are left. What that means here, call by call and only where the normalised axis was cut (each network is run once to record the shapes
that every normalisation sees; where both see the same, the real statistics are computed):

- `group_norm`, `layer_norm`, `rms_norm`, as functions or modules: only the affine part is applied, x / s * weight + bias. The number s
  is the root mean square that the masked original showed at this place, one for both networks; it keeps the magnitudes as they are in
  the real network (gated units would square them layer after layer).
- handmade norms: over a cut axis, a mean of squares and `var` are the constant s ** 2, `std` is s, the mean beside them is zero,
  `x - mean(x)` is x and `x / (mean(x) + eps)` is x. A mean that is used in any other way is a signal, not a statistic: it is computed
  as it is, and a network that lets the cut change it fails the comparison.
- `batch_norm` in eval mode, `instance_norm`, `F.normalize` and `softmax` are never touched: their result for a kept channel must not
  depend on a dropped one.

Nothing drops to single precision: casts to float32 inside a forward are cast to float64 instead.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from zoo import Inputs, run, to_tensors

TOLERANCE = 1e-5
"""Largest difference allowed, as a share of the output's largest magnitude."""


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 22) -> nn.Module:
    """Fill every parameter and running statistic, in place, so that no part of the network is silent.

    Zero-initialised projections (adaLN-zero), unit gains and 1e-6 layer scales would make a comparison of outputs say nothing about what
    feeds them. Matrices and kernels get a standard deviation of 1 / sqrt(fan in), gains lie in [0.5, 1.5], biases have 0.2.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            fan_in = parameter.numel() / parameter.shape[0]
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
        elif name.endswith("bias"):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        else:
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


@torch.no_grad()
def zero_dropped(model: nn.Module, graph: Any, kept: Mapping[str, tuple[int, ...]]) -> None:
    """Zero, in place, every slice of every member that belongs to an atom which is not kept."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for group_id, atoms in kept.items():
        group = graph.by_id[group_id]
        dropped = sorted(set(range(group.atoms)) - set(atoms))
        for member in group.members:
            tensor = tensors[member.parameter]
            for position in (int(p) for atom in dropped for p in member.positions[atom]):
                tensor.select(member.dim, position).zero_()


# --------------------------------------------------------------------------------------------------------- held statistics


def _group_norm(input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    shape = (1, -1) + (1,) * (input.dim() - 2)
    return _affine(input, weight if weight is None else weight.view(shape), bias if bias is None else bias.view(shape))


def _layer_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any) -> Tensor:
    return _affine(input, weight, bias)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, *_: Any) -> Tensor:
    return _affine(input, weight, None)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = x * 1.0 if weight is None else x * weight
    return scaled if bias is None else scaled + bias


NORMS: dict[str, Callable[..., Tensor]] = {"group_norm": _group_norm, "layer_norm": _layer_norm, "rms_norm": _rms_norm}
SPREADS = ("var", "std", "var_mean", "std_mean")


def _reduced_axes(name: str, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Axes whose extent decides a statistic."""
    if name == "group_norm":
        return (1,)
    second = args[1] if len(args) > 1 else next((kwargs[key] for key in ("dim", "axis", "normalized_shape") if key in kwargs), None)
    if name in NORMS:
        return tuple(range(x.dim() - len(second), x.dim()))
    if second is None or isinstance(second, bool):
        return tuple(range(x.dim()))
    return tuple(axis % x.dim() for axis in ((second,) if isinstance(second, int) else second))


@dataclass(frozen=True)
class Statistic:
    """One normalisation or reduction that a run came by.

    Attributes:
        name: Function that computes it.
        extents: Sizes of the axes that it reduces.
        scale: Root mean square of what it reads.
    """

    name: str
    extents: tuple[int, ...]
    scale: float


@dataclass
class _Seen:
    """What one run has come by so far.

    Attributes:
        statistics: In call order.
        squares: Results of x * x, by id.
        means: Results of mean(x), possibly plus a constant, by id, with x.
        alive: Keeps those tensors, so that an id means one tensor.
    """

    statistics: list[Statistic] = field(default_factory=list)
    squares: set[int] = field(default_factory=set)
    means: dict[int, Tensor] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)


class HeldStatistics(TorchFunctionMode):
    """Runs in double precision and replaces statistics by constants.

    Attributes:
        held: For every statistic, in call order, the root mean square that replaces it, or None to compute it; empty to only record.
    """

    def __init__(self, held: Sequence[float | None] = ()) -> None:
        super().__init__()
        self.held = held
        self.seen = _Seen()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if func is Tensor.float:
            return args[0].double()
        args, kwargs = tree_map(_double_dtype, (tuple(args), dict(kwargs or {})))
        if name in NORMS or name in SPREADS or name == "mean":
            return self._statistic(func, name, args, kwargs)
        return self._arithmetic(func, name, args, kwargs)

    def _statistic(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["input"]
        extents = tuple(x.shape[axis] for axis in _reduced_axes(name, x, args, kwargs))
        square = id(x) in self.seen.squares
        power = x.mean() if square else x.square().mean()
        self.seen.statistics.append(Statistic(name, extents, math.sqrt(float(power) + 1e-12)))
        scale = self.held[len(self.seen.statistics) - 1] if self.held else None
        if scale is None:
            return func(*args, **kwargs)
        if name in NORMS:
            return NORMS[name](x / scale, *args[1:], **{key: value for key, value in kwargs.items() if key not in ("input", "eps")})
        return self._reduction(func(*args, **kwargs), name, x, scale, square=square)

    def _reduction(self, result: Any, name: str, x: Tensor, scale: float, *, square: bool) -> Any:
        spread = scale if name.startswith("std") else scale**2
        if isinstance(result, tuple):
            return torch.full_like(result[0], spread), torch.zeros_like(result[1])
        if name in SPREADS or square:
            return torch.full_like(result, spread)
        return self._remember_mean(result, x)

    def _arithmetic(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first, second = (*args[:2], None, None)[:2]
        if name in ("sub", "div", "true_divide") and first is not None and self.seen.means.get(id(second)) is first:
            return first
        result = func(*args, **kwargs)
        if name == "square" or (name == "pow" and isinstance(second, int | float) and second == 2) or (name == "mul" and first is second):
            self.seen.squares.add(id(result))
            self.seen.alive.append(result)
        elif name == "add" and id(first) in self.seen.means and not isinstance(second, Tensor):
            self._remember_mean(result, self.seen.means[id(first)])
        return result

    def _remember_mean(self, mean: Tensor, x: Tensor) -> Tensor:
        self.seen.means[id(mean)] = x
        self.seen.alive.append(mean)
        return mean


def _double_dtype(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def _double_by_default() -> Iterator[None]:
    """Make new tensors float64; attention modules take the path that is made of single calls."""
    fast, dtype = torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.backends.mha.set_fastpath_enabled(fast)


def _run(model: nn.Module, inputs: Inputs, held: Sequence[float | None] = ()) -> tuple[list[Tensor], list[Statistic]]:
    with _double_by_default(), HeldStatistics(held) as mode:
        return [tensor.clone() for tensor in to_tensors(run(model, inputs))], mode.seen.statistics


def held_scales(masked: nn.Module, small: nn.Module, inputs: Inputs) -> list[float | None]:
    """For every statistic, the scale that replaces it in both networks, or None where both reduce axes of the same size."""
    wide, narrow = (_run(network, inputs)[1] for network in (masked, small))
    assert [s.name for s in wide] == [s.name for s in narrow], "the pruned network does not compute the same statistics as the original"
    return [None if before.extents == after.extents else before.scale for before, after in zip(wide, narrow, strict=True)]


# -------------------------------------------------------------------------------------------------------------- comparison


def assert_equals_masking(model: nn.Module, pruned: nn.Module, graph: Any, plan: Any, inputs: Inputs, *, hold: bool = True) -> None:
    """Return the pruned model computes what the original computes with the dropped slices zeroed.

    Args:
        model: The original; not changed.
        pruned: What `apply_plan` made of it.
        graph: Trace of the original; its groups say which slices an atom has.
        plan: What was cut.
        inputs: Inputs to compare on.
        hold: False to compute all statistics for real, which is exact where whole norm groups left.

    Raises:
        AssertionError: If the outputs differ, or if the comparison would prove nothing because the output is zero, not finite, or the
            same as without masking.
    """
    original = copy.deepcopy(model).double()
    masked = copy.deepcopy(original)
    zero_dropped(masked, graph, plan.kept)
    small = copy.deepcopy(pruned).double()
    inputs = tree_map(_double, inputs)
    held = held_scales(masked, small, inputs) if hold else ()
    expected, found, unmasked = (_run(network, inputs, held)[0] for network in (masked, small, original))
    assert_close(expected, found, "masked and pruned outputs")
    if plan.kept:
        changed = max(difference(a, b) for a, b in zip(expected, unmasked, strict=True))
        assert changed > 10 * TOLERANCE, f"masking changes the output by {changed:.1e} of its magnitude: the comparison proves nothing"


def assert_close(expected: list[Tensor], found: list[Tensor], what: str) -> None:
    """Both lists of outputs agree in shape and, to `TOLERANCE`, in value; at least one is finite and not zero."""
    assert [tuple(t.shape) for t in expected] == [tuple(t.shape) for t in found], f"{what} differ in shape"
    assert all(bool(t.isfinite().all()) for t in expected), f"{what}: the expected output is not finite"
    assert any(bool(t.any()) for t in expected), f"{what}: the expected output is all zero"
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        worst = difference(a, b)
        assert worst <= TOLERANCE, f"{what} differ by {worst:.1e} of the output's magnitude (output {index}, shape {tuple(a.shape)})"


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest magnitude of `a`."""
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
