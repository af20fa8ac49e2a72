"""Blocks: the named submodules that a scorer ranks, found from the module tree and the graph.

The tree is walked from the root. The innermost modules that pass their input on (a residual path from input to output, same shape) become
blocks, for they can be ranked and taken out. What lies beside them is cut at the first module without a stack of its own: a residual block
with a projection shortcut, a resampler, a time embedding, a single convolution. Every op with a cost thus falls into at most one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn
from torch.fx import Node

from proxyprune.graph.structure import ResidualPath
from proxyprune.tracing.names import is_inside
from proxyprune.tracing.nodes import op_name
from proxyprune.tracing.program import Program

_PASSING_ON = frozenset(
    f"aten.{name}"
    for name in (
        "dropout dropout_ clone contiguous to alias detach layer_norm rms_norm batch_norm group_norm view reshape flatten "
        "permute transpose unsqueeze squeeze relu relu_ type_as _to_copy float"
    ).split()
)
JOINS = frozenset({"aten.add", "aten.add_", "aten.addcmul"})
_STACKS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass(frozen=True)
class Span:
    """The ops of one module within the program.

    Attributes:
        nodes: Call nodes whose owner is the module or lies inside it.
        sources: Outside tensors that they read, in order of first use; parameters left out.
        results: Inside tensors that are read outside.
    """

    nodes: tuple[Node, ...]
    sources: tuple[Node, ...]
    results: tuple[Node, ...]


@dataclass
class BlockFinder:
    """Finds the blocks of one program."""

    program: Program
    model: nn.Module
    modules: Mapping[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())

    @cached_property
    def _spans(self) -> dict[str, Span]:
        return {}

    def span(self, module: str) -> Span:
        """Return the ops of a module."""
        if module not in self._spans:
            nodes = self.program.calls_by_module.get(module, ())
            inside = set(nodes)
            sources = dict.fromkeys(
                source
                for node in nodes
                for source in node.all_input_nodes
                if source not in inside and source.name not in self.program.state and isinstance(source.meta.get("val"), Tensor)
            )
            results = [node for node in nodes if any(user not in inside for user in node.users)]
            self._spans[module] = Span(nodes, tuple(sources), tuple(results))
        return self._spans[module]

    @cached_property
    def residual_paths(self) -> dict[str, tuple[ResidualPath, ...]]:
        """Modules that can be skipped, with the tensors that take the place of their results."""
        found = {}
        for name, module in self.modules.items():
            if name and not isinstance(module, nn.ModuleList | nn.ModuleDict) and (paths := self._paths(name)) is not None:
                found[name] = paths
        return found

    def _paths(self, module: str) -> tuple[ResidualPath, ...] | None:
        span = self.span(module)
        if not span.results or module in self.program.repeated or not self._has_parameters(module):
            return None
        if not all(isinstance(node.meta.get("val"), Tensor) for node in span.results):
            return None
        inside = set(span.nodes)
        sources = [self._residual_source(result, inside) for result in span.results]
        if any(source is None for source in sources) or len(set(sources)) < len(sources):
            return None
        streams = {source for source in sources if source is not None}
        if any(_made_for(source, streams, inside) for source in span.sources if source not in streams):
            return None
        return tuple(ResidualPath(source, result) for source, result in zip(sources, span.results, strict=True) if source is not None)

    def _has_parameters(self, module: str) -> bool:
        return any(True for _ in self.modules[module].parameters())

    def _residual_source(self, result: Node, inside: set[Node]) -> Node | None:
        """Return the outside tensor of the same shape that reaches `result` through additions (and norms, dropout) only."""
        shape = result.meta["val"].shape
        frontier: list[tuple[Node, bool]] = [(result, False)]
        seen: set[Node] = set()
        while frontier:
            node, joined = frontier.pop(0)
            if node in seen:
                continue
            seen.add(node)
            if node not in inside:
                same = isinstance(node.meta.get("val"), Tensor) and node.meta["val"].shape == shape
                if joined and same and node.name not in self.program.state:
                    return node
                continue
            name = op_name(node)
            if name in JOINS:
                frontier += [(source, True) for source in node.all_input_nodes]
            elif name in _PASSING_ON or (name in ("aten.mul", "aten.div") and len(node.all_input_nodes) == 1):
                frontier += [(source, joined) for source in node.all_input_nodes[:1]]
        return None

    @cached_property
    def block_names(self) -> tuple[str, ...]:
        """Qualified names of the blocks, in execution order."""
        chosen = list(self._descend(""))
        first = {node: index for index, node in enumerate(self.program.calls)}
        order = {name: first[self.span(name).nodes[0]] for name in chosen if self.span(name).nodes}
        return tuple(sorted(order, key=lambda name: order[name]))

    def _descend(self, name: str) -> Iterator[str]:
        module = self.modules[name]
        children = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        if name and self._is_block(name, module, children):
            yield name
            return
        for child in children:
            if child in self.modules and self.modules[child] is not None:
                yield from self._descend(child)

    def _is_block(self, name: str, module: nn.Module, children: list[str]) -> bool:
        if not self.span(name).nodes or isinstance(module, nn.ModuleList | nn.ModuleDict):
            return not children and self._has_parameters(name) and bool(self.span(name).nodes)
        if not children:
            return self._has_parameters(name) or self._has_products(name)
        if any(other != name and is_inside(other, name) for other in self.residual_paths):
            return type(module) in self._removable_types and name in self.residual_paths and not self._stacks_inside(name)
        if name in self.residual_paths or type(module) in self._removable_types or self._products(name) <= 1:
            return True
        if isinstance(module, _STACKS):
            return False
        return not self._stacks_inside(name)

    @cached_property
    def _removable_types(self) -> set[type[nn.Module]]:
        """Classes of the innermost modules that can be skipped; containers say nothing by their class."""
        paths = self.residual_paths
        names = [name for name in paths if not any(other != name and is_inside(other, name) for other in paths)]
        return {type(self.modules[name]) for name in names if not isinstance(self.modules[name], _STACKS)}

    def _stacks_inside(self, name: str) -> bool:
        """Return True if a list inside holds modules that have children of their own: a stage rather than a block."""
        return any(
            isinstance(inner, nn.ModuleList | nn.Sequential) and any(len(list(item.children())) > 0 for item in inner)
            for inner_name, inner in self.modules[name].named_modules()
        )

    def _products(self, name: str) -> int:
        return sum(1 for node in self.span(name).nodes if op_name(node) in PRODUCTS)

    def _has_products(self, name: str) -> bool:
        return self._products(name) > 0


def _made_for(source: Node, streams: set[Node], inside: set[Node]) -> bool:
    """Return True for a tensor that is computed from the stream for this module alone, as attention is for BERT's output layer.

    Such a module is the tail of a residual block: without it, what was made for it would be wasted.
    """
    if source.op != "call_function" or any(user not in inside for user in source.users):
        return False
    frontier, seen = [source], {source}
    while frontier:
        for earlier in frontier.pop().all_input_nodes:
            if earlier in streams:
                return True
            if earlier not in seen:
                seen.add(earlier)
                frontier.append(earlier)
    return False


PRODUCTS = frozenset(
    f"aten.{name}"
    for name in (
        "linear addmm matmul mm bmm baddbmm einsum scaled_dot_product_attention convolution conv1d conv2d conv3d "
        "conv_transpose1d conv_transpose2d conv_transpose3d lstm gru rnn_tanh rnn_relu"
    ).split()
)

ATTENTION = frozenset({"aten.scaled_dot_product_attention", "aten.softmax"})


def kind_of(finder: BlockFinder, name: str, *, first: bool, last: bool) -> str:
    """Return what a block is, from its ops.

    One of transformer, attention, residual, resample, embedding, feedforward, conv, linear, norm, stem, head, other.
    """
    span = finder.span(name)
    names = [op_name(node) for node in span.nodes]
    attends = any(op in ATTENTION for op in names)
    convolves = any("conv" in op for op in names)
    linears = names.count("aten.linear") + names.count("aten.addmm")
    products = [op for op in names if op in PRODUCTS]
    joins = any(op in JOINS for op in names)
    if attends:
        return "transformer" if linears >= 5 and name in finder.residual_paths else "attention"
    if first and products:
        return "stem"
    if last and products:
        return "head"
    if any("embedding" in op for op in names):
        return "embedding"
    if _changes_resolution(span) and len(products) <= 2:
        return "resample"
    if name in finder.residual_paths or (joins and len(products) >= 3 and convolves):
        return "residual"
    if len(products) >= 2:
        return "conv" if convolves else "feedforward"
    if convolves:
        return "conv"
    if linears or products:
        return "linear"
    return "norm" if any("norm" in op for op in names) else "other"


def _changes_resolution(span: Span) -> bool:
    if not span.sources or not span.results:
        return False
    before, after = span.sources[0].meta["val"], span.results[0].meta.get("val")
    if not isinstance(after, Tensor) or before.dim() < 4 or after.dim() != before.dim():
        return False
    return tuple(before.shape[2:]) != tuple(after.shape[2:])
