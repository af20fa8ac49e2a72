"""One walk over a program serves many amendments, with the result that a walk of its own would have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import NETWORKS, FusedQkvAttention

from proxyprune.coupling.axes import AxisLabels
from proxyprune.coupling.couple import Coupler, couple
from proxyprune.coupling.coupling import Coupling
from proxyprune.coupling.options import Amendments, Options
from proxyprune.tracing.capture import capture


def content(coupling: Coupling) -> list[Any]:
    """Everything about the groups and the integer arguments that a cut follows."""
    groups = [
        (group.id, group.pinned, group.step, group.bins, [(m.parameter, m.dim, m.positions.tolist()) for m in group.members])
        for group in coupling.groups
    ]
    classes = coupling.classes.of.tolist(), coupling.classes.reasons
    zeros = [(node.name, outcome.zero, sorted(map(str, outcome.sizes))) for node, outcome in coupling.outcomes.items()]
    return [groups, classes, zeros]


@pytest.mark.parametrize("name", ["fused_qkv_vit", "ddpm_unet", "resnet_option_a", "swin", "squeeze_excite"])
def test_amendments_in_a_row_give_what_each_gives_alone(name: str) -> None:
    """Pins that come, stay and go are coupled as by a coupler that has seen nothing else."""
    network = NETWORKS[name]
    model = network.build()
    program = capture(model, network.inputs())
    coupler = Coupler(program, Options())
    groups = [group for group in coupler.couple(model, Amendments()).groups if group.pinned is None]
    pins: dict[str, str] = {}
    for group in groups[:: max(1, len(groups) // 5)]:
        pins[f"{group.members[0].parameter}:{group.members[0].dim}"] = f"is pinned for {group.id}"
        for amendments in (Amendments(pins=dict(pins)), Amendments(pins={next(reversed(pins)): "is alone"})):
            assert content(coupler.couple(model, amendments)) == content(couple(program, Options(), model, amendments))


def test_ties_are_coupled_as_by_a_new_walk() -> None:
    """A tie joins classes and is undone when it is left out."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    program = capture(model, torch.zeros(1, 8))
    coupler = Coupler(program, Options())
    tied = Amendments(ties=(("0.weight:0", "2.weight:0"),))
    alone, joined, again = (coupler.couple(model, amendments) for amendments in (Amendments(), tied, Amendments()))
    assert content(joined) == content(couple(program, Options(), model, tied))
    assert content(again) == content(alone)
    assert len([group for group in joined.groups if group.pinned is None]) + 1 == len(
        [group for group in alone.groups if group.pinned is None]
    )


def test_an_amendment_that_no_rule_asks_about_costs_no_walk() -> None:
    """The outcomes of the ops are the same objects: no rule was called again."""
    model = nn.Sequential(nn.Linear(8, 8), FusedQkvAttention(8, 2), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    coupler = Coupler(capture(model, torch.zeros(1, 5, 8)), Options())
    before = coupler.couple(model, Amendments())
    after = coupler.couple(model, Amendments(pins={"2.weight:0": "is pinned"}))
    assert all(after.outcomes[node] is outcome for node, outcome in before.outcomes.items())
    assert {group.pinned for group in before.groups} != {group.pinned for group in after.groups}


class Stretched(nn.Module):
    """Stretch a tensor over a width: its zeros are those of every entry only while that width stays."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.one = nn.Parameter(torch.randn(6, 1)), nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.rows + self.one)


def test_a_pin_of_an_axis_that_was_asked_for_needs_a_new_walk() -> None:
    """A sum that is not zero where a column is dropped is so once columns stay, which the rule must be asked again for."""
    model = Stretched()
    program = capture(model, torch.zeros(2, 6))
    coupler = Coupler(program, Options())
    coupler.couple(model, Amendments())
    pinned = Amendments(pins={"one:1": "is pinned"})
    assert content(coupler.couple(model, pinned)) == content(couple(program, Options(), model, pinned))


def test_relations_cannot_be_replaced_where_an_answer_would_change() -> None:
    """An axis that was said to be free cannot be pinned afterwards; another one can."""
    labels = AxisLabels()
    asked, other = labels.fresh(3), labels.fresh(4)
    mark = labels.mark
    assert labels.may_shrink(asked)
    for axis, possible in ((asked, False), (other, True)):
        pins = AxisLabels()
        pins.pin(axis, "is pinned")
        assert (labels.with_relations(mark, mark, pins) is not None) == possible
