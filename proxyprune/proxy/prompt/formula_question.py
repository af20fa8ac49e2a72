"""The question for a formula: features, operators, and the formulas that were measured. It has nothing of the network's structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxyprune.proxy.answers.formula import FORMULA_SCHEMA, WANTED, ProposedFormula, read_formula
from proxyprune.proxy.prompt.block_list import PromptLabels
from proxyprune.proxy.prompt.templates import filled, template
from proxyprune.proxy.prompt.token_count import tokens_of_prompt
from proxyprune.scoring import Brief, ScoringContext
from proxyprune.scoring.formula.expression import FEATURES
from proxyprune.scoring.formula.operators import OPERATORS

PART = "formula"
MOST_SHOWN = 20
"""Measured formulas that are shown, the best ones."""

_ANSWER_TOKENS = 300


@dataclass(frozen=True)
class TriedFormula:
    """A formula that was proposed before.

    Attributes:
        text: The formula.
        loss: Held-out loss of its network, or None if it has none.
    """

    text: str
    loss: float | None


@dataclass(frozen=True)
class FormulaQuestion:
    """One question for a formula.

    Attributes:
        user: The question.
        features: Features that the formula may read.
        tried: Formulas that were proposed before.
    """

    user: str = field(repr=False)
    features: tuple[str, ...]
    tried: frozenset[str]

    part = PART
    wanted = WANTED
    answer_tokens = _ANSWER_TOKENS
    labels = PromptLabels({})

    @property
    def system(self) -> str:
        """Static text."""
        return template("formula_system")

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer."""
        return dict(FORMULA_SCHEMA)

    @property
    def tokens(self) -> int:
        """Estimated length, schema included."""
        return tokens_of_prompt(self.system, self.user, self.schema)

    def read(self, text: str) -> ProposedFormula:
        """Return the formula of an answer; see `read_formula`."""
        return read_formula(text, self.features, self.tried)

    def again(self, problems: tuple[str, ...]) -> str:
        """Return the message that follows an invalid answer."""
        return filled("formula_again", problems="\n".join(f"- {problem}" for problem in problems))


class FormulaWriter(Protocol):
    """A scorer that can be asked for a formula, as those that use a language model.

    Attributes:
        name: Name of the scorer.
        model: Name of the language model.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  described under Attributes

    @property
    def model(self) -> str: ...  # noqa: D102  described under Attributes

    def write_formula(self, question: FormulaQuestion, context: ScoringContext) -> tuple[ProposedFormula | None, str]:
        """Return a formula and "", or None and why there is none."""
        ...


def formula_question(tried: Sequence[TriedFormula], brief: Brief, features: Sequence[str]) -> FormulaQuestion:
    """Return the question for the next formula.

    Args:
        tried: Formulas that were proposed before.
        brief: With the goal and the loss of the unpruned network.
        features: Features that the formula may read.
    """
    known = sorted((one for one in tried if one.loss is not None), key=lambda one: (one.loss or 0.0, one.text))
    lines = [f"{one.loss:.6g}  {one.text}" for one in known[:MOST_SHOWN]]
    lines += [f"no loss  {one.text}" for one in tried if one.loss is None][: max(0, MOST_SHOWN - len(lines))]
    unpruned = "" if brief.base_loss is None else f"The unpruned network has the loss {brief.base_loss:.6g}. "
    infix = {name for name, operator in OPERATORS.items() if operator.precedence is not None}
    written = {name: f"a {name} b" if name in infix else f"{name}({'a, b' if op.arity == 2 else 'a'})" for name, op in OPERATORS.items()}
    user = filled(
        "formula",
        features="\n".join(f"{name}: {FEATURES[name]}" for name in features),
        operators="\n".join(f"{text}: {OPERATORS[name].meaning}" for name, text in written.items()),
        target=brief.target,
        metric={"macs": "MACs", "params": "parameters"}.get(brief.metric, brief.metric),
        unpruned=unpruned,
        lines="\n".join(lines) or "none yet",
    )
    return FormulaQuestion(user, tuple(features), frozenset(one.text for one in tried))
