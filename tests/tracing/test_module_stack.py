"""Which module's forward is running."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from proxyprune.tracing.module_stack import module_stack


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no")


def test_names_calls_and_hooks() -> None:
    """Inside a module its name is innermost, calls are counted, and no hook is left behind."""
    seen = []
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))
    with module_stack(model) as stack:
        model[1][0].register_forward_pre_hook(lambda module, args: seen.append((stack.innermost, list(stack.names))))
        model(torch.ones(1))
        model(torch.ones(1))
    assert seen == [("1.0", ["", "", "1", "1.0"])] * 2
    assert stack.calls["1"] == 2
    assert stack.innermost == ""
    assert not model[1]._forward_pre_hooks
    assert not model[1]._forward_hooks


def test_a_module_that_raises_is_left() -> None:
    """A forward that catches the error of a submodule is the innermost one again."""
    model = nn.Sequential(Fails())
    with module_stack(model) as stack, contextlib.suppress(ValueError):
        model(torch.ones(1))
    assert stack.names == [""]
