"""Forwards that read values: recorded on real tensors, cut, verified with the same values, and counted on their own run."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detector import IMAGE, Detector, detector
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import proxyprune as pp
from proxyprune.errors import InputError, TraceError, UnknownNameError
from proxyprune.surgery.comparison import predicted_calls
from proxyprune.surgery.dry_run import DryRun
from proxyprune.surgery.prediction import Prediction
from proxyprune.tracing.skeleton import EmptyTensors, skeleton


def measured(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of one run."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return counter.get_total_flops() // 2


class Inside(nn.Module):
    """Two layers around any function of the features between them."""

    def __init__(self, middle: Callable[[Tensor], Tensor], width: int = 32) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 4)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        """Run the function between the second and the third layer."""
        found: Tensor = self.c(self.middle(self.b(self.a(x).relu())))
        return found


X = torch.linspace(-1, 1, 24).reshape(3, 8)


def test_a_detector_is_pruned_and_counted_on_its_own_run() -> None:
    """Boxes are selected by value, so the pruned network selects others; its MACs are those of its own run, within the budget."""
    model = detector()
    result = pp.prune(model, IMAGE, 0.6)
    assert result.plan.base_macs == measured(model, IMAGE)
    assert result.plan.macs == measured(result.model, IMAGE) <= 0.6 * result.plan.base_macs
    assert result.plan.macs > 0.4 * result.plan.base_macs
    assert sum(after for _, after in result.report.blocks.values()) == result.plan.macs
    assert any("depend on values" in note for note in result.plan.notes)


def test_a_pruned_detector_is_saved_and_loaded(tmp_path: Path) -> None:
    """The loaded network selects the same boxes, bit by bit."""
    result = pp.prune(detector(), IMAGE, 0.6)
    loaded = pp.load(pp.save(result, tmp_path / "pruned"), detector)
    with torch.no_grad():
        for before, after in zip(result.model(IMAGE), loaded(IMAGE), strict=True):
            assert all(torch.equal(before[key], after[key]) for key in before)


def test_every_width_before_the_selection_may_be_cut() -> None:
    """Channels go on through what a mask or an index selects; only what is read as a value stays."""
    graph = pp.trace(detector(), IMAGE)
    prunable = {member.parameter for group in graph.prunable for member in group.members}
    assert {"backbone.layers.0.0.weight", "backbone.layers.2.0.weight", "head.0.weight", "head.2.weight"} <= prunable
    assert not graph.unsupported_ops
    assert not any("not followed" in (group.pinned or "") for group in graph.groups)


def test_a_run_without_data_repeats_the_values() -> None:
    """An unpruned skeleton, which has no values at all, makes the very calls that were recorded."""
    model = detector()
    graph = pp.trace(model, IMAGE, probe=False)
    calls, empty = predicted_calls(Prediction.unpruned_of(graph)), EmptyTensors.meta()
    assert DryRun(IMAGE, empty).compare(skeleton(model, empty), calls) is None


def test_a_change_behind_the_selection_is_seen_without_data() -> None:
    """The values are repeated, and everything else is compared as in any network."""
    model = detector()
    graph = pp.trace(model, IMAGE, probe=False)
    calls, empty = predicted_calls(Prediction.unpruned_of(graph)), EmptyTensors.meta()
    changed = skeleton(model, empty)
    changed.head[1] = nn.GELU()
    difference = DryRun(IMAGE, empty).compare(changed, calls)
    assert difference is not None
    assert "relu was predicted" in difference.message


def test_nothing_of_the_model_changes() -> None:
    """The trace runs the caller's own model: attributes, hooks, values and random numbers are as before."""
    model = detector()
    before = {name: copy.deepcopy(value) for name, value in model.state_dict().items()}
    numbers = torch.random.get_rng_state()
    pp.trace(model, IMAGE)
    assert model.last is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), numbers)


def test_inplace_cuts_the_model_itself() -> None:
    """Budgets are tried on copies; the plan that is chosen is applied to the model."""
    model = detector()
    result = pp.prune(model, IMAGE, 0.6, inplace=True)
    assert result.model is model
    assert measured(model, IMAGE) == result.plan.macs


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda h: h * 2 if h.sum() > 0 else h, None),
        (lambda h: h * float(h.max()), "is read in order in"),
        (lambda h: torch.from_numpy(h.numpy()), "is read by Python code in"),
        (lambda h: torch.tensor(h.tolist()), "is read by Python code in"),
        (lambda h: h[h[:, 0] > h[:, 0].mean()], "is read at a fixed position in"),
        (lambda h: torch.nn.functional.pad(h[h > 0], (0, 4000))[:96].view(3, 32), "decides what is selected in"),
        (lambda h: h[:, torch.nonzero(h.sum(0)).flatten()], "decides what is selected in"),
    ],
    ids=["branch", "number", "numpy", "tolist", "rows", "mask", "columns"],
)
def test_an_axis_whose_values_are_read_stays(middle: Callable[[Tensor], Tensor], reason: str | None) -> None:
    """Each network is pruned and exact; an axis stays only if entries along it are read or selected one by one."""
    torch.manual_seed(3)
    model = Inside(middle)
    result = pp.prune(model, X, 0.7)
    assert measured(result.model, X) == result.plan.macs
    pinned = result.report.pinned.get("b.weight:0")
    assert "a.weight:0" in {group.id for group in result.graph.prunable}
    assert (pinned is None) if reason is None else (pinned is not None and reason in pinned)


def test_a_model_without_values_is_told_apart() -> None:
    """On the meta device there are no values to read, and the message says so."""
    with torch.device("meta"):
        model = Detector()
    with pytest.raises(TraceError, match=r"this model has none \(meta device or fake tensors\)"):
        pp.trace(model, IMAGE)


class Guarded(nn.Module):
    """A network whose last part does not run while anything watches."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16))
        self.last = nn.Linear(16, 2)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        """Raise under a mode of torch."""
        hidden: Tensor = self.backbone(x)
        if torch._C._is_torch_function_mode_enabled():
            raise RuntimeError("no modes here")
        result: Tensor = self.last(hidden) * scale
        return result


def test_the_message_has_lines_that_prune_a_part() -> None:
    """When no way follows the forward, the largest part that can be traced alone is named, with code that runs."""
    model, example_inputs = Guarded(), torch.ones(2, 8)
    with pytest.raises(TraceError, match="largest part that can be traced alone is 'backbone'") as caught:
        pp.trace(model, example_inputs)
    lines = re.findall(r"^    (.+)$", str(caught.value), re.MULTILINE)
    assert len(lines) == 3
    exec("\n".join(lines), {"proxyprune": pp, "model": model, "example_inputs": example_inputs})
    assert model.backbone[0].out_features < 64
    assert model(example_inputs).shape == (2, 2)


def test_inputs_of_a_part() -> None:
    """They are what the part receives: positional, named, or both, by name."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.idle = Guarded(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x + 1, scale=2.0)

    model = Outer()
    found = pp.inputs_of(model, X, "part")
    assert isinstance(found, dict)
    assert torch.equal(found["x"], X + 1)
    assert found["scale"] == 2.0
    assert torch.equal(pp.inputs_of(model, X, "part.backbone")[0], X + 1)
    with pytest.raises(InputError, match="does not run"):
        pp.inputs_of(model, X, "idle")
    with pytest.raises(UnknownNameError, match="no submodule 'nothing'"):
        pp.inputs_of(model, X, "nothing")


def test_a_check_of_counts_follows_the_width() -> None:
    """Tokens times channels must equal the entries of the features: both sides follow the width, which is cut."""

    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.image, self.out = nn.Embedding(10, 32), nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, ids: Tensor, features: Tensor) -> Tensor:
            words, image = self.words(ids), self.image(features)
            mask = ids == 9
            assert bool(mask.sum() * words.shape[-1] == image.numel())
            found: Tensor = self.out(words.masked_scatter(mask[..., None].expand_as(words), image))
            return found

    torch.manual_seed(5)
    inputs = {"ids": torch.tensor([[1, 9, 9, 2]]), "features": X[:2]}
    result = pp.prune(Joins(), inputs, 0.6)
    assert result.model.image.out_features < 32
    assert measured(result.model, inputs) == result.plan.macs
