"""From a captured program to the `ModelGraph` that every later stage reads: couple, price, cut into blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import Node

from proxyprune.coupling.axes import Axis
from proxyprune.coupling.couple import Coupler, couple
from proxyprune.coupling.coupling import Coupling
from proxyprune.coupling.groups import ChannelGroup
from proxyprune.coupling.options import Amendments, Options
from proxyprune.coupling.rules.register import registered_rules
from proxyprune.errors import RuleError
from proxyprune.graph.cost import CostModel
from proxyprune.graph.find_blocks import BlockFinder, Span, kind_of
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.polynomial import Polynomial
from proxyprune.graph.read_block import read_block
from proxyprune.graph.structure import Block
from proxyprune.standard.blueprint import find_blueprint
from proxyprune.tracing.capture import capture_all
from proxyprune.tracing.model_call import Call, ExampleInputs
from proxyprune.tracing.nodes import op_name
from proxyprune.tracing.program import Program

_LAYERS = frozenset(
    {"aten.linear", "aten.addmm", "aten.convolution"} | {f"aten.conv{kind}{n}d" for kind in ("", "_transpose") for n in "123"}
)


_ON_VALUES = (
    "Branches and sizes of this forward depend on values: MACs are those of one run on the example inputs, "
    "and other inputs, or other weights, may take another number."
)


def analyse(model: nn.Module, program: Program, options: Options, amendments: Amendments) -> ModelGraph:
    """Couple, price and cut into blocks; `amendments` are what probing found out."""
    coupler = Coupler(program, options)
    return _with_blocks(model, coupler, amendments, coupler.couple(model, amendments))


def regrouped(model: nn.Module, graph: ModelGraph, amendments: Amendments) -> ModelGraph:
    """Return a graph with other amendments: new channel groups, but blocks and cost of the old ones, which `completed` replaces."""
    coupling = graph.coupler.couple(model, amendments)
    return replace(graph, groups=coupling.groups, coupling=coupling, amendments=amendments)


def completed(model: nn.Module, graph: ModelGraph) -> ModelGraph:
    """Return a graph that `regrouped` returned, with blocks and cost that fit its groups."""
    return _with_blocks(model, graph.coupler, graph.amendments, graph.coupling)


def _with_blocks(model: nn.Module, coupler: Coupler, amendments: Amendments, coupling: Coupling) -> ModelGraph:
    """Find blocks and cost for a coupling."""
    program, options = coupler.program, coupler.options
    finder = BlockFinder(program, model)
    others = [BlockFinder(call.program, model) for call in program.further]
    for name in list(finder.residual_paths):
        if any(name not in other.residual_paths and other.span(name).nodes for other in others):
            del finder.residual_paths[name]  # another call cannot do without it
    names = finder.block_names
    cost = _cost_model(program, coupling, names)
    groups = tuple(replace(group, blocks=_blocks_of_group(group, names)) for group in coupling.groups)
    first_reading = _blocks(program, coupling, finder, names, groups, cost)
    return ModelGraph(
        model_class=type(model).__name__,
        blocks=_read_again(first_reading, finder, coupling),
        first_reading=first_reading,
        groups=groups,
        unsupported_ops=coupling.unsupported_ops,
        uncosted_ops=coupling.uncosted_ops,
        macs=cost.base_macs,
        params=cost.base_params,
        parameter_shapes=program.shapes,
        unreached=program.unreached,
        notes=(_ON_VALUES,) if program.on_values else (),
        cost=cost,
        program=program,
        coupling=coupling,
        coupler=coupler,
        options=options,
        amendments=amendments,
        registered_ops=coupling.registered_ops,
        residual_paths={name: paths for name, paths in finder.residual_paths.items() if name in names},
        further_residual_paths=tuple(
            {name: other.residual_paths[name] for name in names if name in other.residual_paths} for other in others
        ),
        blueprint=find_blueprint(model),
    )


def cost_of_run(pruned: nn.Module, program: Program, graph: ModelGraph) -> CostModel:
    """Return the cost of a pruned network's own program, by the blocks of the unpruned graph.

    Sizes that values decide are those of the pruned network's run; they may differ from those of the unpruned network.
    """
    names = tuple(block.id for block in graph.blocks)
    return _cost_model(program, couple(program, graph.options, pruned, Amendments()), names)


def calls_of(graph: ModelGraph, example_inputs: ExampleInputs) -> Iterator[tuple[ModelGraph, Call]]:
    """Yield the graph for each example call: the same groups, over the program of that call."""
    yield graph, example_inputs
    calls = zip(graph.program.further, graph.coupling.further, graph.further_residual_paths, strict=True)
    for call, outcomes, paths in calls:
        coupling = replace(graph.coupling, outcomes=outcomes, further=())
        yield replace(graph, program=call.program, coupling=coupling, residual_paths=paths, further_residual_paths=()), call.inputs


def _enclosing(name: str, blocks: frozenset[str]) -> str:
    """Return the block that a module, parameter or op owner lies in; "" when none."""
    while name:
        if name in blocks:
            return name
        name = name.rpartition(".")[0]
    return ""


def _blocks_of_group(group: ChannelGroup, names: tuple[str, ...]) -> tuple[str, ...]:
    known = frozenset(names)
    owners = {_enclosing(member.parameter, known) for member in group.members}
    return tuple(name for name in names if name in owners)


def _cost_model(program: Program, coupling: Coupling, names: tuple[str, ...]) -> CostModel:
    blocks = frozenset(names)
    prunable = [group for group in coupling.groups if group.pinned is None]
    forms: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {}

    def form(axis: Axis) -> tuple[int, tuple[tuple[int, int], ...]]:
        assert axis is not None
        if id(axis) not in forms:
            constant, coefficients = coupling.count(axis)
            forms[id(axis)] = (constant, tuple(sorted(coefficients.items())))
        return forms[id(axis)]

    mac_terms, weight_terms = [], []
    for node, outcome in coupling.outcomes.items():
        for term in outcome.macs:
            mac_terms.append((term.constant, tuple(form(axis) for axis in term.axes), _enclosing(program.owners[node.name], blocks)))
            if op_name(node) in _LAYERS:
                weight_terms.append(mac_terms[-1])
    param_terms = []
    for name in program.shapes:
        if name in program.trainable:
            axes = coupling.parameter_axes[name]
            constant = int(np.prod([size for size, axis in zip(program.shapes[name], axes, strict=True) if axis is None], dtype=np.int64))
            param_terms.append((constant, tuple(form(axis) for axis in axes if axis is not None), _enclosing(name, blocks)))
    full = np.array([group.atoms for group in prunable], np.int64)
    macs, params, weights = (Polynomial.build(terms, len(prunable)) for terms in (mac_terms, param_terms, weight_terms))
    return CostModel(
        groups=tuple(group.id for group in prunable),
        full=full,
        mac_terms=macs,
        param_terms=params,
        weight_terms=weights,
        base_macs=int(macs.terms(full).sum()),
        base_params=int(params.terms(full).sum()),
    )


def _blocks(
    program: Program, coupling: Coupling, finder: BlockFinder, names: tuple[str, ...], groups: tuple[ChannelGroup, ...], cost: CostModel
) -> tuple[Block, ...]:
    macs, params = cost.block_macs(cost.full), cost.block_params(cost.full)
    readers = _inputs(program, names)
    by_block: dict[str, list[ChannelGroup]] = {name: [] for name in names}
    for group in groups:
        if group.pinned is None:
            for name in group.blocks:
                by_block[name].append(group)
    blocks = []
    for index, name in enumerate(names):
        span = finder.span(name)
        own = by_block[name]
        resolution, width_in, width_out = _extent(span, coupling)
        blocks.append(
            Block(
                id=name,
                kind=kind_of(finder, name, first=index == 0, last=index == len(names) - 1),
                macs=macs.get(name, 0),
                params=params.get(name, 0),
                resolution=resolution,
                widths=(width_in, width_out),
                inner=tuple(group.id for group in own if group.blocks == (name,)),
                groups=tuple(group.id for group in own),
                inputs=readers[name],
                removable=name in finder.residual_paths,
                class_name=program.classes[name],
            )
        )
    return tuple(blocks)


def _read_again(blocks: tuple[Block, ...], finder: BlockFinder, coupling: Coupling) -> tuple[Block, ...]:
    """Return the blocks with kind, size and heads as `read_block` reads them."""
    found = []
    for index, block in enumerate(blocks):
        seen = read_block(finder, coupling, block.id, first=index == 0, last=index == len(blocks) - 1)
        found.append(replace(block, kind=seen.kind, resolution=seen.resolution, widths=seen.widths, heads=seen.heads))
    return tuple(found)


def _extent(span: Span, coupling: Coupling) -> tuple[tuple[int, ...], int | None, int | None]:
    """Output resolution, input channels and output channels of a block."""
    result = next((node for node in reversed(span.results) if isinstance(node.meta.get("val"), Tensor)), span.nodes[-1])
    value = result.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() < 2:
        return (), None, None
    channel = _channel_dim(result, coupling)
    shape = [int(size) for size in value.shape]
    resolution = tuple(size for dim, size in enumerate(shape) if dim not in (0, channel))
    source = next((node for node in span.sources if node.meta["val"].dim() == value.dim()), None)
    width_in = int(source.meta["val"].shape[_channel_dim(source, coupling)]) if source is not None else None
    return resolution, width_in, shape[channel]


def _channel_dim(node: Node, coupling: Coupling) -> int:
    """Return the dimension with labels; without any, images carry channels in dimension 1, sequences and vectors in the last one."""
    value = node.meta["val"]
    outcome = coupling.outcomes.get(node)
    labelled = [dim for dim, axis in enumerate(outcome.outputs[0]) if dim and axis is not None] if outcome is not None else []
    return labelled[0] if labelled else (1 if value.dim() >= 4 else value.dim() - 1)


def _inputs(program: Program, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """For every block, the blocks (or "input") whose results reach it without passing another block."""
    blocks = frozenset(names)
    origin: dict[Node, tuple[str, ...]] = {}
    readers: dict[str, dict[str, None]] = {name: {} for name in names}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            origin[node] = () if node.name in program.state or not isinstance(node.meta.get("val"), Tensor) else ("input",)
            continue
        if node.op != "call_function":
            origin[node] = ()
            continue
        block = _enclosing(program.owners[node.name], blocks)
        reached = dict.fromkeys(source for argument in node.all_input_nodes for source in origin[argument])
        if block:
            readers[block].update({name: None for name in reached if name != block})
            origin[node] = (block,)
        else:
            origin[node] = tuple(reached)
    return {name: tuple(found) for name, found in readers.items()}


def trace_like(model: nn.Module, example_inputs: ExampleInputs, options: Mapping[str, Any], also: Sequence[Call] = ()) -> ModelGraph:
    """Trace a model with the options that a plan was made with.

    Raises:
        RuleError: If the plan was made with a registered rule that is not registered now.
    """
    rules = registered_rules()
    missing = [op for op in options.get("registered_rules", ()) if op not in rules]
    if missing:
        raise RuleError(
            f"The plan was made with registered rules for {', '.join(missing)}, which are not registered in this process. "
            "Call proxyprune.register_rule for them first, as where the plan was made."
        )
    groups = {name: options.get(name, "balanced") for name in ("norm_groups", "conv_groups")}
    chosen = Options(**groups, rules=rules, adapter_ranks=options.get("adapter_ranks", "keep"))
    return analyse(model, capture_all(model, example_inputs, also), chosen, Amendments.from_dict(options.get("amendments", {})))
