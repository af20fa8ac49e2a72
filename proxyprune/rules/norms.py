"""Normalisation: parameters follow the channels; groups must stay divisible."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from proxyprune.axes import FIXED, Axis, Divisible
from proxyprune.rules.base import Axes, Outcome, Rule, Size, Walk, arguments, output_shapes, position_of, sizes_of


def batch_norm(walk: Walk, node: Node) -> Outcome:
    """batch_norm, instance_norm: weight, bias, running mean and variance [channels]."""
    values = arguments(node)
    source = values["input"]
    axes = list(walk.axes(source))
    names = ("weight", "bias", "running_mean", "running_var")
    members = [values[name] for name in names if isinstance(values.get(name), Node)]
    axes[1] = walk.labels.unify([axes[1], *(walk.axes(member)[0] for member in members)], walk.where(node))
    zero = isinstance(values.get("weight"), Node) and walk.zeros.get(values["weight"], False)
    return Outcome(outputs=(tuple(axes),) + ((None,),) * (len(output_shapes(node)) - 1), zero=zero)


def layer_norm(walk: Walk, node: Node) -> Outcome:
    """layer_norm, rms_norm: over the last dimensions; the call holds their sizes."""
    values = arguments(node)
    source, normalised = values["input"], values["normalized_shape"]
    axes = list(walk.axes(source))
    count = len(normalised)
    for name in ("weight", "bias"):
        member = values.get(name)
        if isinstance(member, Node):
            for position in range(1, count + 1):
                axes[-position] = walk.labels.unify([axes[-position], walk.axes(member)[-position]], walk.where(node))
    shape = walk.shape(source)
    zero = isinstance(values.get("weight"), Node) and walk.zeros.get(values["weight"], False)
    return Outcome(
        outputs=(tuple(axes),),
        sizes={position_of(node, "normalized_shape"): sizes_of(shape[-count:], tuple(axes[-count:]))},
        zero=zero,
    )


def group_norm(walk: Walk, node: Node) -> Outcome:
    """group_norm(x, groups, weight, bias): dimension 1 in equal runs.

    Over a concatenation the runs straddle its segments, so what is required is that the sum stays divisible.
    """
    values = arguments(node)
    source, groups = values["input"], int(values["num_groups"])
    where = walk.where(node)
    axes: list[Axis] = list(walk.axes(source))
    members = [values[name] for name in ("weight", "bias") if isinstance(values.get(name), Node)]
    channels = walk.labels.unify([axes[1], *(walk.axes(member)[0] for member in members)], where)
    axes[1] = channels
    sizes: dict[int | str, Size | tuple[Size, ...]] = {}
    if channels is not None and groups > 1:
        sizes = _shrink_groups(walk, node, channels, groups)
    zero = isinstance(values.get("weight"), Node) and walk.zeros.get(values["weight"], False)
    result: Axes = tuple(axes)
    return Outcome(outputs=(result,), sizes=sizes, zero=zero)


def _shrink_groups(walk: Walk, node: Node, channels: Axis, groups: int) -> dict[int | str, Size | tuple[Size, ...]]:
    assert channels is not None
    if walk.options.norm_groups == "whole":
        runs = channels.reshape(groups, -1)
        if (runs != FIXED).all() and (np.diff(runs.reshape(-1)) == 1).all():  # a group over one run of channels, no concatenation
            return {position_of(node, "num_groups"): walk.labels.tie_within_runs(channels, groups, walk.where(node))}
    walk.labels.divisible.append(Divisible(channels, groups, balanced=True))
    return {}


RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten.batch_norm", "aten.instance_norm", "aten._native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(("aten.layer_norm", "aten.rms_norm"), layer_norm),
    "aten.group_norm": group_norm,
}
