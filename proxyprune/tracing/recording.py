"""The graph of a forward while it is written down."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.utils.weak import WeakTensorKeyDictionary

from proxyprune.support.nested import tensors_of
from proxyprune.tracing.dispatch import RunAborted
from proxyprune.tracing.empty_ops import emptied
from proxyprune.tracing.module_stack import ModuleStack
from proxyprune.tracing.names import named_state
from proxyprune.tracing.values import read_values


@dataclass
class Recording:
    """The graph so far, and which node made a tensor, by the tensor's id; `alive` keeps these tensors, so that no id is used twice.

    `fresh` has tensors that were made of nothing: torch hands out a copy of such a tensor when somebody else holds it.
    """

    modules: ModuleStack
    graph: Graph = field(default_factory=Graph)
    nodes: dict[int, Node] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)
    fresh: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    placeholders: dict[str, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)

    def start(self, model: nn.Module, inputs: Any) -> None:
        """Start the graph with placeholders for parameters, buffers and input tensors."""
        known: set[int] = set()
        for name, tensor in named_state(model):
            if id(tensor) not in known:
                known.add(id(tensor))
                self.placeholders[self.placeholder(name, tensor).name] = name
        for number, tensor in enumerate(tensors_of(inputs)):
            self.placeholder(f"input_{number}", tensor)

    def placeholder(self, name: str, tensor: Tensor) -> Node:
        """Add a placeholder."""
        node = self.graph.placeholder(name.replace(".", "_"))
        self.made(tensor, node)
        return node

    def made(self, tensor: Tensor, node: Node) -> None:
        """Note which node made a tensor."""
        node.meta["val"] = tensor
        self.nodes[id(tensor)] = node
        self.alive.append(tensor)

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> Node:
        """Write one op down, with what it returned; the elements of several results get a node each."""
        node = self.call(func, args, kwargs)
        if isinstance(result, Tensor) and (not node.all_input_nodes or _is_factory(func)):
            node.meta["val"] = torch.empty_like(result)
            self.fresh[result] = node
        elif isinstance(result, Tensor):
            self.made(result, node)
        elif isinstance(result, list | tuple):
            node.meta["val"] = result
            for index, item in enumerate(result):
                element = self.call(operator.getitem, (node, index), {})
                element.meta["val"] = item
                if isinstance(item, Tensor):
                    self.made(item, element)
        elif result is not None:
            raise RunAborted
        return node

    def call(self, func: Any, args: Any, kwargs: Any) -> Node:
        """Add a call of the module that is running."""
        node = self.graph.call_function(func, args, kwargs)
        self.owners[node.name] = self.modules.innermost
        self.repeated.update(name for name in self.modules.names if self.modules.calls[name] > 1)
        return node

    def leave_out_unread_detach(self) -> None:
        """Remove detach ops without a reader, as export does."""
        for node in reversed(self.graph.nodes):
            if node.target is torch.ops.aten.detach.default and not node.users:
                self.graph.erase_node(node)

    def maker(self, tensor: Tensor) -> Node:
        """Return the node that made a tensor."""
        node = self.nodes.get(id(tensor)) or self.fresh.get(tensor)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if node is None:
            raise RunAborted
        return node

    def is_known(self, tensor: Tensor) -> bool:
        """Return True if an op or a placeholder made the tensor."""
        return id(tensor) in self.nodes or self.fresh.get(tensor) is not None  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def constant(self, tensor: Tensor) -> Tensor:
        """Note a tensor that Python code filled with numbers (`torch.tensor`), and return an empty one in its place."""
        empty: Tensor = emptied(tensor)
        node = self.graph.get_attr(f"constant_{len(self.alive)}")
        node.meta["val"] = torch.empty_like(empty)
        self.fresh[empty] = node
        return empty

    def argument(self, value: Any) -> Any:
        """Return a call's argument with nodes for tensors."""
        if isinstance(value, Tensor):
            return self.maker(value)
        if isinstance(value, list | tuple):
            return type(value)(self.argument(item) for item in value)
        return value


@dataclass
class ValueRecording(Recording):
    """The graph of a forward that runs on real tensors.

    Tensors are not kept alive: the graph holds an empty tensor of the same layout, and a tensor is found by itself while it lives. A tensor
    that no recorded op made (from Python numbers, or held by an attribute) is a constant.
    """

    constants: int = 0

    def made(self, tensor: Tensor, node: Node) -> None:
        """Note which node made a tensor."""
        node.meta["val"] = emptied(tensor)
        self.fresh[tensor] = node

    def read(self, tensor: Tensor, values: Any) -> None:
        """Write down that all values of a tensor were read without an op."""
        self.call(read_values, (self.maker(tensor),), {}).meta["val"] = values

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> Node:
        """Write one op down, with what it returned."""
        node = self.call(func, args, kwargs)
        node.meta["val"] = emptied(result)
        if isinstance(result, Tensor):
            self.made(result, node)
        elif isinstance(result, list | tuple) and any(isinstance(item, Tensor) for item in result):
            for index, item in enumerate(result):
                element = self.call(operator.getitem, (node, index), {})
                element.meta["val"] = emptied(item)
                if isinstance(item, Tensor):
                    self.made(item, element)
        return node

    def maker(self, tensor: Tensor) -> Node:
        """Return the node that made a tensor; one that no op made becomes a constant."""
        node: Node | None = self.fresh.get(tensor)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if node is None:
            node = self.graph.get_attr(f"constant_{self.constants}")
            self.constants += 1
            self.made(tensor, node)
        return node


def _is_factory(func: Any) -> bool:
    """Return True for zeros_like, new_zeros and their kin, which read nothing but a shape and a type of their argument."""
    name = str(func._schema.name).removeprefix("aten::")
    return name.endswith("_like") or name.startswith("new_")
