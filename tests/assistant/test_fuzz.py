"""Thousands of calls with any arguments end in an answer or in one of our errors, within the budget, and leave the workspace alone."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import proxyprune as pp
from proxyprune import errors
from proxyprune.assistant import TOOLS, Bounds, PruningTask, Replay, Session
from proxyprune.support.strict_json import loads

CALLS = int(os.environ.get("PROXYPRUNE_FUZZED_CALLS", "1000"))
"""`PROXYPRUNE_FUZZED_CALLS=10000` runs the full number."""

STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**63,
    10**400,
    -0.0,
    0.5,
    1e308,
    math.nan,
    math.inf,
    "",
    "*",
    "[!x]*",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "é" * 300,
    "p0",
    "r0",
    "9e999G",
    "60%",
    [],
    {},
    [[[[]]]],
    {"a": {"b": []}},
    ["*"] * 50,
)


class Net(nn.Module):
    """Two residual blocks with next to no work."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.first = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
        self.second = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.first(x)
        return self.head(x + self.second(x))


def network() -> PruningTask:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().eval()
    batches = [(torch.randn(4, 4, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(3)]
    return PruningTask.of(
        model,
        torch.zeros(1, 4),
        0.7,
        recovery=pp.Recovery(1),
        batches=batches,
        loss_fn=lambda net, batch: functional.cross_entropy(net(batch[0]), batch[1]),
    )


def sensible(draw: random.Random) -> dict[str, Callable[[], Any]]:
    """Argument name -> a value that may be valid."""
    names = ("stem", "first", "second", "head", "first.0.weight:0", "*", "second.0", "no such name")
    bounds = lambda: {draw.choice(names): draw.choice((0.3, 0.5, 1.0, 3, 6)) for _ in range(draw.randrange(3))}  # noqa: E731
    plan = lambda: draw.choice(("p0", "p0", f"p{draw.randrange(60)}"))  # noqa: E731
    return {
        "block": lambda: draw.choice(names),
        "offset": lambda: draw.choice((0, 5, 10**9)),
        "scorer": lambda: draw.choice(("magnitude", "taylor", "random", "ablation", "openai", "")),
        "scores": lambda: {name: draw.random() for name in names[: draw.randrange(1, 5)]},
        "base": lambda: f"r{draw.randrange(4)}",
        "strength": lambda: draw.choice((0, 0.5, 5)),
        "widths": bounds,
        "remove": lambda: [draw.choice(names) for _ in range(draw.randrange(3))],
        "ranking": lambda: f"r{draw.randrange(4)}",
        "target": lambda: draw.choice((0.7, 0.5, 0.69, "0.3", 100, 0.71, 0.9)),
        "mode": lambda: draw.choice(("width", "depth", "both")),
        "keep": lambda: [draw.choice(names) for _ in range(draw.randrange(3))],
        "floors": bounds,
        "ceilings": bounds,
        "round_to": lambda: draw.choice((1, 2, 4)),
        "allocation": lambda: draw.choice(("auto", "blocks", "channels")),
        "plan": plan,
        "plans": lambda: [f"p{draw.randrange(8)}" for _ in range(draw.randrange(4))],
        "what": lambda: [draw.choice(("loss", "seconds", "quality"))],
        "recovery": lambda: draw.random() < 0.3,
        "compensate": lambda: draw.random() < 0.2,
        "uniform": lambda: draw.random() < 0.1,
        "last": lambda: draw.choice((1, 20)),
        "name": lambda: draw.choice(("a", "b", "net-1", "..", "a/b", "/tmp/x")),
    }


def fuzzed_call(draw: random.Random, values: dict[str, Callable[[], Any]]) -> tuple[str, Any]:
    """Return a tool, and arguments of which most may be valid and some are strange."""
    tool = draw.choice((*TOOLS, *TOOLS, "no such tool"))
    if tool not in TOOLS or draw.random() < 0.05:
        return tool, draw.choice(STRANGE)
    names = [name for name in TOOLS[tool].schema["properties"] if draw.random() < 0.6 or name in TOOLS[tool].schema["required"]]
    arguments: dict[Any, Any] = {name: values[name]() if draw.random() < 0.85 else draw.choice(STRANGE) for name in names}
    if draw.random() < 0.05:
        arguments[draw.choice(("", "x", "keep ", "a\ud800"))] = draw.choice(STRANGE)
    return tool, arguments


def our_errors() -> set[str]:
    return {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ProxyPruneError)}


@pytest.mark.slow
def test_any_call_ends_in_an_answer_or_our_error(tmp_path, monkeypatch):
    """No foreign error, no plan above the budget, no file outside the workspace, and a replay with the same bytes."""
    monkeypatch.setenv("HIDDEN_TOKEN", "a-secret-of-the-operator")
    monkeypatch.chdir(tmp_path)
    draw, task, known = random.Random(0), network(), our_errors()
    values = sensible(draw)
    calls, answers = [], []
    with Session.open(task, tmp_path / "work", Bounds(calls=CALLS + 1, measurements=CALLS // 20, networks=3)) as session:
        for _ in range(CALLS):
            calls.append(fuzzed_call(draw, values))
            answers.append(session.call(*calls[-1]))
        plans = [session._state.plan(name) for name in session._state.plans]
    contents = [loads(answer.text) for answer in answers]
    assert all(content["error"] in known for answer, content in zip(answers, contents, strict=True) if answer.is_error)
    fine = [tool for (tool, _), answer in zip(calls, answers, strict=True) if not answer.is_error]
    assert {tool: fine.count(tool) for tool in TOOLS if fine.count(tool) < 3} == {}, "every tool must be reached"
    assert len(plans) > 10
    assert all(plan.macs <= task.budgets["macs"].limit for plan in plans)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    logged = "".join(path.read_text() for path in Path(tmp_path / "work").rglob("*.json*"))
    assert "a-secret-of-the-operator" not in logged
    assert str(tmp_path) not in logged
    replay = Replay(tmp_path / "work")
    assert [replay.call(*call) for call in calls] == answers
