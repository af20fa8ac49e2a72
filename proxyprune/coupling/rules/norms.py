"""Normalisation: parameters follow the channels; groups must stay divisible."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from proxyprune.coupling.axes import FIXED, Axis, Divisible, LabelArray
from proxyprune.coupling.groups import STANDARDISED
from proxyprune.coupling.outcome import Axes, CommonDivisor, Outcome, Sizes
from proxyprune.coupling.rules.walk import Rule, Walk, fixed, ops, sizes_of
from proxyprune.tracing.nodes import arguments, output_shapes, position_of, tensor_argument


def batch_norm(walk: Walk, node: Node) -> Outcome:
    """batch_norm, instance_norm: weight, bias, running mean and variance [channels].

    Every channel has its own statistics, so channels can leave. Where the statistics come from the input, all that they average over stays.
    """
    values = arguments(node)
    source = tensor_argument(node, "input")
    axes = list(walk.axes(source))
    if values.get("training") or values.get("use_input_stats"):
        walk.pin((axes[0], *axes[2:]), node, STANDARDISED if walk.is_weight(source) else "is averaged over in")
    axes[1] = _with_members(walk, node, axes[1], ("weight", "bias", "running_mean", "running_var"))
    others = (fixed(shape) for shape in output_shapes(node)[1:])
    return Outcome(outputs=(tuple(axes), *others), zero=_is_zero(walk, node, tuple(axes), normalised=(1,)))


def layer_norm(walk: Walk, node: Node) -> Outcome:
    """layer_norm, rms_norm: over the last dimensions; the call holds their sizes."""
    values = arguments(node)
    source = tensor_argument(node, "input")
    axes = list(walk.axes(source))
    count = len(values["normalized_shape"])
    for member in _members(node, ("weight", "bias")):
        for offset in range(1, count + 1):
            axes[-offset] = walk.labels.unify([axes[-offset], walk.axes(member)[-offset]], walk.where(node))
    normalised = tuple(range(len(axes) - count, len(axes)))
    sizes: Sizes = {position_of(node, "normalized_shape"): sizes_of(walk.shape(source)[-count:], tuple(axes[-count:]))}
    return Outcome(outputs=(tuple(axes),), sizes=sizes, zero=_is_zero(walk, node, tuple(axes), normalised))


def group_norm(walk: Walk, node: Node) -> Outcome:
    """group_norm(x, groups, weight, bias): dimension 1 in equal runs.

    Over a concatenation the runs straddle its segments, so what is required is that the sum stays divisible.
    """
    groups = int(arguments(node)["num_groups"])
    axes: list[Axis] = list(walk.axes(tensor_argument(node, "input")))
    walk.pin(axes[2:], node, "is averaged over in")
    axes[1] = channels = _with_members(walk, node, axes[1], ("weight", "bias"))
    sizes = _shrink_groups(walk, node, channels, groups) if channels is not None and groups > 1 else {}
    return Outcome(outputs=(tuple(axes),), sizes=sizes, zero=_is_zero(walk, node, tuple(axes), normalised=(1,)))


def _shrink_groups(walk: Walk, node: Node, channels: LabelArray, groups: int) -> Sizes:
    if len(channels) == groups:  # every channel has its own statistics, as in an instance norm, and leaves alone
        return {position_of(node, "num_groups"): channels}
    one_run = bool((channels != FIXED).all() and (np.diff(channels) == 1).all())  # not a concatenation
    if walk.options.norm_groups == "whole" and one_run:
        return {position_of(node, "num_groups"): walk.labels.tie_within_runs(channels, groups, walk.where(node))}
    walk.labels.divisible.append(Divisible(channels, groups))
    if walk.options.norm_groups == "reduced":
        return {position_of(node, "num_groups"): CommonDivisor(groups, channels)}
    return {}


def _members(node: Node, names: tuple[str, ...]) -> list[Node]:
    values = arguments(node)
    return [values[name] for name in names if isinstance(values.get(name), Node)]


def _with_members(walk: Walk, node: Node, channels: Axis, names: tuple[str, ...]) -> Axis:
    """Return the channel axis, after it met the parameters and buffers that have one entry a channel."""
    return walk.labels.unify([channels, *(walk.axes(member)[0] for member in _members(node, names))], walk.where(node))


def _is_zero(walk: Walk, node: Node, axes: Axes, normalised: tuple[int, ...]) -> bool:
    """Zero where the affine part is; a dropped position of any other dimension would still get the bias."""
    members = _members(node, ("weight", "bias"))
    others = [axis for dim, axis in enumerate(axes) if dim not in normalised]
    return bool(members) and all(walk.zero(member) for member in members) and not walk.open(others)


def weight_norm(walk: Walk, node: Node) -> Outcome:
    """_weight_norm(v, g, dim): g * v / |v|, the norm over all dimensions but `dim`.

    The norm shrinks when entries of v leave, and kept weights would grow. Where v and g are parameters, the cut scales g by the share of
    the norm that stays, so kept weights keep their values; elsewhere the dimensions that are summed over are pinned.
    """
    direction, length = tensor_argument(node, 0), tensor_argument(node, 1)
    axes = list(walk.axes(direction))
    dim = int(arguments(node)["dim"])  # -1 stands for a norm over everything
    if dim >= 0:
        axes[dim] = walk.labels.unify([axes[dim], walk.axes(length)[dim]], walk.where(node))
    own = [walk.program.state.get(tensor.name) in walk.program.trainable for tensor in (direction, length)]
    if not (all(own) and walk.zero(direction)):
        walk.pin([*axes[: max(dim, 0)], *axes[dim + 1 :]], node, "is normalised over, with dropped channels counted, in")
    return Outcome(outputs=(tuple(axes),), zero=walk.zero(direction))


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops("batch_norm instance_norm _native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(ops("layer_norm rms_norm"), layer_norm),
    "aten.group_norm": group_norm,
    "aten._weight_norm": weight_norm,
}
