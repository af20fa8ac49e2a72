"""A formula in an answer; read by the same parser as any other formula."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxyprune.errors import FormulaError
from proxyprune.proxy.answers.answer import closed_object, document, invalid, one_line
from proxyprune.scoring.formula.expression import Expression, features_of, written
from proxyprune.scoring.formula.parser import parsed

WANTED = "formula"

FORMULA_SCHEMA: Mapping[str, Any] = closed_object({"formula": {"type": "string"}, "reason": {"type": "string"}})
"""JSON schema of an answer."""


@dataclass(frozen=True)
class ProposedFormula:
    """The content of an answer.

    Attributes:
        text: The formula, as proxyprune writes it.
        reason: One sentence of the model.
        tree: The formula as a tree.
    """

    text: str
    reason: str
    tree: Expression = field(repr=False)


def read_formula(text: str, features: Collection[str], tried: Collection[str]) -> ProposedFormula:
    """Return the formula of a valid answer.

    Args:
        text: The answer of the model.
        features: Features that the formula may read.
        tried: Formulas that were measured, as proxyprune writes them.

    Raises:
        LLMInvalidAnswerError: If it is no formula, reads other features, or was measured before.
    """
    data = document(text, WANTED)
    if not isinstance(data, Mapping) or set(data) != {"formula", "reason"} or not all(isinstance(value, str) for value in data.values()):
        raise invalid(["It must be an object with exactly the keys 'formula' and 'reason', both of them text."], WANTED)
    try:
        tree = parsed(data["formula"])
    except FormulaError as error:
        raise invalid([str(error)], WANTED) from error
    if unknown := [name for name in features_of(tree) if name not in features]:
        raise invalid([f"These features cannot be used here: {', '.join(unknown)}."], WANTED)
    if written(tree) in tried:
        raise invalid([f"The formula {written(tree)} was measured before. Propose another one."], WANTED)
    return ProposedFormula(written(tree), one_line(data["reason"]), tree)
