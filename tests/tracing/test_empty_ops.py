"""Ops on tensors without data, run once for each layout."""

from __future__ import annotations

import torch

import proxyprune as pp
from proxyprune.tracing.empty_ops import EmptyOps

ADD, MATMUL, VIEW, FULL = (
    torch.ops.aten.add.Tensor,
    torch.ops.aten.matmul.default,
    torch.ops.aten.view.default,
    torch.ops.aten.full.default,
)


def meta(*shape: int) -> torch.Tensor:
    """Make an empty tensor."""
    return torch.empty(shape, device="meta")


def test_a_known_layout_gives_a_new_tensor_of_the_same_layout() -> None:
    """Shape, strides, type and device are those that the op gave, and no tensor is handed out twice."""
    ops, left, right = EmptyOps(), meta(3, 4), meta(4, 5)
    first, second = (ops.repeat(MATMUL, (left, right), {}) for _ in range(2))
    assert len(ops.known) == 1
    assert second is not first
    assert (second.shape, second.stride(), second.dtype, second.device) == (first.shape, first.stride(), first.dtype, first.device)
    assert ops.repeat(MATMUL, (left, meta(4, 6)), {}).shape == (3, 6)


def test_values_are_computed_every_time() -> None:
    """A tensor that has values is no empty one, whatever its layout."""
    ops = EmptyOps()
    ops.repeat(ADD, (meta(2), meta(2)), {})
    assert ops.repeat(ADD, (torch.ones(2), torch.ones(2)), {}).tolist() == [2, 2]
    assert ops.repeat(ADD, (torch.ones(2), 3 * torch.ones(2)), {}).tolist() == [4, 4]
    assert [ops.repeat(FULL, ([1], number), {}).tolist() for number in (1.0, 2.0, 1.0)] == [[1], [2], [1]]
    assert len(ops.known) == 1


def test_views_stay_views() -> None:
    """An op that returns a view of its argument runs every time, so that the view shares the storage."""
    ops, base = EmptyOps(), meta(6)
    assert all(ops.repeat(VIEW, (base, [2, 3]), {})._base is base for _ in range(2))
    assert not ops.known


class Profiled(torch.nn.Module):
    """A forward under a profiler's label, whose handle has no comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(8, 32), torch.nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run two layers."""
        with torch.profiler.record_function("layers"):
            return self.last(self.first(x).relu())


def test_an_op_with_an_object_of_torch_is_not_kept() -> None:
    """Objects that cannot be compared do not stop a forward: a network under a profiler's label is pruned."""
    result = pp.prune(Profiled(), torch.zeros(1, 8), target=0.6)
    assert result.plan.macs <= 0.6 * result.plan.base_macs
    ops = EmptyOps()
    handle = torch.ops.profiler._record_function_enter_new("label", None)
    ops.repeat(torch.ops.profiler._record_function_exit._RecordFunction, (handle,), {})
    assert not ops.known
