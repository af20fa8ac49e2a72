"""The recorder and torch.export stand side by side: where the recorder is sure, both yield the same program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from zoo import NETWORKS, names

import proxyprune as pp
from proxyprune.coupling.options import Amendments, Options
from proxyprune.errors import TraceError
from proxyprune.graph.build import analyse
from proxyprune.tracing.dispatch import SizesFromValues
from proxyprune.tracing.export import export
from proxyprune.tracing.model_call import call_arguments
from proxyprune.tracing.program import Program
from proxyprune.tracing.record import record

LEFT_TO_EXPORT = {
    "ncsnpp_unet": "makes a tensor from a Python list in forward",
    "gpt2": "makes a tensor from a Python number in forward",
}


def rows(program: Program) -> list[Any]:
    """Every op with its arguments, results and owner; tensors by where they come from.

    Assertions, and copies that only depend on the strides of the attention kernel, are left out. Arguments that were left out count with
    their defaults, which some versions of export write down and others do not.
    """
    origin: dict[Node, str] = {}
    found: list[Any] = []

    def shown(value: Any) -> Any:
        if isinstance(value, Node):
            return origin[value]
        if isinstance(value, list | tuple):
            return [shown(item) for item in value]
        return "device" if isinstance(value, torch.device) else value

    inputs = 0
    for node in program.graph.nodes:
        if node.op == "placeholder":
            origin[node] = f"state {program.state[node.name]}" if node.name in program.state else f"input {inputs}"
            inputs += node.name not in program.state and isinstance(node.meta.get("val"), Tensor)
        elif node.op == "call_function" and "contiguous" in str(node.target):
            origin[node] = origin[node.args[0]]
        elif node.op == "call_function" and "_assert" not in str(node.target):
            origin[node] = f"op {len(found)}"
            value = node.meta["val"]
            results = [(tuple(item.shape), item.dtype) for item in (value if isinstance(value, list | tuple) else [value])]
            arguments = {name: shown(item) for name, item in arguments_of(node).items()}
            found.append((str(node.target), repr(arguments), results, program.owners[node.name]))
        elif node.op == "output":
            found.append([origin[result] for result in node.all_input_nodes])
    return found


OPEN = {"start": 0, "end": 2**63 - 1}
"""Bounds that a slice without bounds has; torch 2.8 writes either form down."""


def arguments_of(node: Node) -> dict[str, Any]:
    """Return the arguments of a call by their names in the op's schema, with the default of those that were left out.

    Whether cuDNN may be used is no argument of the program: in export it depends on the version of torch.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # operator.getitem
        return {str(place): value for place, value in enumerate(node.args)} | dict(node.kwargs)
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    given = dict(zip(defaults, node.args, strict=False)) | dict(node.kwargs)
    assert given.keys() <= defaults.keys()
    found = defaults | given
    if node.target is torch.ops.aten.slice.Tensor:
        found |= {name: bound for name, bound in OPEN.items() if found[name] is None}
    return {name: value for name, value in found.items() if name not in ("cudnn_enable", "cudnn_enabled")}


def test_an_argument_left_out_counts_with_its_default() -> None:
    """A call with its default written down equals one without, and differs from one with another value."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    softmax = torch.ops.aten.softmax.int
    plain, written, other = (graph.call_function(softmax, args) for args in ((x, 1), (x, 1, None), (x, 1, torch.float64)))
    assert arguments_of(plain) == arguments_of(written) == {"self": x, "dim": 1, "dtype": None}
    assert arguments_of(other) != arguments_of(plain)
    whole, open_end, shorter = (
        graph.call_function(torch.ops.aten.slice.Tensor, args) for args in ((x,), (x, 0, 0, 2**63 - 1), (x, 0, 0, 4))
    )
    assert arguments_of(whole) == arguments_of(open_end) != arguments_of(shorter)


@pytest.mark.parametrize("name", names())
def test_recorder_and_export_yield_the_same_program(name: str) -> None:
    """The same ops with the same arguments in the same modules, and so the same text, cost and fingerprint; or the recorder leaves it."""
    model = NETWORKS[name].build()
    args, kwargs = call_arguments(NETWORKS[name].inputs())
    recorded, exported = record(model, args, kwargs), export(model, args, kwargs)
    assert (recorded is None) == (name in LEFT_TO_EXPORT)
    if recorded is None:
        return
    assert rows(recorded) == rows(exported)
    assert recorded.repeated == exported.repeated
    for field in ("shapes", "trainable", "integers", "aliases", "classes"):
        assert getattr(recorded, field) == getattr(exported, field)
    one, other = (analyse(model, program, Options(), Amendments()) for program in (recorded, exported))
    assert one.fingerprint == other.fingerprint
    assert one.to_text() == other.to_text()
    assert one.groups == other.groups or [group.id for group in one.groups] == [group.id for group in other.groups]
    assert (one.macs, one.params) == (other.macs, other.params)


class Reads(nn.Module):
    """A linear layer and something that only export can judge."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.outside = torch.ones(4)


class ReadsValue(Reads):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


class SwallowsErrors(Reads):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.layer(x) * x.sum().item()
        except Exception:  # noqa: BLE001  the network of a user does that
            return x


class MakesTensor(Reads):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])


class KeepsTensor(Reads):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.sum()
        return self.layer(x)


class ReadsUnregistered(Reads):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.outside


class SelectsByMask(Reads):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[x > 0]


@pytest.mark.parametrize("kind", [ReadsValue, SwallowsErrors, MakesTensor, KeepsTensor, ReadsUnregistered])
def test_what_is_not_sure_is_left_to_export(kind: type[nn.Module]) -> None:
    """Values read, constants made, state changed, tensors not registered: the recorder says nothing."""
    model = kind()
    kept = dict(vars(model)), dict(model.named_buffers())
    assert record(model, (torch.ones(2, 4),), {}) is None
    assert (dict(vars(model)), dict(model.named_buffers())) == kept


class WritesNumbers(nn.Module):
    """Writes numbers into a mask, as windowed attention does, by ops that depend on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros((6, 6))
        for number, part in enumerate((slice(0, 2), slice(2, None))):
            mask[part, part] = number
        mask[0] = True
        mask[..., 1] = 0.5
        return self.last(mask @ self.first(x))


def test_numbers_written_into_a_tensor_are_recorded() -> None:
    """An ordinary call on the CPU is recorded with the ops that it runs there, so that torch.export need not look; both agree."""
    model, inputs = WritesNumbers(), torch.ones(1, 6, 8)
    recorded = record(model, (inputs,), {}, exporting=False)
    assert recorded is not None
    exported = export(model, (inputs,), {})
    of_constants = ("aten.lift_fresh_copy.default", "aten.detach_.default")
    ops, expected = (
        [(str(node.target), list(node.meta["val"].shape)) for node in program.calls if str(node.target) not in of_constants]
        for program in (recorded, exported)
    )
    assert ops == expected
    result = pp.prune(model, inputs, target=0.6)
    assert not result.graph.program.exporting
    assert result.plan.macs <= result.plan.target_macs


class SelectsBehindConstant(SelectsByMask):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.tensor([1.0, 2.0, 3.0, 4.0]))


@pytest.mark.parametrize("kind", [SelectsByMask, SelectsBehindConstant])
def test_a_size_that_values_decide_spares_the_export(kind: type[nn.Module]) -> None:
    """No trace without data follows such a size, so export is not asked, whatever came before it."""
    model = kind()
    kept = dict(vars(model)), dict(model.named_buffers())
    with pytest.raises(SizesFromValues):
        record(model, (torch.ones(2, 4),), {})
    assert (dict(vars(model)), dict(model.named_buffers())) == kept
    assert pp.trace(model, torch.ones(2, 4)).program.on_values


class AsksForDevice(nn.Module):
    """Branches on the device, moves to it and counts on it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta or x.device.type != "cpu" or not self.layer.weight.is_cpu:
            raise RuntimeError(f"not made for {x.device}")
        return self.layer(x.to("cpu")) + torch.arange(4, device=x.device) + torch.zeros(4)


def test_a_forward_sees_the_device_that_its_weights_have() -> None:
    """Recording runs on the meta device, and the model does not notice."""
    program = record(AsksForDevice(), (torch.ones(2, 4),), {})
    assert program is not None
    assert rows(program) == rows(export(AsksForDevice(), (torch.ones(2, 4),), {}))


class Shared(nn.Module):
    """One residual block, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.block(self.block(x)))


def test_modules_that_run_twice_are_named_by_both() -> None:
    """A repeated module and what is inside it are known as repeated, so that depth pruning leaves them alone."""
    args = (torch.ones(1, 4),)
    recorded, exported = record(Shared(), args, {}), export(Shared(), args, {})
    assert recorded is not None
    assert recorded.repeated == exported.repeated == {"block", "block.0", "block.1"}


def test_export_speaks_where_the_recorder_fails() -> None:
    """An error is told by export, which knows the module and the reason."""
    with pytest.raises(TraceError, match="cannot follow"):
        pp.trace(ReadsValue().to("meta"), torch.ones(2, 4))


def test_a_number_written_into_a_tensor_is_left_to_export() -> None:
    """Slice assignment of a Python number is one op in export and four for a recorder, so export has it."""

    class Writes(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            hidden = super().forward(input)
            hidden[..., :2] = 1.0
            return hidden

    assert record(Writes(4, 8), (torch.zeros(1, 4),), {}) is None
    assert record(torch.nn.Linear(4, 8), (torch.zeros(1, 4),), {}) is not None


class TwoBranches(nn.Linear):
    """A forward with a slower branch for export."""

    def forward(self, input: Tensor) -> Tensor:
        hidden = super().forward(input)
        return hidden @ torch.eye(4) @ torch.eye(4) if torch.compiler.is_exporting() else hidden.relu()


def test_the_branch_of_an_ordinary_call_is_traced() -> None:
    """Costs are those of the forward that the caller runs, not of its branch for export."""
    graph = pp.trace(TwoBranches(4, 4), torch.ones(1, 4))
    assert graph.macs == 16
    assert not graph.program.exporting


class ReadsUnlessExporting(nn.Linear):
    """A forward that reads a value, except where it is exported."""

    def forward(self, input: Tensor) -> Tensor:
        hidden = super().forward(input)
        return hidden if torch.compiler.is_exporting() or hidden.sum() > 0 else -hidden


def test_the_branch_for_export_is_traced_where_the_ordinary_one_reads_values() -> None:
    """A network with such a branch is pruned as before."""
    model = nn.Sequential(nn.Linear(4, 8), ReadsUnlessExporting(8, 8), nn.Linear(8, 4))
    result = pp.prune(model, torch.ones(1, 4), 0.6)
    assert result.graph.program.exporting
    assert result.plan.macs <= 0.6 * result.graph.macs


def test_tensors_that_code_makes_are_recorded_in_an_ordinary_call() -> None:
    """Numbers in `torch.tensor`, an empty cache and a tensor like another one that is written in parts need no export."""

    class Makes(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            hidden = super().forward(input)
            grown = torch.cat([torch.tensor([]).reshape(0, hidden.shape[1]), hidden * torch.tensor(2.0)])
            written = torch.zeros_like(grown)
            written[:, :2] = grown[:, :2]
            return written + grown

    assert record(Makes(4, 4), (torch.ones(2, 4),), {}, exporting=False) is not None


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped_mm; it came after 2.8")
def test_grouped_products_of_full_precision_are_recorded() -> None:
    """torch has a kernel for them but its rule of shapes wants half precision, which would leave them to export."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 16, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.grouped_mm(
                x, self.weight, offs=torch.ops.aten.cumsum(torch.full((2,), 3, dtype=torch.int32), 0).int()
            )

    program = record(Grouped(), (torch.ones(6, 16),), {}, exporting=False)
    assert program is not None
    assert [node.meta["val"].shape for node in program.calls][-1] == (6, 8)
