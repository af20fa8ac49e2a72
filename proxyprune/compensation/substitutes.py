"""Layers that can take the place of removed blocks: refitted, they add to the residual path what the blocks added."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proxyprune.compensation.calibration_pass import CalibrationData, run_until
from proxyprune.compensation.moments import Moments, MomentSizes
from proxyprune.compensation.readers import Networks
from proxyprune.scoring.tools.hooks import Hook, hooked
from proxyprune.scoring.tools.input_moments import first_tensor, inverse_square_norms
from proxyprune.scoring.tools.layer_views import LayerView, computes_its_product, view_of

_CANDIDATES = 8
"""Layers before a removed block that are examined, the nearest first."""

_STEP = 1e-2
"""Change of an output that shows what follows it, relative to its root mean square."""

_NEAR = 0.02
"""Relative difference of two factors that count as one."""

_EXCEPTIONS = 0.02
"""Share of values that may follow otherwise: an activation turns off or on there."""

_ROUNDING = 16.0
"""Rounding errors of the compared values that count as no difference."""


NO_LAYER = "it was removed, and no layer just before it adds to its input and nothing else"
NOT_ONCE = "it was removed, and it is not called once in a run"
NO_GAIN = "it was removed, and the refit of the layers before it did not help"


@dataclass(frozen=True)
class Gap:
    """Removed blocks that hand one tensor on, with no layer between them.

    Attributes:
        blocks: Their names, in the order of the calls.
        candidates: Layers and norms that are called before them, the nearest first.
    """

    blocks: tuple[str, ...]
    candidates: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Substitute:
    """A layer or a norm whose output reaches the input of a removed block channel by channel.

    Attributes:
        name: Qualified module name.
        pruned: The layer in the pruned network.
        gap: The removed blocks.
        view: How a layer is seen as a matrix product; None for a norm, which multiplies each channel by its weight.
        factors: Change of the block's input for a change of the layer's output, [channels]; infinite where nothing follows.
        kept: Channels of the unpruned block's output that stay; None for all.
        passed_shape: Shape of the block's input in the pruned network, on the first batch.
    """

    name: str
    pruned: nn.Module = field(repr=False)
    gap: Gap = field(repr=False)
    view: LayerView | None = field(repr=False)
    factors: Tensor = field(repr=False)
    kept: tuple[int, ...] | None = field(repr=False)
    passed_shape: torch.Size = field(repr=False)

    @property
    def has_bias(self) -> bool:
        """Return True if the layer can carry an intercept."""
        return self.pruned._parameters.get("bias") is not None

    def start(self, weight: Tensor) -> Tensor:
        """Return the map from features to targets of a weight, [groups, features, targets], float64."""
        if self.view is None:
            return weight.double().reshape(-1, 1, 1)
        return self.view.matrix(self.pruned, weight).transpose(1, 2).double()

    def features(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return what the map reads in one call, [groups, positions, features]."""
        if self.view is None:
            return _by_channel(normalised(self.pruned, args, kwargs), self._dim)
        value = first_tensor((args, tuple(kwargs.values())))
        assert value is not None  # the layer was examined on the first batch
        return self.view.inputs(self.pruned, value)

    def wanted(self, yielded: Tensor) -> Tensor:
        """Return the channels that stay of what the last of the unpruned blocks yielded."""
        if self.kept is None or yielded.ndim != len(self.passed_shape):
            return yielded
        return yielded.index_select(self._dim % yielded.ndim, torch.tensor(self.kept, device=yielded.device))

    def targets(self, output: Tensor, change: Tensor) -> Tensor:
        """Return what the map should yield, [groups, positions, targets].

        Args:
            output: What the layer yields now.
            change: How the input of the removed blocks should change.
        """
        target = output + change / along(self.factors, output.ndim, self._dim)
        bias = self.pruned._parameters.get("bias")
        if bias is not None:
            target = target - along(bias.detach(), output.ndim, self._dim)
        return _by_channel(target, self._dim) if self.view is None else self.view.outputs(self.pruned, target)

    def weights(self, slope: Tensor) -> Tensor:
        """Return the weight for a solution's slope."""
        like = self.pruned.get_parameter("weight").detach()
        if self.view is None:
            return slope.reshape(like.shape).to(like.dtype)
        return self.view.weight(slope.transpose(1, 2), like).to(like.dtype)

    def shift(self, intercept: Tensor) -> Tensor:
        """Return the change of the bias for a solution's intercept."""
        return intercept.flatten() if self.view is None else self.view.bias(self.pruned, intercept)

    def total(self, errors: Tensor) -> float:
        """Return one figure for the errors of all targets, in the unit of the blocks' input."""
        finite = torch.where(self.factors.isfinite(), self.factors, 0.0).double()
        return float((errors.flatten() * finite.square()).sum())

    @property
    def _dim(self) -> int:
        return channel_dim(self.pruned, self.view)


def find_gaps(networks: Networks, data: CalibrationData) -> tuple[Gap, ...]:
    """Find the removed blocks that are called once, in the order of the calls, each with the layers since the one before it."""
    removed = {entry.module for entry in networks.surgery.removed_blocks}
    uses = Counter(id(parameter) for _, parameter in networks.pruned.named_parameters(remove_duplicate=False))
    watched = {name: module for name, module in networks.pruned.named_modules() if name in removed or _may_change(module, uses)}
    calls: list[str] = []
    handed_on: dict[str, Tensor | None] = {}

    def note(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.append(name)
            if name in removed:
                handed_on[name] = first_tensor(output)

        return hook

    with hooked((module, note(name)) for name, module in watched.items()):
        data.run(networks.pruned, 0)
    once = {name for name, count in Counter(calls).items() if count == 1}
    gaps: list[Gap] = []
    layers: list[str] = []
    for name in calls:
        if name not in removed:
            layers.append(name)
        elif name in once:
            if gaps and _same(handed_on[gaps[-1].blocks[-1]], handed_on[name]):
                gaps[-1] = Gap((*gaps[-1].blocks, name), gaps[-1].candidates)
            else:
                gaps.append(Gap((name,), tuple(each for each in reversed(layers) if each in once)[:_CANDIDATES]))
            layers = []
    return tuple(gaps)


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and first.shape == second.shape and torch.equal(first, second)


def _may_change(module: nn.Module, uses: Mapping[int, int]) -> bool:
    """Return True for a layer or a norm that holds its weight and bias alone."""
    weight = module._parameters.get("weight")
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    if weight is None or not weight.is_floating_point() or any(uses[id(parameter)] > 1 for parameter in own):
        return False
    if isinstance(module, nn.Linear) or hasattr(module, "kernel_size") or type(module).__name__ == "Conv1D":
        return True
    return weight.ndim == 1 and "norm" in type(module).__name__.lower() and own[0] is weight


def substitutes_of(networks: Networks, gap: Gap, data: CalibrationData, *, largest_features: int) -> tuple[Substitute, ...]:
    """Return the nearest layer and the nearest norm that can take the place of removed blocks, the layer first."""
    yielded = run_until(networks.dense, gap.blocks[-1], data, 0, {})
    layer = norm = None
    for name in gap.candidates:
        module = networks.pruned.get_submodule(name)
        view = view_of(module, largest_features)
        if (view is not None and not view.exact) or (view is None and (norm is not None or hasattr(module, "kernel_size"))):
            continue
        found = examined(networks, gap, name, view, data)
        if found is None or yielded is None or found.wanted(yielded).shape != found.passed_shape:
            continue
        if view is None:
            norm = found
            continue
        layer = found
        break
    return tuple(each for each in (layer, norm) if each is not None)


def examined(networks: Networks, gap: Gap, name: str, view: LayerView | None, data: CalibrationData) -> Substitute | None:
    """Return a layer as a substitute, if a change of its output moves the removed blocks' input by one factor for each channel.

    Runs the pruned network on the first batch, as it is and with a change of another sign for each channel.
    """
    module = networks.pruned.get_submodule(name)
    dim = channel_dim(module, view)
    outputs: list[Tensor] = []
    fits: list[bool] = []

    def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        fits.append(isinstance(output, Tensor) and _computes_its_map(layer, view, args, kwargs, output))
        outputs.append(output)

    passed = run_until(networks.pruned, gap.blocks[0], data, 0, {name: look})
    if passed is None or not fits or not fits[0] or outputs[0].shape != passed.shape:
        return None
    step = _STEP * float(outputs[0].double().square().mean().sqrt())
    if not (math.isfinite(step) and step > 0.0):
        return None
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (passed.shape[dim],), generator=generator) * 2.0 - 1.0
    change = along((step * signs).to(passed), passed.ndim, dim)
    moved = run_until(networks.pruned, gap.blocks[0], data, 0, {name: _adds(change)})
    factors = None if moved is None else _factors(passed, moved, change, dim)
    if factors is None:
        return None
    kept = _kept(networks, name, view, passed.shape[dim])
    return Substitute(name, module, gap, view, factors, kept, passed.shape)


def _adds(change: Tensor) -> Hook:
    return lambda module, args, kwargs, output: output + change


def _factors(passed: Tensor, moved: Tensor, change: Tensor, dim: int) -> Tensor | None:
    """Return the factor of each channel, or None if the values of a channel do not follow with one."""
    ratios = ((moved.double() - passed.double()) / change.double()).movedim(dim, 0).flatten(1)
    noise = (_ROUNDING * torch.finfo(passed.dtype).eps * passed.double().abs() / change.double().abs()).movedim(dim, 0).flatten(1)
    following = (ratios.abs() > 0.5 * ratios.abs().amax(dim=1, keepdim=True)) & (ratios.abs() > noise)
    count = following.sum(dim=1)
    factors = (ratios * following).sum(dim=1) / count.clamp_min(1)
    expected = (ratios - factors.unsqueeze(1)).abs() <= _NEAR * factors.abs().unsqueeze(1) + noise
    unmoved = ratios.abs() <= noise
    if float((expected | unmoved).double().mean()) < 1.0 - _EXCEPTIONS or int((count > 0).sum()) * 2 < len(count):
        return None
    return torch.where(count > 0, factors, math.inf).to(passed.dtype)


def _kept(networks: Networks, name: str, view: LayerView | None, channels: int) -> tuple[int, ...] | None:
    """Return the output channels of a layer that stay, or None if all do."""
    weight = networks.program.aliases.get(f"{name}.weight", f"{name}.weight")
    dim = 0 if view is None else 1 - view.input_dim
    found = next((cut.kept for cut in networks.surgery.cuts if cut.parameter == weight and cut.dim == dim), None)
    return found if found is not None and len(found) == channels else None


def _computes_its_map(module: nn.Module, view: LayerView | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> bool:
    value = first_tensor((args, tuple(kwargs.values())))
    if value is None:
        return False
    if view is not None:
        return computes_its_product(module, view, value, output)
    weight, bias, dim = module.get_parameter("weight").detach(), module._parameters.get("bias"), channel_dim(module, None)
    if output.shape[dim] != len(weight):
        return False
    product = normalised(module, args, kwargs) * along(weight, output.ndim, dim)
    product = product if bias is None else product + along(bias.detach(), output.ndim, dim)
    return torch.allclose(product, output, rtol=1e-3, atol=1e-3 * float(output.abs().max()))


def normalised(norm: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return what a norm yields with a weight of one and a bias of zero."""
    own = dict(norm._parameters)
    plain: dict[str, Any] = {
        name: value if value is None else torch.full_like(value, float(name == "weight")) for name, value in own.items()
    }
    norm._parameters.update(plain)
    try:
        with torch.no_grad():
            found: Tensor = norm.forward(*args, **kwargs)
    finally:
        norm._parameters.update(own)
    return found


def channel_dim(module: nn.Module, view: LayerView | None) -> int:
    """Return the dimension of a layer's output that runs along channels; from the end, except for batch and group norms."""
    if view is not None:
        return view.channel_dim(module)
    return 1 if isinstance(module, _BatchNorm | nn.GroupNorm) else -1


def along(values: Tensor, ndim: int, dim: int) -> Tensor:
    """Return a vector in the shape that broadcasts along one of `ndim` dimensions."""
    shape = [1] * ndim
    shape[dim] = -1
    return values.reshape(shape)


def _by_channel(value: Tensor, dim: int) -> Tensor:
    return value.movedim(dim, 0).flatten(1).unsqueeze(2)


def substitute_moments(
    networks: Networks, found: Substitute, data: CalibrationData, *, weighted: bool, advance: Callable[[int], None]
) -> tuple[Moments, Moments]:
    """Sum the moments of one substitute over all batches, from the pruned network as it is now.

    Args:
        networks: Before and after the cut.
        found: The layer.
        data: Batches.
        weighted: Weight positions of linear layers by the inverse of the squared norm of what the blocks yielded.
        advance: Called with the number of batches that are done.

    Returns:
        Moments over the batches of even index, and over those of odd index.
    """
    weight = found.pruned.get_parameter("weight").detach()
    sizes = MomentSizes(*found.start(weight).shape)
    moments = Moments(sizes, weight.device), Moments(sizes, weight.device)
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        seen.append((found.features(args, kwargs), output))

    for index in range(len(data.batches)):
        seen.clear()
        yielded = run_until(networks.dense, found.gap.blocks[-1], data, index, {})
        passed = run_until(networks.pruned, found.gap.blocks[0], data, index, {found.name: note})
        if yielded is not None and passed is not None and seen:
            wanted = found.wanted(yielded)
            features, output = seen[0]
            linear = weighted and found.view is not None and not hasattr(found.pruned, "kernel_size")
            targets = found.targets(output, wanted - passed)
            moments[index % 2].add(features, targets, inverse_square_norms(wanted) if linear else None)
        advance(index + 1)
    return moments
