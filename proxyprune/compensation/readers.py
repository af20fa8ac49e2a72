"""The layers of a pruned network that read a cut group, and what is known of each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from proxyprune.compensation.moments import MomentSizes
from proxyprune.scoring.tools.layer_views import LayerView, view_of
from proxyprune.surgery.surgery import Cut, Surgery
from proxyprune.tracing.names import is_inside
from proxyprune.tracing.nodes import op_name
from proxyprune.tracing.program import Program

_PRODUCTS = (
    {
        "aten.linear": (1, 1),
        "aten.addmm": (2, 0),
        "aten.mm": (1, 0),
        "aten.bmm": (1, 1),
        "aten.matmul": (1, 0),
        "aten.convolution": (1, 1),
        "aten._grouped_mm": (1, 1),
    }
    | {f"aten.conv{n}d": (1, 1) for n in "123"}
    | {f"aten.conv_transpose{n}d": (1, 0) for n in "123"}
)
"""Op -> position of the weight among its arguments, and the weight's dimension that is summed over."""


@dataclass(frozen=True)
class Reader:
    """A layer whose input lost features, in both networks.

    Attributes:
        name: Qualified module name.
        dense: The layer in the unpruned network.
        pruned: The layer in the pruned network.
        view: How both are seen as matrix products.
        kept_outputs: Output channels of the dense layer that stay; None for all.
        kept_inputs: Indices along the weight's input dimension that stay; None for all.
    """

    name: str
    dense: nn.Module = field(repr=False)
    pruned: nn.Module = field(repr=False)
    view: LayerView = field(repr=False)
    kept_outputs: tuple[int, ...] | None = field(default=None, repr=False)
    kept_inputs: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def has_bias(self) -> bool:
        """Return True if the layer can carry an intercept."""
        return isinstance(getattr(self.pruned, "bias", None), nn.Parameter)

    def start(self, weight: Tensor) -> Tensor:
        """Return the map from features to targets of a weight of the pruned layer, [groups, features, targets], float64.

        For a view by channel it is that of the layer as cut, whatever the weight.
        """
        if self.view.exact:
            return self.view.matrix(self.pruned, weight).transpose(1, 2).double()
        features, targets = self._channels(self.pruned), self._channels(self.dense)
        start = torch.zeros(_groups(self.pruned), features, targets, dtype=torch.float64, device=weight.device)
        for group in range(start.shape[0]):
            start[group, torch.arange(features), torch.tensor(self._kept_in_group(group, targets))] = 1.0
        return start

    def target(self, value: Tensor, output: Tensor) -> Tensor:
        """Return what the regression should yield, [groups, positions, targets], from one call of the dense layer.

        An exact view estimates the dense output without the bias; a view by channel estimates the dense input.
        """
        if not self.view.exact:
            return self.view.inputs(self.dense, value)
        kept, dim = output, self.view.channel_dim(self.dense)
        bias = getattr(self.dense, "bias", None)
        if bias is not None:
            kept = kept - bias.detach().reshape(-1, *[1] * (-dim - 1))
        if self.kept_outputs is not None:
            kept = kept.index_select(dim, torch.tensor(self.kept_outputs, device=kept.device))
        return self.view.outputs(self.pruned, kept)

    def dense_features(self, value: Tensor) -> Tensor:
        """Return the features that the pruned layer would read if nothing else were cut, [groups, positions, features].

        Args:
            value: What the dense layer was called with.
        """
        if self.kept_inputs is None:
            return self.view.inputs(self.pruned, value)
        dim, kept = self.view.channel_dim(self.dense), torch.tensor(self.kept_inputs, device=value.device)
        if self.view.input_dim == 1 and _groups(self.dense) > 1:  # the weight has the channels of one group, which all groups share
            size = self._channels(self.dense)
            first = [group * size for group in self._groups_left()]
            kept = torch.cat([kept + start for start in first])
        return self.view.inputs(self.pruned, value.index_select(dim, kept))

    def weights(self, slope: Tensor) -> Tensor:
        """Return the weight of the pruned layer for a solution's slope."""
        like = self._weight(self.pruned)
        if self.view.exact:
            return self.view.weight(slope.transpose(1, 2), like).to(like.dtype)
        rows = self.view.matrix(self.pruned, self._dense_rows()).double()
        return self.view.weight(rows @ slope.transpose(1, 2), like).to(like.dtype)

    def shift(self, intercept: Tensor) -> Tensor:
        """Return the change of the bias for a solution's intercept."""
        rows = intercept
        if not self.view.exact:
            matrix = self.view.matrix(self.pruned, self._dense_rows()).double()
            rows = (matrix @ intercept.unsqueeze(2)).squeeze(2)
        return self.view.bias(self.pruned, rows)

    def total(self, errors: Tensor) -> float:
        """Return one figure for the errors of all targets; those of a view by channel count by the weights that read the channel."""
        if self.view.exact:
            return float(errors.sum())
        rows = self.view.matrix(self.pruned, self._dense_rows()).double()
        return float((errors * rows.square().sum(dim=1)).sum())

    def sizes(self) -> MomentSizes:
        """Return the sizes of this layer's moments."""
        start = self.start(self._weight(self.pruned))
        return MomentSizes(*start.shape)

    def _weight(self, module: nn.Module) -> Tensor:
        layer: Any = module
        weight: Tensor = layer.weight
        return weight.detach()

    def _channels(self, module: nn.Module) -> int:
        """Input channels of one group."""
        size = self._weight(module).shape[self.view.input_dim]
        return size if self.view.input_dim == 1 else size // _groups(module)

    def _groups_left(self) -> list[int]:
        """Return groups of the dense layer that stay; a plain convolution's group leaves with all its outputs."""
        count = _groups(self.dense)
        if self.kept_outputs is None:
            return list(range(count))
        size = self._weight(self.dense).shape[0] // count
        return sorted({channel // size for channel in self.kept_outputs})

    def _kept_in_group(self, group: int, size: int) -> list[int]:
        if self.kept_inputs is None:
            return list(range(size))
        if self.view.input_dim == 1:  # a plain convolution's weight has the channels of one group, which all groups share
            return list(self.kept_inputs)
        return [index - group * size for index in self.kept_inputs if group * size <= index < (group + 1) * size]

    def _dense_rows(self) -> Tensor:
        """Return the dense weight, with the outputs that stay and all inputs."""
        weight = self._weight(self.dense)
        if self.kept_outputs is None:
            return weight
        return weight.index_select(1 - self.view.input_dim, torch.tensor(self.kept_outputs, device=weight.device))


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups", 1))


@dataclass(frozen=True)
class Networks:
    """A network before and after a cut.

    Attributes:
        dense: The unpruned network; nothing changes it.
        pruned: The network after the surgery.
        surgery: What was cut.
        program: Of the unpruned network.
    """

    dense: nn.Module = field(repr=False)
    pruned: nn.Module = field(repr=False)
    surgery: Surgery = field(repr=False)
    program: Program = field(repr=False)


@dataclass(frozen=True)
class FoundReaders:
    """Readers of cut groups.

    Attributes:
        readers: Layers that can be refitted, in the order of the modules.
        skipped: Parameter or layer that reads a cut group -> why it cannot be refitted.
    """

    readers: tuple[Reader, ...]
    skipped: Mapping[str, str]


def find_readers(networks: Networks, *, largest_features: int) -> FoundReaders:
    """Find the layers that read a cut group.

    Args:
        networks: Before and after the cut.
        largest_features: As for `view_of`.
    """
    pruned, surgery, program = networks.pruned, networks.surgery, networks.program
    cuts: dict[str, dict[int, Cut]] = {}
    for cut in surgery.cuts:
        cuts.setdefault(cut.parameter, {})[cut.dim] = cut
    names = Counter(id(parameter) for _, parameter in pruned.named_parameters(remove_duplicate=False))
    modules = dict(networks.dense.named_modules())
    readers: list[Reader] = []
    skipped: dict[str, str] = {}
    seen: set[str] = set()
    for name, module in pruned.named_modules():
        view = view_of(module, largest_features)
        weight = f"{name}.weight" if name else "weight"
        weight = program.aliases.get(weight, weight)
        own = cuts.get(weight, {})
        if view is None or view.input_dim not in own:
            continue
        seen.add(weight)
        outputs = own.get(1 - view.input_dim)
        reader = Reader(name, modules[name], module, view, None if outputs is None else outputs.kept, own[view.input_dim].kept)
        why = _unfit(reader, names)
        if why is None:
            readers.append(reader)
        else:
            skipped[name] = why
    for parameter, dim in _read_dims(program).items():
        removed = any(is_inside(parameter, entry.module) for entry in surgery.removed_blocks)
        if dim in cuts.get(parameter, {}) and parameter not in seen and not removed:
            skipped[parameter] = "no layer of a known class holds it (its forward uses the parameter directly)"
    return FoundReaders(tuple(readers), skipped)


def _read_dims(program: Program) -> dict[str, int]:
    """Parameter that a product op reads as its weight -> the dimension that is summed over."""
    found: dict[str, int] = {}
    for each in program.programs:
        for node in each.calls:
            position, dim = _PRODUCTS.get(op_name(node), (0, 0))
            source = node.args[position] if position and len(node.args) > position else None
            if isinstance(source, Node) and source.name in each.state:
                found[each.state[source.name]] = dim
    return found


def _unfit(reader: Reader, names: Mapping[int, int]) -> str | None:
    """Say why a layer cannot be refitted; None if it can."""
    weight = reader.pruned._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters"
    if names[id(weight)] > 1:
        return "its weight is shared with another layer"
    if not weight.is_floating_point():
        return f"its weight has the type {str(weight.dtype).removeprefix('torch.')}"
    bias = reader.pruned._parameters.get("bias")
    if bias is not None and names[id(bias)] > 1:
        return "its bias is shared with another layer"
    if not reader.view.exact:
        if _groups(reader.pruned) != _groups(reader.dense):
            return "whole groups of the convolution left"
        size = reader._channels(reader.dense)
        if len({len(reader._kept_in_group(group, size)) for group in range(_groups(reader.dense))}) > 1:
            return "its groups keep different numbers of channels"
    return None
