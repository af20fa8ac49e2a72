"""Importance of the atoms of a channel group, taken over every parameter slice that would leave with them.

A channel is more than a row of one kernel: with it go its bias, its norm weights, and the columns of every layer that reads it. Each
parameter is reduced once for each dimension that some group cuts; groups then gather from these short vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxyprune.coupling.groups import ChannelGroup, Member
from proxyprune.errors import InputError, WeightsError
from proxyprune.scoring.tools.weights import is_fake

FloatArray = NDArray[np.float64]

_CHUNK = 1 << 20
"""Elements that are transformed at a time: few enough to stay in a cache, and small beside a language model's embedding."""


@dataclass(frozen=True)
class Statistic:
    """The reduction of the elements of an atom's slices to one number.

    Attributes:
        element: Elementwise map; writes into its second argument, which is of the same shape.
        member: Combine the sums over one member's positions, [atoms, positions], given the channels of an atom; returns [atoms].
        total: Applied to the sum over members, [atoms].
    """

    element: Callable[[Tensor, Tensor], Tensor]
    member: Callable[[FloatArray, int], FloatArray]
    total: Callable[[FloatArray], FloatArray]


def _same(values: FloatArray) -> FloatArray:
    return values


def _summed(values: FloatArray, channels: int) -> FloatArray:
    return np.asarray(values.sum(axis=1), dtype=np.float64)


def _net(values: FloatArray, channels: int) -> FloatArray:
    return np.abs(_summed(values, channels))


def _net_by_channel(values: FloatArray, channels: int) -> FloatArray:
    return _net(values, channels) if channels == 1 else _summed(np.abs(values), channels)


STATISTICS: Mapping[str, Statistic] = {
    "l1": Statistic(lambda values, out: torch.abs(values, out=out), _summed, _same),
    "l2": Statistic(lambda values, out: torch.mul(values, values, out=out), _summed, np.sqrt),
    "net": Statistic(lambda values, out: values, _net, _same),
    "channels": Statistic(lambda values, out: values, _net_by_channel, _same),
}
"""l1: sum of |v|. l2: root of the sum of squares. net: |sum of v| in each member, added up over the members (v = weight * gradient).
channels: as net, with each channel of an atom (a row of a head) apart, so that the channels of a large atom do not cancel."""


@dataclass(frozen=True)
class _Cut:
    """A parameter and the dimensions of it that are cut."""

    parameter: str
    dims: tuple[int, ...]


def group_importance(state: Mapping[str, Tensor], groups: Iterable[ChannelGroup], statistic: str = "l2") -> dict[str, FloatArray]:
    """Return the importance of every atom of every group, over all coupled members together.

    Args:
        state: Values by parameter name: weights, or weight * gradient. Members that are not in it (buffers, unused parameters) and members
            that hold integers count nothing.
        groups: Channel groups of the graph of the same model.
        statistic: A key of `STATISTICS`.

    Returns:
        Group id -> one number >= 0 for each atom, float64; larger means keep. Unit: that of the values. A group without any member in
        `state` gets zeros.

    Raises:
        InputError: If the statistic is unknown.
        WeightsError: If a tensor has no values, or has another shape than the one that was traced.
    """
    if statistic not in STATISTICS:
        raise InputError(f"Expected statistic to be one of {', '.join(STATISTICS)}; found {statistic!r}.")
    rule = STATISTICS[statistic]
    groups = tuple(groups)
    cut = [(group, member) for group in groups for member in group.members if _counts(state, member)]
    for group, member in cut:
        _check_shape(state[member.parameter], group, member)
    sums = _sums_along(state, _cuts(member for _, member in cut), rule)
    totals = {group.id: np.zeros(group.atoms, dtype=np.float64) for group in groups}
    for group, member in cut:
        values = sums[member.parameter, member.dim]
        totals[group.id] += rule.member(values[member.positions], group.atom_channels)
    return {group: rule.total(values) for group, values in totals.items()}


def _counts(state: Mapping[str, Tensor], member: Member) -> bool:
    tensor = state.get(member.parameter)
    return tensor is not None and tensor.numel() > 0 and (tensor.is_floating_point() or tensor.is_complex())


def _check_shape(tensor: Tensor, group: ChannelGroup, member: Member) -> None:
    if is_fake(tensor):
        raise WeightsError(f"Parameter '{member.parameter}' {tuple(tensor.shape)} has no values. Load the weights before scoring channels.")
    size = tensor.shape[member.dim] if member.dim < tensor.ndim else 0
    last = int(member.positions.max(initial=-1))
    if last >= size:
        raise WeightsError(
            f"Parameter '{member.parameter}' has shape {tuple(tensor.shape)}, but group '{group.id}' cuts dimension {member.dim} of it "
            f"up to index {last}. The graph belongs to another model; trace this one."
        )


def _cuts(members: Iterable[Member]) -> Iterator[_Cut]:
    dims: dict[str, set[int]] = {}
    for member in members:
        dims.setdefault(member.parameter, set()).add(member.dim)
    return (_Cut(parameter, tuple(sorted(found))) for parameter, found in dims.items())


def _sums_along(state: Mapping[str, Tensor], cuts: Iterator[_Cut], rule: Statistic) -> dict[tuple[str, int], FloatArray]:
    """(parameter, dim) -> sum of the transformed values at each index of that dimension.

    The work stays on the tensors' device; all results of one device come over in a single copy.
    """
    found: dict[torch.device, list[tuple[tuple[str, int], Tensor]]] = {}
    workspaces: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    with torch.no_grad():
        for cut in cuts:
            tensor = state[cut.parameter].detach()
            tensor = tensor.abs() if tensor.is_complex() else tensor
            for dim, sums in _sums(tensor, cut, rule, workspaces):
                found.setdefault(tensor.device, []).append(((cut.parameter, dim), sums))
        result: dict[tuple[str, int], FloatArray] = {}
        for pairs in found.values():
            flat = torch.cat([sums for _, sums in pairs]).cpu().double().numpy()
            start = 0
            for key, sums in pairs:
                result[key] = flat[start : start + sums.numel()]
                start += sums.numel()
    return result


def _sums(
    tensor: Tensor, cut: _Cut, rule: Statistic, workspaces: dict[tuple[torch.device, torch.dtype], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Reduce one parameter along each of the dims of a cut, reading it once.

    Seen as [rows, rest], the sum over rest belongs to dimension 0 and the sum over rows leads to all others.
    """
    view = tensor.reshape(tensor.shape[0], -1)
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    by_row: list[Tensor] = []
    by_rest = torch.zeros(view.shape[1], dtype=dtype, device=tensor.device)
    for part in torch.split(view, max(1, _CHUNK // view.shape[1])):
        values = _transformed(part, dtype, rule, workspaces)
        if 0 in cut.dims:
            by_row.append(values.sum(dim=1))
        if cut.dims != (0,):
            by_rest += values.sum(dim=0)
    for dim in cut.dims:
        if dim == 0:
            yield dim, torch.cat(by_row)
        else:
            yield dim, by_rest.reshape(tensor.shape[1:]).movedim(dim - 1, 0).flatten(1).sum(dim=1) if tensor.ndim > 2 else by_rest


def _transformed(part: Tensor, dtype: torch.dtype, rule: Statistic, workspaces: dict[tuple[torch.device, torch.dtype], Tensor]) -> Tensor:
    """Apply the elementwise map in a reused buffer, in at least single precision."""
    key = (part.device, dtype)
    if key not in workspaces or workspaces[key].numel() < part.numel():
        workspaces[key] = torch.empty(part.numel(), dtype=dtype, device=part.device)
    buffer = workspaces[key][: part.numel()].view(part.shape)
    if part.dtype == dtype:
        return rule.element(part, buffer)
    return rule.element(buffer.copy_(part), buffer)
