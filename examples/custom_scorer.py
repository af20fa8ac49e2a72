"""A network and a scorer of your own, from Python.

    python examples/custom_scorer.py

The scorer keeps what was trained away from its start: a block whose weights have hardly moved since initialisation matters least. It is
ten lines, and everything else (channel groups, budget, cut, verification) works with it as with the built-in ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.scoring import model_given
from proxyprune.testing import check_scorer


class Residual(nn.Module):
    """A narrow-wide-narrow block beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.wide(x).relu())


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), *(Residual(32) for _ in range(4)), nn.Linear(32, 1))


@dataclass(frozen=True)
class MovementScorer:
    """How far each block's weights have moved from where they started, relative to their size."""

    start: Mapping[str, Tensor] = field(repr=False)
    name: str = field(default="movement", init=False)
    needs: frozenset[str] = field(default=frozenset({"weights"}), init=False)

    def score(self, graph: pp.ModelGraph, context: pp.ScoringContext) -> pp.Ranking:
        model = model_given(self, context)
        moved: dict[str, float] = {}
        for block in graph.blocks:
            inside = dict(model.get_submodule(block.id).named_parameters())
            pairs = [(p.detach(), self.start.get(f"{block.id}.{name}", p.detach())) for name, p in inside.items()]
            moved[block.id] = float(sum((now - then).norm() for now, then in pairs) / (1e-12 + sum(then.norm() for _, then in pairs)))
        largest = max(moved.values(), default=0.0) or 1.0
        return pp.Ranking({block: value / largest for block, value in moved.items()}, self.name)


def train(model: nn.Module, steps: int = 400) -> Tensor:
    """Fit the distance from the origin; returns the last loss."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        points = torch.rand(256, 2, generator=generator) * 2 - 1
        loss = (model(points) - points.norm(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()


def main() -> None:
    torch.manual_seed(0)
    model = build_model()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    before = train(model)
    check_scorer(MovementScorer(start))  # the contract that every scorer has to keep
    result = pp.prune(model, torch.zeros(1, 2), target=0.5, scorer=MovementScorer(start), mode="both")
    print(result.graph.to_text())
    print(f"left: {result.report.macs / result.report.base_macs:.1%} of the MACs; taken out: {result.plan.removed_blocks or 'no block'}")
    print(f"loss {before:.1e} before, {train(result.model, steps=100):.1e} after the cut and 100 steps")


if __name__ == "__main__":
    main()
