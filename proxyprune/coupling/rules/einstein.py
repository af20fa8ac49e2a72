"""Einstein sums: products of tensors whose dimensions have letters."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Node

from proxyprune.coupling.axes import Axis
from proxyprune.coupling.outcome import Outcome, Term
from proxyprune.coupling.rules.products import NOT_ZERO, SCALED
from proxyprune.coupling.rules.walk import Rule, Walk, kept_whole, ops
from proxyprune.tracing.nodes import arguments, integers, op_name, output_shapes, tensor_argument


@dataclass
class Letters:
    """The dimensions of an Einstein sum.

    Attributes:
        uses: Letter -> the operand dimensions that it names.
        sizes: Letter -> size; an operand of size 1 is stretched.
        axes: Letter -> axis, once the operands have met.
    """

    uses: dict[str, list[tuple[Node, int]]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    axes: dict[str, Axis] = field(default_factory=dict)

    @staticmethod
    def of(walk: Walk, operands: Sequence[Node], terms: Sequence[Sequence[str]]) -> Letters:
        """From the letters of each operand."""
        letters = Letters()
        for operand, term in zip(operands, terms, strict=True):
            for dim, (letter, size) in enumerate(zip(term, walk.shape(operand), strict=True)):
                letters.uses.setdefault(letter, []).append((operand, dim))
                letters.sizes[letter] = max(letters.sizes.get(letter, 1), size)
        return letters

    def holders(self, walk: Walk, letter: str) -> list[Node]:
        """Operands that have their own entries along a dimension."""
        return [operand for operand, dim in self.uses[letter] if walk.shape(operand)[dim] == self.sizes[letter]]


def einsum(walk: Walk, node: Node) -> Outcome:
    """einsum(equation, operands): equal letters meet; letters that vanish are summed over."""
    operands = arguments(node)["tensors"]
    inputs, arrow, output = str(node.args[0]).replace(" ", "").partition("->")
    terms = [_spell_out(term, len(walk.shape(operand))) for term, operand in zip(inputs.split(","), operands, strict=True)]
    if arrow:
        kept = _spell_out(output, len(output_shapes(node)[0]))
    else:
        once = [letter for term in terms for letter in term]
        dots = sorted({letter for letter in once if letter.startswith("...")}, key=lambda letter: -int(letter[3:]))
        kept = [*dots, *sorted(letter for letter in once if once.count(letter) == 1 and letter not in dots)]
    return _einstein_sum(walk, node, operands, terms, kept)


def _einstein_sum(walk: Walk, node: Node, operands: Sequence[Node], terms: Sequence[Sequence[str]], kept: Sequence[str]) -> Outcome:
    letters = Letters.of(walk, operands, terms)
    for letter, uses in letters.uses.items():
        letters.axes[letter] = axis = _meet(walk, node, letters, letter)
        holders = letters.holders(walk, letter)
        if letter in kept and len(uses) > 1 and axis is not None:
            walk.labels.heads.append(axis)
        if any(term.count(letter) > 1 for term in terms):
            walk.pin([axis], node, "stands twice in one operand of")
        if letter not in kept and not any(map(walk.zero, holders)):
            walk.pin([walk.axes(operand)[dim] for operand, dim in uses], node, NOT_ZERO)
        if letter not in kept and not any(map(walk.is_weight, holders)):
            walk.pin([walk.axes(operand)[dim] for operand, dim in uses], node, SCALED)
    axes = tuple(letters.axes.get(letter) for letter in kept)
    zero = any(map(walk.zero, operands)) and not walk.any_open(
        axes, lambda offset: any(map(walk.zero, letters.holders(walk, kept[-offset])))
    )
    shapes = [walk.shape(operand) for operand in operands]
    held = [{letter for letter, size in zip(term, shape, strict=True) if size > 1} for term, shape in zip(terms, shapes, strict=True)]
    return Outcome(outputs=(axes,), macs=_einstein_macs(letters, held, frozenset(kept), arguments(node).get("path")), zero=zero)


def _einstein_macs(letters: Letters, held: list[set[str]], kept: frozenset[str], path: Any) -> tuple[Term, ...]:
    """Count the products of two operands at a time, in torch's order.

    Two operands are a matrix product over the letters that both hold, and that no other operand and not the result hold; without such
    letters they are multiplied entry by entry. Letters of one operand that vanish are summed before.

    Args:
        letters: Their sizes and axes.
        held: The letters of each operand along which it has more than one entry; used up.
        kept: The letters of the result.
        path: Positions of the operands of each step, which the caller's library has chosen; None: the first two.
    """
    order = iter(path or ())
    terms: list[Term] = []
    while len(held) > 1:
        low, high = sorted((next(order), next(order))) if path else (0, 1)
        second, first = held.pop(high), held.pop(low)
        elsewhere = kept.union(*held)
        contracted = (first & second) - elsewhere
        left = (first | second) & elsewhere
        if contracted:
            terms.append(
                Term.of(*((letters.sizes[letter], letters.axes[letter]) for letter in letters.uses if letter in contracted | left))
            )
        held.insert(len(held) if path else 0, left)
    return tuple(terms)


def _meet(walk: Walk, node: Node, letters: Letters, letter: str) -> Axis:
    meeting = [walk.axes(operand)[dim] for operand, dim in letters.uses[letter] if walk.shape(operand)[dim] == letters.sizes[letter]]
    return walk.labels.unify(meeting, walk.where(node))


def _spell_out(term: str, ndim: int) -> list[str]:
    """Letters of one operand, with '...' replaced by numbered dimensions counted from the right."""
    if "..." not in term:
        return list(term)
    head, _, tail = term.partition("...")
    hidden = ndim - len(head) - len(tail)
    return [*head, *(f"...{index}" for index in range(hidden, 0, -1)), *tail]


def tensor_product(walk: Walk, node: Node) -> Outcome:
    """tensordot(a, b, dims_a, dims_b), inner(a, b), outer(a, b): an Einstein sum whose letters follow from the arguments."""
    operands = [tensor_argument(node, 0), tensor_argument(node, 1)]
    ndims = [len(walk.shape(operand)) for operand in operands]
    if 0 in ndims:
        return kept_whole(walk, node, "meets a number in")
    supply = iter(string.ascii_letters)
    terms = [[next(supply) for _ in range(ndim)] for ndim in ndims]
    summed = {"aten.inner": ([-1], [-1])}.get(op_name(node), ([], []))
    if op_name(node) == "aten.tensordot":
        summed = ([*integers(node.args[2])], [*integers(node.args[3])])
    for first, second in zip(*summed, strict=True):
        terms[1][second] = terms[0][first]
    shared = set(terms[0]) & set(terms[1])
    outcome = _einstein_sum(walk, node, operands, terms, [letter for term in terms for letter in term if letter not in shared])
    is_dot, is_outer = op_name(node) == "aten.inner" and max(ndims) == 1, op_name(node) == "aten.tensordot" and not shared
    return replace(outcome, macs=(), costed=False) if is_dot or is_outer else outcome


RULES: dict[str, Rule] = {
    "aten.einsum": einsum,
    **dict.fromkeys(ops("tensordot inner outer ger"), tensor_product),
}
