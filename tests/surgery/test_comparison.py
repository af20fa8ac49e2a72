"""The rules of what counts as a difference between a predicted call and a found one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.surgery import comparison
from proxyprune.surgery.comparison import predicted_calls
from proxyprune.surgery.dry_run import DryRun
from proxyprune.surgery.prediction import Prediction
from proxyprune.tracing.skeleton import EmptyTensors, skeleton


class Sliced(nn.Module):
    """Reads the first `end` of 8 channels, as a view with `heads` heads, and with some flags."""

    def __init__(self, end: int | None = 4, heads: int = 2, causal: bool = False, extra: bool = False) -> None:
        super().__init__()
        self.end, self.heads, self.causal, self.extra = end, heads, causal, extra
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.extra:
            x[0].sum()
        start = x[:, :, : self.end].sum(-1, keepdim=True)
        q = (x + start).view(1, 6, self.heads, -1).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(q, q, q, is_causal=self.causal)
        return self.last(attended.transpose(1, 2).reshape(1, 6, 8))


def nothing_cut(graph: pp.ModelGraph) -> Prediction:
    """Predict the unpruned program."""
    return Prediction(graph, [np.ones(group.atoms, dtype=bool) for group in graph.prunable], frozenset())


def difference(found: nn.Module, traced: nn.Module) -> comparison.Difference | None:
    """Compare a forward with the trace of another one, with nothing cut."""
    inputs = torch.ones(1, 6, 4)
    graph = pp.trace(traced, inputs, probe=False)
    empty = EmptyTensors.meta()
    return DryRun(inputs, empty).compare(skeleton(found, empty), predicted_calls(nothing_cut(graph)))


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("start", None, 0, True),
        ("start", None, 1, False),
        ("start", -6, None, True),
        ("end", None, 2**63 - 1, True),
        ("end", None, 6, True),
        ("end", 9, 6, True),
        ("end", 5, None, False),
        ("end", None, None, True),
    ],
)
def test_an_open_bound_is_the_end_that_it_reads_to(name: str, one: int | None, other: int | None, same: bool) -> None:
    """None equals the number that bounds nothing, as versions of torch record either, and differs from every other number."""
    arguments = {"self": torch.ones(6), "dim": 0}
    assert comparison._same_bounds(name, one, other, arguments) == same


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Sliced(end=5), "end=4, the module uses end=5"),
        (Sliced(heads=4), "view"),
        (Sliced(causal=True), "is_causal=False, the module uses is_causal=True"),
        (Sliced(extra=True), "the module calls select"),
    ],
)
def test_bounds_factors_flags_and_more_ops_are_differences(found: nn.Module, message: str) -> None:
    """A wrong bound of a slice, a head count, a flag that changes the result, and an op more are found in the model's own forward."""
    result = difference(found, Sliced())
    assert result is not None
    assert result.module == ""
    assert message in result.message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (9, 10),
        (10, 9),
        *(
            pytest.param(
                *ends, marks=pytest.mark.skipif(torch.__version__.startswith("2.8."), reason="torch 2.8 calls no op for `x[..., :8]`")
            )
            for ends in ((9, 8), (8, 9))
        ),
    ],
)
def test_every_bound_past_the_end_is_the_same(one: int, other: int) -> None:
    """`x[..., :8]`, `x[..., :9]` and `x[..., :10]` of 8 channels read the same elements."""
    assert difference(Sliced(end=one), Sliced(end=other)) is None


def test_every_rule_has_its_reason() -> None:
    """Each entry of the rule book says why it is there."""
    for table in (comparison.BOOKKEEPING, comparison.FREE_ARGUMENTS, comparison.SHOWN_ARGUMENTS):
        assert all(len(reason) > 10 for reason in table.values())


def test_calls_that_the_trace_lacks_are_found_on_the_unpruned_forward() -> None:
    """An op whose result nobody reads is not in an exported program; it is expected as an extra call afterwards."""
    inputs, empty = torch.ones(1, 6, 4), EmptyTensors.meta()
    graph = pp.trace(Sliced(), inputs, probe=False)
    calls = predicted_calls(nothing_cut(graph))
    run, blank = DryRun(inputs, empty), skeleton(Sliced(extra=True), empty)
    lined_up = run.line_up(blank, calls)
    assert lined_up.complete
    assert len(lined_up.extra) == 2
    assert run.compare(blank, calls) is not None
    assert run.compare(blank, calls, lined_up.extra) is None
    assert not run.line_up(skeleton(Sliced(heads=4), empty), calls).complete
