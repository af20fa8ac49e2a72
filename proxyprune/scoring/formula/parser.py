"""Reading a formula from text. Nothing is executed: names are looked up in two tables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from proxyprune.errors import FormulaError
from proxyprune.scoring.formula.expression import DEEPEST, FEATURES, Constant, Expression, Feature, Operation
from proxyprune.scoring.formula.operators import OPERATORS

LONGEST = 2000
"""Characters of a formula at most."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<name>[A-Za-z_][A-Za-z_0-9]*)|(?P<sign>[-+*/(),]))"
)
_FUNCTIONS = tuple(name for name, operator in OPERATORS.items() if operator.precedence is None)
_END = ("end", "")
_Read: TypeAlias = Callable[[], Expression]


def parsed(text: object) -> Expression:
    """Return the formula that a text describes, such as `wg * norm(w)`.

    Args:
        text: Features, numbers, `+ - * /`, parentheses, and functions such as `sqrt(w)` and `max(w, g)`.

    Raises:
        FormulaError: If the text is no formula, or exceeds a limit; the message has the position, counted from 1.
    """
    if not isinstance(text, str):
        raise FormulaError(f"Expected a formula as text, such as 'wg * norm(w)', found {type(text).__name__}.")
    if len(text) > LONGEST:
        raise FormulaError(f"The formula has {len(text):,} characters, and {LONGEST:,} are the most. Shorten it.")
    parser = _Parser(tuple(_tokens(text)))
    found = parser.infix(1)
    kind, value = parser.peek()
    if kind != "end":
        raise parser.error(f"expected an operator or the end, found '{value}'")
    return found


def _tokens(text: str) -> list[tuple[str, str, int]]:
    """Return (kind, text, position) for each part."""
    found, place, end = [], 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            place += len(text[place:]) - len(text[place:].lstrip())
            raise FormulaError(f"{_where(place)}: unexpected character {text[place]!r}. {_allowed()}")
        kind = str(match.lastgroup)
        found.append((kind, match[kind], match.start(kind)))
        place = match.end()
    return found


@dataclass
class _Parser:
    """Recursive descent over the tokens.

    Attributes:
        tokens: Kind, text and position of each.
        place: Index of the next token.
        nested: Open parentheses and signs.
    """

    tokens: tuple[tuple[str, str, int], ...]
    place: int = 0
    nested: int = 0

    def peek(self) -> tuple[str, str]:
        """Return kind and text of the next token."""
        return self.tokens[self.place][:2] if self.place < len(self.tokens) else _END

    def error(self, problem: str) -> FormulaError:
        """Return an error about the next token."""
        where = _where(self.tokens[self.place][2]) if self.place < len(self.tokens) else "At the end of the formula"
        return FormulaError(f"{where}: {problem}. {_allowed()}")

    def infix(self, least: int) -> Expression:
        """Read operands joined by operators that bind at least this tightly."""
        left = self.operand()
        while True:
            kind, sign = self.peek()
            own = OPERATORS[sign].precedence if kind == "sign" and sign in OPERATORS else None
            if own is None or own < least:
                return left
            self.place += 1
            left = Operation(sign, (left, self.infix(own + 1)))

    def operand(self) -> Expression:
        """Read a number, a feature, a function, a sign with its operand, or something in parentheses."""
        kind, text = self.peek()
        if kind == "number":
            return self._constant(text)
        if kind == "name":
            return self._function(text) if text in _FUNCTIONS else self._feature(text)
        if text == "-":
            self.place += 1
            return Operation("-", (Constant(0.0), self._nested(self.operand)))
        if text == "(":
            self.place += 1
            found = self._nested(lambda: self.infix(1))
            self._expect(")")
            return found
        raise self.error(f"expected a feature, a number or a function, found {text!r}" if text else "something is missing")

    def _constant(self, text: str) -> Constant:
        try:
            found = Constant(float(text))
        except FormulaError:
            raise self.error(f"the number {text[:20]} is too large") from None
        self.place += 1
        return found

    def _feature(self, name: str) -> Feature:
        if name not in FEATURES:
            close = difflib.get_close_matches(name[:40], (*FEATURES, *_FUNCTIONS), n=1, cutoff=0.5)
            raise self.error(f"unknown name {name[:40]!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        self.place += 1
        return Feature(name)

    def _function(self, name: str) -> Operation:
        start = self.place
        self.place += 1
        self._expect("(")
        operands = [self._nested(lambda: self.infix(1))]
        while self.peek() == ("sign", ","):
            self.place += 1
            operands.append(self._nested(lambda: self.infix(1)))
        self._expect(")")
        if len(operands) != OPERATORS[name].arity:
            self.place = start
            raise self.error(f"'{name}' takes {OPERATORS[name].arity} operand(s), found {len(operands)}")
        return Operation(name, tuple(operands))

    def _expect(self, sign: str) -> None:
        if self.peek() != ("sign", sign):
            raise self.error(f"expected '{sign}'" + (f", found '{self.peek()[1]}'" if self.peek()[1] else ""))
        self.place += 1

    def _nested(self, read: _Read) -> Expression:
        """Read something one level deeper, within the limit."""
        self.nested += 1
        if self.nested > DEEPEST:
            raise self.error(f"more than {DEEPEST} levels of parentheses")
        found = read()
        self.nested -= 1
        return found


def _where(place: int) -> str:
    return f"Character {place + 1} of the formula"


def _allowed() -> str:
    return f"A formula has the features {', '.join(FEATURES)}, numbers, + - * /, parentheses, and {', '.join(_FUNCTIONS)}."
