"""Attributes that the traced forward does not read, and that another method of the module uses as a size: a method that fuses, say.

The source of the method is the evidence: the attribute stands in an argument of a call that makes or reshapes tensors, of a layer's
constructor, or of a range. The attribute follows a cut only if every dimension of that size in the module's tensors became the same number.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from proxyprune.coupling.low_rank import adapters
from proxyprune.surgery.attribute_evidence import AttributeEvidence, Use
from proxyprune.surgery.attribute_proposals import AttributeProposals
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import AttributeChange

_MAKES_TENSORS = frozenset(
    "zeros ones empty full eye arange rand randn randint linspace new_zeros new_ones new_empty new_full view reshape expand repeat "
    "unflatten split chunk narrow broadcast_to tile range Parameter".split()
)
_LAYER = re.compile(
    r"^(Lazy)?(Linear|Conv(Transpose)?[123]d|BatchNorm[123]d|GroupNorm|LayerNorm|RMSNorm|InstanceNorm[123]d|Embedding|PReLU)$"
)
_RANK = re.compile(r"^(lora_)?(r|rank|dim)$")


def followed_by_methods(
    model: nn.Module, proposals: AttributeProposals, evidence: Sequence[AttributeEvidence]
) -> tuple[AttributeChange, ...]:
    """Return changes of attributes that no traced call uses as a size, and whose use as a size another method shows.

    Args:
        model: The unpruned model.
        proposals: Proposals from the sizes of a prediction.
        evidence: How each example call uses attributes.
    """
    found = {(change.module, change.path): change for change in _ranks(model, proposals.prediction)}
    possible = [change for change, sizes in proposals.changed_around() if len(sizes) == 1 and _is_read_as_size(model, change)]
    unique = [change for change in possible if _sizes_inside(model, proposals.prediction, change) == {change.after}]
    uses = [of_call.uses(unique) for of_call in evidence] if unique else []
    for change in unique:
        if all(of_call[change] is Use.NONE for of_call in uses):
            found.setdefault((change.module, change.path), change)
    return proposals.ordered(iter(found.values()))


def _is_read_as_size(model: nn.Module, change: AttributeChange) -> bool:
    return change.path[0] in sizes_in_methods(type(model.get_submodule(change.module)))


def _sizes_inside(model: nn.Module, prediction: Prediction, change: AttributeChange) -> set[int]:
    """Return what the dimensions of an attribute's old size became, over the tensors of its module and the layers inside."""
    shapes, aliases = prediction.graph.program.shapes, prediction.graph.program.aliases
    module = model.get_submodule(change.module)
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    found: set[int] = set()
    for local in names:
        full = f"{change.module}.{local}".lstrip(".")
        full = aliases.get(full, full)
        if full in shapes:
            found |= {new for old, new in zip(shapes[full], prediction.shape(full), strict=True) if old == change.before}
    return found


def _ranks(model: nn.Module, prediction: Prediction) -> Iterator[AttributeChange]:
    """Yield the ranks that adapters state, where they were cut."""
    program = prediction.graph.program
    for adapter in adapters(program):
        name, dim = adapter.down
        before, after = program.shapes[name][dim], prediction.shape(name)[dim]
        holder = _common_module(name, adapter.up[0])
        for attribute, value in (
            vars(model.get_submodule(holder)).items() if before != after and not prediction.is_removed_module(holder) else ()
        ):
            if _RANK.match(attribute) and type(value) is int and value == before:
                yield AttributeChange(holder, (attribute,), before, after)
            elif _RANK.match(attribute) and isinstance(value, dict):
                keys = [key for key, rank in value.items() if rank == before and isinstance(key, str) and key in name.split(".")]
                yield from (AttributeChange(holder, (attribute, key), before, after) for key in keys)


def _common_module(first: str, second: str) -> str:
    parts = []
    for one, other in zip(first.split(".")[:-1], second.split(".")[:-1], strict=False):
        if one != other:
            break
        parts.append(one)
    return ".".join(parts)


def sizes_in_methods(kind: type[nn.Module]) -> frozenset[str]:
    """Return the attributes that methods of a class use as a size, its constructor and its forward left out."""
    key: Any = kind  # a module's own annotation of __hash__ hides that classes can be hashed
    return _read_methods(key)


@functools.cache
def _read_methods(kind: Any) -> frozenset[str]:
    found: set[str] = set()
    for owner in kind.__mro__:
        if owner.__module__.split(".")[0] in ("torch", "builtins"):
            continue
        for name, method in vars(owner).items():
            function = inspect.unwrap(getattr(method, "fget", None) or method)
            if inspect.isfunction(function) and name not in ("__init__", "forward"):
                found |= _sizes_in(function)
    return frozenset(found)


def _sizes_in(function: Any) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return set()
    own = next(iter(inspect.signature(function).parameters), "self")
    reader = _Reader(own)
    for _ in range(2):  # a name that is assigned below its first use, as in a loop
        reader.visit(tree)
    return reader.sizes


class _Reader(ast.NodeVisitor):
    """Collect attributes in size arguments; names that hold one stand for it."""

    def __init__(self, own: str) -> None:
        self.own = own
        self.names: dict[str, set[str]] = {}
        self.sizes: set[str] = set()

    def visit_Assign(self, node: ast.Assign) -> None:
        """Note what a name holds, if the value is arithmetic of attributes."""
        if isinstance(node.value, ast.Attribute | ast.BinOp | ast.Name | ast.Tuple):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self.names.setdefault(target.id, set()).update(self._held(node.value))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Look at the arguments of calls that take sizes."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
        if name in _MAKES_TENSORS or _LAYER.match(name):
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                self.sizes |= self._held(argument)
        self.generic_visit(node)

    def _held(self, value: ast.AST) -> set[str]:
        """Return the attributes in an expression of numbers, tuples and names; what is called or indexed inside is no number."""
        if isinstance(value, ast.Attribute):
            return {value.attr} if isinstance(value.value, ast.Name) and value.value.id == self.own else set()
        if isinstance(value, ast.Name):
            return self.names.get(value.id, set())
        if isinstance(value, ast.BinOp | ast.Tuple | ast.List | ast.Starred | ast.UnaryOp):
            return {name for child in ast.iter_child_nodes(value) for name in self._held(child)}
        return set()
