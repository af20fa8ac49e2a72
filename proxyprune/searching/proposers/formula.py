"""Search for a formula of channel scores: known ones first, then genetic programming, with a language model as one more operator."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from proxyprune.errors import FormulaError, InputError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.proxy.prompt.formula_question import FormulaWriter, TriedFormula, formula_question
from proxyprune.scoring import ScoringContext
from proxyprune.scoring.builtin.formula import FormulaScorer, formula_ranking, formula_values
from proxyprune.scoring.builtin.formula_features import FeatureTable
from proxyprune.scoring.formula.expression import FEATURES, Expression, features_of, written
from proxyprune.scoring.formula.operators import FloatArray
from proxyprune.scoring.formula.parser import parsed
from proxyprune.searching.breeding import Breeding, Individual
from proxyprune.searching.proposer import CHEAP_REPEATS, History, Proposal
from proxyprune.support.seeds import derived_seed
from proxyprune.tracing.module_state import unchanged

KNOWN: Mapping[str, str] = {
    "wg": "first-order Taylor, Molchanov et al. 2019, arXiv:1906.10771",
    "w": "magnitude, Li et al. 2017, arXiv:1608.08710",
    "w * act": "weights times activations, Sun et al. 2024, arXiv:2306.11695 (Wanda)",
    "square(w) * norm(g)": "found by genetic programming, Dong et al. 2024, arXiv:2406.02924 (Pruner-Zero)",
    "z(var * square(w))": "fluctuation, standardised, An et al. 2024, arXiv:2312.11983 (FLAP)",
    "obs": "error after a refit, Kurtic et al. 2023, arXiv:2302.04089 (ZipLM)",
}
"""Formula -> its source. Those of weights are given for channels with all coupled slices here."""

_TRIES = 60
_EVERY = 3
"""After the known formulas, a language model is asked in each round whose number is a multiple of this."""


@dataclass(frozen=True)
class FormulaProposer:
    """Looks for a formula whose channel scores give the best network.

    The known formulas are measured first. Then each proposal is bred from formulas that were measured: subtree crossover or mutation of the
    winners of small tournaments, within limits of depth and size. A formula whose values are not finite, the same for all channels, or
    proportional to those of an earlier formula is not proposed.

    Args:
        known: Formulas to begin with.
        breed: False draws random formulas instead of breeding: the control.
        features: Features that formulas may read; each is measured once.
        writer: A scorer that uses a language model, such as `LocalScorer(...)`; it is asked for a formula in every third round. An answer
            that is no formula is dropped, with a note, and a bred formula takes its place.

    Raises:
        FormulaError: If a known formula is none, or a feature is unknown.
    """

    known: tuple[str, ...] = tuple(KNOWN)
    breed: bool = True
    features: tuple[str, ...] = tuple(FEATURES)
    writer: FormulaWriter | None = None
    repeats: int = field(default=CHEAP_REPEATS, init=False)
    _measured: list[tuple[ModelGraph, ScoringContext, FeatureTable]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        unknown = [name for name in self.features if name not in FEATURES]
        if unknown or not self.features:
            raise FormulaError(f"Expected features from {', '.join(FEATURES)}; found {', '.join(unknown) or 'none'}.")
        for text in self.known:
            parsed(text)

    @property
    def name(self) -> str:
        """Name with the settings that are not the defaults."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name in ("known", "breed", "features")}
        changed = [f"{name}={value!r}" for name, value in own.items() if value != type(self).__dataclass_fields__[name].default]
        if self.writer is not None:
            changed.append(f"writer={self.writer.name}({self.writer.model})")
        return f"formula({', '.join(changed)})" if changed else "formula"

    def propose(self, history: History) -> Proposal:
        """Return the next formula's ranking.

        Raises:
            InputError: If the search cuts no channels.
        """
        if history.mode == "depth":
            raise InputError("Formulas score channels, and mode 'depth' cuts none. Use mode 'width' or 'both', or another proposer.")
        search = _Formulas(self, history, self._table(history))
        tree, how = search.next()
        found = formula_ranking(tree, search.table, history.graph, history.context.seed)
        ranking = replace(found, scorer=self.name, removal_scores=history.start.removal_scores, notes=(*found.notes, *how))
        return Proposal(ranking, formula=written(tree))

    def _table(self, history: History) -> FeatureTable:
        """Return the features; measured once for each network with its data."""
        for graph, context, table in self._measured:
            if graph is history.graph and context is history.context:
                return table
        context, scorer = history.context, FormulaScorer(" + ".join(self.features))
        with contextlib.nullcontext() if context.model is None else unchanged(context.model):
            table = FeatureTable.measured(self.features, scorer, history.graph, context)
        self._measured[:] = [(history.graph, context, table)]
        return table


@dataclass(frozen=True)
class _Formulas:
    """The formulas of a search so far, and the choice of the next one."""

    proposer: FormulaProposer
    history: History
    table: FeatureTable

    @property
    def tried(self) -> tuple[str, ...]:
        """All formulas so far."""
        return tuple(entry.formula for entry in self.history.rounds if entry.formula is not None)

    @property
    def population(self) -> list[Individual]:
        """Formulas with a loss, each once."""
        found = {entry.formula: entry.loss for entry in self.history.rounds if entry.formula is not None and entry.loss is not None}
        return [Individual(parsed(text), loss) for text, loss in found.items()]

    def next(self) -> tuple[Expression, tuple[str, ...]]:
        """Return a formula, and notes on where it comes from."""
        for text in self.proposer.known:
            tree = parsed(text)
            if written(tree) not in self.tried and set(features_of(tree)) <= set(self.proposer.features) and self._values(tree) is not None:
                return tree, (f"Known formula{f': {KNOWN[text]}' if text in KNOWN else ''}.",)
        notes: tuple[str, ...] = ()
        if self.proposer.writer is not None and len(self.history.rounds) % _EVERY == 0:
            written_tree, note = self._asked(self.proposer.writer)
            if written_tree is not None:
                return written_tree, (note,)
            notes = (note,)
        tree, how = self._bred()
        return tree, (*notes, f"Formula by {how}.")

    def _bred(self) -> tuple[Expression, str]:
        """Return a formula that differs from all before it; after many tries, any that has finite values."""
        breeding, population, seed = Breeding(self.proposer.features), self.population, self.history.context.seed
        before = [values for text in self.tried if (values := self._values(parsed(text))) is not None]
        tree, how = parsed(self.proposer.features[0]), "default"
        for attempt in range(_TRIES):
            rng = np.random.default_rng(derived_seed(seed, "formula", len(self.history.rounds), attempt))
            bred = self.proposer.breed and bool(population) and rng.random() >= _FRESH
            found = breeding.child(population, rng) if bred else (breeding.random(rng), "chance")
            values = self._values(found[0])
            if values is None:
                continue
            tree, how = found
            if not any(np.allclose(values, one, rtol=1e-6, atol=1e-12) for one in before):
                break
        return tree, how

    def _values(self, tree: Expression) -> FloatArray | None:
        """Return the values of a formula with mean 1; None if they are not finite, or the same everywhere."""
        try:
            values = formula_values(tree, self.table)
        except FormulaError:
            return None
        if not values.size or np.ptp(values) <= 1e-9 * values.max():
            return None
        return np.asarray(values / values.mean(), dtype=np.float64)

    def _asked(self, writer: FormulaWriter) -> tuple[Expression | None, str]:
        """Return a language model's formula, or None, and a note."""
        losses = {entry.formula: entry.loss for entry in self.history.rounds if entry.formula is not None}
        tried = [TriedFormula(text, loss) for text, loss in losses.items()]
        question = formula_question(tried, self.history.context.brief, self.proposer.features)
        answer, problem = writer.write_formula(question, self.history.context)
        if answer is None:
            return None, f"The formula of '{writer.name}' was dropped: {problem}"
        if self._values(answer.tree) is None:
            return None, f"The formula of '{writer.name}', {written(answer.tree)}, was dropped: its values are not finite, or all the same."
        return answer.tree, f"Formula of '{writer.name}': {answer.reason or 'no reason given'}"


_FRESH = 0.1
"""Share of random formulas among the bred ones."""
