"""The pruned model's own run as its verification, and factors that follow a width."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch
from masking import assert_close, zero_dropped
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.applying.apply import predict
from proxyprune.surgery.comparison import Difference, predicted_calls
from proxyprune.surgery.observer import Observer
from proxyprune.tracing.dispatch import RunAborted


class Scaled(nn.Module):
    """Divides by the root of its width, which no norm and no attention is responsible for."""

    def __init__(self, factor: float | None = None) -> None:
        super().__init__()
        self.factor = factor
        self.first = nn.Linear(4, 16)
        self.second = nn.Linear(16, 16)
        self.last = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x / (x.shape[-1] ** 0.5 if self.factor is None else self.factor)
        return self.last(torch.relu(self.second(x)))


def test_a_factor_made_of_a_width_follows_it() -> None:
    """Both widths are cut; the pruned forward divides by the root of the width that it has."""
    graph = pp.trace(Scaled(), torch.ones(1, 4))
    assert [group.id for group in graph.prunable] == ["first.weight:0", "second.weight:0"]


def test_prune_lets_the_factor_follow_without_probing() -> None:
    """`pp.prune` does not probe first; the run itself accepts the factor, and the result is the masked network with the new factor."""
    model = Scaled().eval()
    result = pp.prune(model, torch.ones(1, 4), 0.6)
    assert "first.weight:0" not in result.report.pinned
    kept = len(result.plan.kept["first.weight:0"])
    masked = Scaled(kept**0.5).eval()
    masked.load_state_dict(model.state_dict())
    zero_dropped(masked, result.graph, result.plan.kept)
    assert_close([masked(torch.ones(1, 4))], [result.model(torch.ones(1, 4))], "masked and pruned outputs")


def test_a_constant_factor_pins_nothing() -> None:
    """The same network with a number in its place is cut in both widths."""
    graph = pp.trace(Scaled(4.0), torch.ones(1, 4))
    assert len(graph.prunable) == 2


def watched(model: nn.Module, traced: nn.Module) -> Difference | None:
    """Run `model` under the prediction, with nothing cut, of `traced`; returns the first difference."""
    inputs = torch.ones(1, 4)
    graph = pp.trace(traced, inputs, probe=False)
    plan = pp.make_plan(graph, pp.score(graph, "random"), 0.6)
    observer = Observer(predicted_calls(predict(graph, plan).unpruned))
    with contextlib.suppress(RunAborted), torch.no_grad(), observer:
        model(inputs)
    return observer.ended()


def test_the_unpruned_model_does_what_was_traced() -> None:
    """There is no difference when nothing differs."""
    assert watched(Scaled(4.0), Scaled(4.0)) is None


class OneMore(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class OneLess(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)) / 4.0)


class Other(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.tanh(self.second(x / 4.0)))


class Narrow(Scaled):
    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 16)


@pytest.mark.parametrize(
    ("other", "progress", "message"),
    [
        (Scaled(4.5), 2, "div was predicted with other=4.0, the module uses other=4.5"),
        (OneMore(4.0), 6, "the module calls add after the end"),
        (OneLess(4.0), 4, "the module ends before"),
        (Other(4.0), 4, "relu was predicted, the module calls tanh"),
        (Narrow(4.0), 0, r"linear -> \[1, 16\] was predicted, the module does linear -> \[1, 8\]"),
    ],
)
def test_every_kind_of_difference_ends_the_run(other: nn.Module, progress: int, message: str) -> None:
    """Another factor, an op more, an op less, another op and another width are reported with the number of calls that agree."""
    difference = watched(other, Scaled(4.0))
    assert difference is not None
    assert difference.progress == progress
    assert re.search(message, difference.message)
