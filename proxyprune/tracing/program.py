"""The ATen program of a model: what capturing yields and every later stage reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.fx import Graph, Node

from proxyprune.tracing.empty_ops import EmptyOps
from proxyprune.tracing.names import named_state


@dataclass(frozen=True, eq=False)
class FurtherCall:
    """One more example call: what is passed, and the program that runs then."""

    inputs: Any = field(repr=False)
    program: Program


@dataclass(frozen=True, eq=False)
class Program:
    """The ATen program of one model for one set of example inputs.

    Attributes:
        graph: Call nodes in execution order; every tensor node has its fake value in `meta["val"]`.
        state: Placeholder name -> name of the parameter or buffer it stands for.
        shapes: Shape of every parameter and buffer that the forward pass reads or that the state dict holds.
        trainable: Names in `shapes` that are parameters.
        integers: Names in `shapes` that hold integers or flags.
        aliases: Other names of shared parameters -> the name used here.
        owners: Node name -> qualified name of the module whose forward issued the op ("" is the model itself).
        classes: Qualified module name -> class name.
        repeated: Modules whose forward runs more than once.
        further: Further example calls of the same model, which a cut must also be valid for.
        on_values: True for a program recorded on real tensors, whose branches and sizes the values of the example inputs decided.
        exporting: True if the forward ran while `torch.compiler.is_exporting()` was true, so that it took its branch for export.
        known_ops: Ops on the meta device that were run before on tensors of the same layout, by the recorder or by a probe.
        evidence: Model -> what its unpruned forward showed about its attributes, for all probes and plans; models are held weakly,
            example inputs are not.
    """

    graph: Graph = field(repr=False)
    state: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    trainable: frozenset[str]
    integers: frozenset[str]
    aliases: Mapping[str, str]
    owners: Mapping[str, str]
    classes: Mapping[str, str]
    repeated: frozenset[str]
    further: tuple[FurtherCall, ...] = ()
    on_values: bool = False
    exporting: bool = True
    known_ops: EmptyOps = field(default_factory=EmptyOps, repr=False)
    evidence: WeakKeyDictionary[nn.Module, Any] = field(default_factory=WeakKeyDictionary, repr=False)

    @property
    def calls(self) -> Iterator[Node]:
        """The ops, in execution order."""
        return (node for node in self.graph.nodes if node.op == "call_function")

    @cached_property
    def calls_by_module(self) -> Mapping[str, tuple[Node, ...]]:
        """The ops of every module, those of its submodules included; "" has all of them."""
        found: dict[str, list[Node]] = {"": []}
        for node in self.calls:
            found[""].append(node)
            owner = self.owners[node.name]
            while owner:
                found.setdefault(owner, []).append(node)
                owner = owner.rpartition(".")[0]
        return {module: tuple(nodes) for module, nodes in found.items()}

    @property
    def programs(self) -> tuple[Program, ...]:
        """This program and those of the further calls."""
        return (self, *(call.program for call in self.further))

    @property
    def read(self) -> frozenset[str]:
        """Parameters and buffers that some op of this program reads."""
        readers = (node for node in self.graph.nodes if node.op == "placeholder" and node.users and node.name in self.state)
        return frozenset(self.state[node.name] for node in readers)

    def owner(self, node: Node) -> str:
        """Return the module that issued an op of this program or of a further call."""
        (program,) = (program for program in self.programs if program.graph is node.graph)
        return program.owners[node.name]

    @cached_property
    def unreached(self) -> tuple[str, ...]:
        """Parameters that no op of this program or of a further call reads, in the order of the model."""
        read = {name for program in self.programs for name in program.read}
        return tuple(name for name in self.shapes if name in self.trainable and name not in read and name not in self.integers)


def assemble(
    model: nn.Module,
    graph: Graph,
    placeholders: Mapping[str, str],
    owners: Mapping[str, str],
    repeated: frozenset[str],
    *,
    on_values: bool = False,
) -> Program:
    """Put a captured graph together with what the model itself says about its parameters and buffers.

    Args:
        model: The captured module.
        graph: Its ops.
        placeholders: Placeholder name -> any name of the parameter or buffer it stands for.
        owners: As in `Program`.
        repeated: As in `Program`.
        on_values: As in `Program`.
    """
    names = {id(value): name for name, value in reversed(list(named_state(model)))}
    aliases = {name: names[id(value)] for name, value in named_state(model) if names[id(value)] != name}
    return Program(
        graph=graph,
        state={placeholder: aliases.get(name, name) for placeholder, name in placeholders.items()},
        shapes={name: tuple(value.shape) for name, value in named_state(model) if name not in aliases},
        trainable=frozenset(name for name, _ in model.named_parameters()),
        integers=frozenset(name for name, value in named_state(model) if not (value.is_floating_point() or value.is_complex())),
        aliases=aliases,
        owners=owners,
        classes={name: type(module).__name__ for name, module in model.named_modules()},
        repeated=repeated,
        on_values=on_values,
        exporting=not on_values,
    )
