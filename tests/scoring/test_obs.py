"""The obs scorer: the error after a refit, in closed form, for redundant and independent channels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import InputError, ScoringError
from proxyprune.scoring.builtin.obs import ObsScorer
from proxyprune.scoring.tools.elimination import Readers, ascending, elimination_costs
from proxyprune.testing import Network, check_scorer


def readers(features: Tensor, weight: Tensor, positions: Tensor) -> Readers:
    """One reader, [positions, features] and [rows, features]."""
    gram = features.T @ features
    return Readers(torch.linalg.inv(gram), weight.T @ weight, positions)


def refitted_error(features: Tensor, weight: Tensor, left: list[int]) -> float:
    """Least squares over the features that are left."""
    target = features @ weight.T
    kept = features[:, left]
    solution = torch.linalg.lstsq(kept, target).solution if left else torch.zeros(0, target.shape[1], dtype=target.dtype)
    return float((target - kept @ solution).square().sum())


class TestElimination:
    """Costs are those of least squares."""

    @pytest.mark.parametrize("size", [1, 3])
    def test_sums_are_errors_after_a_refit(self, size):
        """The costs of the atoms that leave first add up to the error of the refit without them, for atoms of several features too."""
        generator = torch.Generator().manual_seed(0)
        atoms = 24 // size
        features = torch.randn(200, 24, generator=generator, dtype=torch.float64) @ torch.randn(24, 24, generator=generator).double()
        weight = torch.randn(5, 24, generator=generator, dtype=torch.float64)
        positions = torch.arange(24).reshape(atoms, size)
        costs = elimination_costs([readers(features, weight, positions)], atoms)
        order = np.argsort(costs, kind="stable")
        total = float((features @ weight.T).square().sum())
        for gone in (1, atoms // 2, atoms - 1):
            left = [int(f) for atom in sorted(order[gone:].tolist()) for f in positions[atom]]
            assert costs[order[:gone]].sum() == pytest.approx(refitted_error(features, weight, left), rel=0.05, abs=1e-6 * total)
        assert costs.sum() == pytest.approx(total, rel=1e-6)

    def test_first_choice_is_the_best_single_one(self):
        """The cheapest atom is the one whose removal hurts least after a refit of the others."""
        features = torch.randn(100, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        features[:, 5] = features[:, 0] + 0.1 * features[:, 5]
        weight = torch.ones(2, 6, dtype=torch.float64)
        costs = elimination_costs([readers(features, weight, torch.arange(6)[:, None])], 6)
        errors = [refitted_error(features, weight, [f for f in range(6) if f != gone]) for gone in range(6)]
        assert int(costs.argmin()) == int(np.argmin(errors))
        assert costs.min() == pytest.approx(min(errors), rel=1e-6)

    def test_equal_channels(self):
        """Of two equal channels one is free and the other is not."""
        base = torch.randn(100, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        features = torch.cat([base, base + 1e-6 * torch.randn(100, 2, generator=torch.Generator().manual_seed(3)).double()], dim=1)
        costs = elimination_costs([readers(features, torch.ones(1, 4, dtype=torch.float64), torch.arange(4)[:, None])], 4)
        assert sorted(costs < 1e-6 * costs.sum()) == [False, False, True, True]
        free = set(np.flatnonzero(costs < 1e-6 * costs.sum()).tolist())
        assert {f % 2 for f in free} == {0, 1}

    def test_ascending(self):
        """Neighbours out of order get their mean; the sum stays."""
        assert ascending(np.array([1.0, 3.0, 2.0, 4.0])).tolist() == [1.0, 2.5, 2.5, 4.0]
        assert all(a <= b for a, b in itertools.pairwise(ascending(np.array([5.0, 1.0, 1.0, 9.0, 2.0]))))


class Redundant(nn.Module):
    """Six hidden channels: 0 to 2, and the same again; `lone` weighs channel 5 much."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 6, bias=False)
        self.down = nn.Linear(6, 2, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.eye(3).repeat(2, 1) * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 3.0])[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(64, 3, generator=generator) for _ in range(count)]


class TestScorer:
    """The scorer of whole networks."""

    @pytest.mark.parametrize("kind", ["both built-in networks", "loss"])
    def test_contract(self, kind):
        """It keeps the contract of scorers, with a loss and without one."""
        report = check_scorer(ObsScorer())
        assert not report.broken
        if kind == "loss":
            model = Redundant().eval()
            network = Network("redundant", model, torch.zeros(1, 3), batches(), lambda m, batch: m(batch).square().mean())
            assert not check_scorer(ObsScorer(), network=network).broken

    def test_redundant_channels_are_free(self):
        """Half of the hidden width leaves without an error after compensation, which magnitude does not find."""
        torch.manual_seed(0)
        model = Redundant().eval()
        keywords = {"batches": batches(4), "compensate": True}
        wanted = model(batches()[0]).detach()
        errors = {}
        for scorer in (ObsScorer(), "magnitude"):
            result = pp.prune(model, torch.zeros(1, 3), 0.5, scorer, **keywords)
            errors[str(getattr(scorer, "name", scorer))] = float((result.model(batches()[0]) - wanted).detach().norm() / wanted.norm())
        assert errors["obs"] < 1e-3 < errors["magnitude"]

    def test_needs_no_loss(self):
        """Batches that the network can be called with are enough, and give the same scores as through a loss."""
        torch.manual_seed(0)
        model = Redundant().eval()
        graph = pp.trace(model, torch.zeros(1, 3))
        plain = pp.score(graph, ObsScorer(), model=model, batches=batches())
        through = pp.score(graph, ObsScorer(), model=model, batches=batches(), loss_fn=lambda m, batch: m(batch).square().mean())
        assert plain.channel_scores == through.channel_scores
        assert plain.comparable_channels

    @pytest.mark.parametrize("name", ["ddpm_unet", "vit", "grouped_conv", "llama_gqa", "transposed_autoencoder"])
    def test_every_group_has_scores(self, name):
        """Real networks: every prunable group that a watched layer reads or makes is scored, with finite numbers."""
        network = zoo.NETWORKS[name]
        model, inputs = network.build(), network.inputs()
        graph = pp.trace(model, inputs)
        ranking = pp.score(graph, ObsScorer(), model=model, batches=[inputs, inputs])
        assert all(np.isfinite(values).all() for values in ranking.channel_scores.values())
        assert {group.id for group in graph.prunable} == set(ranking.channel_scores)

    def test_batches_of_another_form(self):
        """Without a loss, a batch that the network cannot be called with is an error that says so."""
        model = Redundant().eval()
        graph = pp.trace(model, torch.zeros(1, 3))
        with pytest.raises(ScoringError, match="pass loss_fn"):
            pp.score(graph, ObsScorer(), model=model, batches=[torch.zeros(2, 4)])

    def test_damping(self):
        """The ridge must be positive."""
        with pytest.raises(InputError, match="damping"):
            ObsScorer(damping=0.0)
