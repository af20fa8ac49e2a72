"""What is asked of a plan is one value: checked in one place, and described by typed keywords of the public functions."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import proxyprune as pp
from proxyprune.errors import InputError, KeepPatternError, TargetError
from proxyprune.planning.limits import Limits
from proxyprune.planning.request import PlanRequest
from proxyprune.scoring import Brief

INPUTS = torch.zeros(1, 4)
PLANNED = {"metric", "round_to", "keep", "floors", "ceilings", "allocation", "uniform", "accept_uncosted", "remove"}
TRACED = {"norm_groups", "conv_groups", "adapter_ranks"}
MEASURED = {"batches", "loss_fn", "held_out", "training_loss_fn"}
KEYWORDS: dict[Callable[..., Any], set[str]] = {
    pp.trace: {"probe", "also"} | TRACED,
    pp.make_plan: {"mode", "model", "options", "accept_unreliable"} | PLANNED,
    pp.prune: {"mode", "batches", "loss_fn", "seed", "accept_unreliable", "inplace", "brief", "also", "compensate"}
    | {
        "timing",
        "accept_missed_time",
        "held_out",
        "training_loss_fn",
        "channels",
        "steps",
        "auto_seconds",
        "advice",
        "recover_steps",
        "learning_rate",
        "progress",
    }
    | PLANNED
    | TRACED,
    pp.search: {
        "rounds",
        "patience",
        "batch",
        "jobs",
        "start",
        "recovery",
        "memory",
        "resume",
        "mode",
        "accept_unreliable",
        "timing",
        "seed",
        "progress",
        "also",
    }
    | PLANNED
    | TRACED
    | MEASURED,
    pp.compare: {
        "targets",
        "modes",
        "cases",
        "recovery",
        "calibration",
        "seeds",
        "peers",
        "quality",
        "journal",
        "resume",
        "progress",
        "also",
    }
    | PLANNED
    | TRACED
    | MEASURED,
}
"""Public function -> all its keyword-only arguments, those of typed dictionaries included."""


def described(function: Callable[..., Any]) -> dict[str, Any]:
    """Name -> type of the keywords that a function takes as typed dictionaries, as a type checker sees them."""
    (kind,) = typing.get_args(typing.get_type_hints(function, localns={"nn": torch.nn})["keywords"])
    return typing.get_type_hints(kind)


def verb(function: Callable[..., Any], *arguments: Any) -> Any:
    """Name a case after its function."""
    return pytest.param(function, *arguments, id=function.__name__)


@pytest.mark.parametrize("function", [verb(function) for function in KEYWORDS])
def test_signatures_are_flat_and_typed(function: Callable[..., Any]) -> None:
    """Each keyword has its type in the signature or in the typed dictionaries behind it, and none is in both."""
    named = [p.name for p in inspect.signature(function).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert sorted([*named, *described(function)]) == sorted(KEYWORDS[function])
    types = described(function)
    assert types["norm_groups" if function is pp.trace else "round_to"] == (str if function is pp.trace else int | str)


@pytest.mark.parametrize(
    ("function", "arguments", "keyword", "hint"),
    [
        verb(pp.trace, (), "norm_group", "norm_groups"),
        verb(pp.make_plan, (None,), "floor", "floors"),
        verb(pp.prune, (), "round_too", "round_to"),
        verb(pp.search, (), "held_outs", "held_out"),
        verb(pp.compare, (), "mode", "modes"),
    ],
)
def test_an_unknown_keyword_is_named(function: Callable[..., Any], arguments: tuple[Any, ...], keyword: str, hint: str) -> None:
    """TypeError, as Python raises it, before anything is run, with the closest keyword, also one of the signature itself."""
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument '{keyword}'.*'{hint}'\?$"):
        function(None, INPUTS, *arguments, **{keyword: 1})


def test_an_unknown_keyword_that_is_close_to_none_gets_no_hint() -> None:
    """The message ends after the name."""
    with pytest.raises(TypeError, match=r"argument 'zzz'$"):
        PlanRequest.of(0.5, zzz=1)  # type: ignore[misc]


def test_nothing_asked_is_the_default_request() -> None:
    """Without keywords, a request has the documented defaults."""
    assert PlanRequest.of(0.5) == PlanRequest(0.5) == PlanRequest(0.5, "width", "macs", "auto", Limits((), {}, {}, 1), False, False)


def test_keywords_and_requests_are_the_same() -> None:
    """A request gives back the keywords that it was made from; a single pattern is one pattern, and None is no bound."""
    request = PlanRequest.of("3M", mode="both", keep="head", floors={"a": 0.5}, ceilings=None, round_to=4, accept_unreliable=True)
    assert request.limits == Limits(("head",), {"a": 0.5}, {}, 4)
    assert PlanRequest.of("3M", **request.keywords()) == request
    assert request.keeping("stem").limits.keep == ("head", "stem")


def test_a_brief_gets_the_goal() -> None:
    """Target, metric and mode are filled in, and the rest of a given brief stays."""
    request = PlanRequest.of(0.5, mode="depth", metric="params")
    assert request.brief(Brief(target=0.9, base_loss=2.0)) == Brief(0.5, "params", "depth", 2.0)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"target": "half"}, TargetError, "Cannot read the target"),
        ({"target": 1.5}, TargetError, "neither below 1"),
        ({"metric": "seconds"}, TargetError, "macs, params"),
        ({"mode": "wide"}, InputError, "width, depth, both"),
        ({"allocation": "fair"}, InputError, "auto, blocks, channels"),
        ({"round_to": 0}, InputError, "round_to"),
        ({"floors": {"head": 2.0}}, InputError, "floor for 'head'"),
        ({"ceilings": {"head": True}}, InputError, "ceiling for 'head'"),
        ({"keep": ("",)}, KeepPatternError, "non-empty"),
    ],
)
def test_mistakes_are_found_before_anything_runs(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    """`PlanRequest` finds them, so `prune` and `search` raise without a look at the model."""
    given = {"target": 0.5, **changed}
    with pytest.raises(error, match=message):
        PlanRequest.of(**given)
    for function in (pp.prune, pp.search):
        with pytest.raises(error, match=message):
            function(nn.Identity(), INPUTS, **given)
