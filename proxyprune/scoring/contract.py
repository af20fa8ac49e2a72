"""The contract between proxyprune and a scorer: what a scorer is, what it is given, and what it may ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from proxyprune.errors import MissingNeedError, ScorerLoadError
from proxyprune.scoring.brief import Brief

if TYPE_CHECKING:
    from torch import Tensor, nn

    from proxyprune.graph.model_graph import ModelGraph
    from proxyprune.scoring.ranking import Ranking
    from proxyprune.tracing.model_call import ExampleInputs

LossFunction: TypeAlias = "Callable[[nn.Module, Any], Tensor]"

NEEDS: Mapping[str, tuple[str, ...]] = {
    "weights": ("model",),
    "batches": ("model", "batches"),
    "loss": ("model", "batches", "loss_fn"),
    "gradients": ("model", "batches", "loss_fn"),
    "network": (),
}
"""The values that a scorer can declare in `needs` -> the arguments of `score` that must be given for it.

weights: parameter values. batches: run the model on calibration data. loss: run `loss_fn` on it. gradients: and differentiate that loss.
network: reach another machine; it asks nothing of the caller, but is listed, so that nobody sends a structure away unawares.
"""

_HOW_TO_GIVE: Mapping[str, str] = {
    "model": "model=the traced model, with its weights",
    "batches": "batches=[batch, ...], a few batches of calibration data",
    "loss_fn": "loss_fn=a function (model, batch) -> scalar loss",
}


@dataclass(frozen=True)
class ScoringContext:
    """Everything besides the graph that a scorer may look at. All of it belongs to the caller: look, and leave it as it was.

    Attributes:
        model: The traced model; None when only its structure is known.
        example_inputs: What the model was traced on, or None.
        batches: Calibration batches in a fixed order, or None. Whatever `loss_fn` understands.
        loss_fn: Scalar loss of the model on one batch, or None.
        seed: All randomness must follow from it.
        brief: The goal, the diffusion interval and earlier attempts, for scorers that reason about them.
    """

    model: nn.Module | None = None
    example_inputs: ExampleInputs | None = None
    batches: Sequence[Any] | None = None
    loss_fn: LossFunction | None = None
    seed: int = 0
    brief: Brief = field(default_factory=Brief)


class Scorer(Protocol):
    """Judges how much each block of a network matters.

    Attributes:
        name: Name under which it is registered and recorded in rankings and plans.
        needs: Subset of `NEEDS`; `score` checks it before the scorer runs.
    """

    @property
    def name(self) -> str:
        """Registered name."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Subset of `NEEDS`."""
        ...

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Score every block of `graph` in [0, 1]; larger means keep.

        Args:
            graph: Trace of the network: blocks with their costs and wiring, groups of channels with their atoms.
            context: The network itself, calibration batches, a loss and a seed, as far as `needs` asks for them.

        Returns:
            A score for every block; scores for the atoms of groups, where the scorer has them; and notes that a reader of the ranking
            should see.
        """
        ...


def check_contract(candidate: object, where: str) -> Scorer:
    """Return `candidate` as a Scorer, or say how it differs from one.

    Args:
        candidate: A scorer, or a class of scorers whose `name` and `needs` are class attributes.
        where: Where it came from, for the message.

    Raises:
        ScorerLoadError: If it does not fit the contract; all differences at once.
    """
    problems: list[str] = []
    name = getattr(candidate, "name", None)
    if not isinstance(name, str) or not name.strip():
        problems.append(f"name must be a non-empty string, found {name!r}")
    needs = getattr(candidate, "needs", None)
    if not isinstance(needs, frozenset | set):
        problems.append(f"needs must be a frozenset of {sorted(NEEDS)}, found {needs!r}")
    elif unknown := sorted(map(str, needs - NEEDS.keys())):
        problems.append(f"needs may hold {sorted(NEEDS)}, found {unknown}")
    method = getattr(candidate, "score", None)
    arguments = (None, None, None) if isinstance(candidate, type) else (None, None)
    if not callable(method):
        problems.append("it has no method score(graph, context)")
    elif not _accepts(method, arguments):
        problems.append(f"score must take (graph, context), found score{inspect.signature(method)}")
    if problems:
        raise ScorerLoadError(f"{where} does not fit the contract: {'; '.join(problems)}. See proxyprune.Scorer.")
    return candidate  # type: ignore[return-value]


def shows_time(scorer: object) -> bool:
    """Return True if a scorer shows a language model the time of blocks, for which the graph needs times."""
    return getattr(scorer, "show_time", False) is True


def check_needs(scorer: Scorer, context: ScoringContext) -> None:
    """Make sure that everything which the scorer declared is there.

    Raises:
        MissingNeedError: If something is not; the message says what to pass.
    """
    given = {"model": context.model is not None, "batches": bool(context.batches), "loss_fn": context.loss_fn is not None}
    required = {argument for need in scorer.needs for argument in NEEDS[need]}
    missing = [argument for argument, present in given.items() if argument in required and not present]
    if not missing:
        return
    empty = " (batches is empty)" if "batches" in missing and context.batches is not None else ""
    raise MissingNeedError(
        f"Scorer '{scorer.name}' needs {', '.join(sorted(scorer.needs))}, but got no {' and no '.join(missing)}{empty}. "
        f"Pass {'; '.join(_HOW_TO_GIVE[argument] for argument in missing)}. "
        "In a model file, define calibration_batches() and loss(model, batch)."
    )


def model_given(scorer: Scorer, context: ScoringContext) -> nn.Module:
    """Return the model, after `check_needs`, for a scorer that is called directly.

    Raises:
        MissingNeedError: If the model, or anything else that the scorer declared, is missing.
    """
    check_needs(scorer, context)
    if context.model is None:
        raise MissingNeedError(f"Scorer '{scorer.name}' reads the model but does not declare it: add 'weights' to its needs.")
    return context.model


def _accepts(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # no signature to look at, as for some functions written in C
        return True
    return True
