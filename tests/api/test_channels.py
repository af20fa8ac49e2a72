"""`channels=`: block scores of one scorer on the channel scores of another, with a weight that measuring chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import MissingNeedError, UnreliableRankingError
from proxyprune.measuring.held_out import Data, held_out_loss
from proxyprune.proxy import OpenAIScorer
from proxyprune.scoring import Ranking
from proxyprune.scoring.tools.channel_prior import with_block_prior
from proxyprune.testing import FakeLLMServer
from proxyprune.testing.scorer_contract import Network

WIDTH, FRAGILE = 16, "blocks.1"


class Residual(nn.Module):
    """x + gain * down(relu(up(x)))."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.down(self.up(x).relu())


class Net(nn.Module):
    """Four blocks; the second decides the output, although its weights are small."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Residual(30.0 if index == 1 else 0.05) for index in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@dataclass(frozen=True)
class Fixed:
    """Block scores from a table, and nothing about channels."""

    scores: tuple[float, ...]
    unreliable: str | None = None
    name: str = "fixed"
    needs: frozenset[str] = frozenset()

    def score(self, graph, context) -> Ranking:
        return Ranking(dict(zip(graph.block_by_id, self.scores, strict=True)), self.name, notes=("By hand.",), unreliable=self.unreliable)


RIGHT, WRONG = Fixed((0.1, 1.0, 0.1, 0.1)), Fixed((1.0, 0.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def network() -> Network:
    """Return a fragile block whose weights magnitude finds unimportant, and batches that the unpruned network fits exactly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().eval()
        with torch.no_grad():
            for parameter in model.blocks[1].parameters():
                parameter.mul_(0.1)
            inputs = torch.randn(6, 32, WIDTH)
            batches = [(x, model(x)) for x in inputs]
    return Network("fragile", model, torch.zeros(1, WIDTH), batches, lambda net, batch: (net(batch[0]) - batch[1]).square().mean())


def pruned(network: Network, scorer, **given):
    data = {"batches": network.batches, "loss_fn": network.loss_fn}
    return pp.prune(network.model, network.example_inputs, 0.7, scorer, **{**data, **given})


def loss_of(network: Network, result) -> float:
    return held_out_loss(result.model, Data((), network.batches[1::2], network.loss_fn), 0)


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("channels", ["taylor", "magnitude"])
@pytest.mark.parametrize("scores", [RIGHT, WRONG])
def test_a_plan_is_never_worse_on_the_held_out_half_than_its_channel_scorer_alone(network, scores, channels, compensate):
    """Whatever the block scores are; and weight 0 gives the very plan of the channel scorer."""
    alone = pruned(network, channels, compensate=compensate)
    both = pruned(network, scores, channels=channels, compensate=compensate)
    assert loss_of(network, both) <= loss_of(network, alone)
    assert both.plan.macs <= both.plan.target_macs
    assert both.plan.notes[-1].startswith(f"Channels are scored by '{channels}', and the block scores of 'fixed' have the weight ")
    if "the weight 0," in both.plan.notes[-1]:
        assert both.plan.kept == alone.plan.kept


def test_right_block_scores_help_and_wrong_ones_get_no_weight(network):
    """A fragile block that magnitude destroys survives with the right scores; the wrong ones leave the plan of Taylor."""
    right = pruned(network, RIGHT, channels="magnitude")
    assert loss_of(network, right) < 0.5 * loss_of(network, pruned(network, "magnitude"))
    alone, wrong = pruned(network, "taylor"), pruned(network, WRONG, channels="taylor")
    assert loss_of(network, wrong) == loss_of(network, alone)
    assert wrong.plan.kept == alone.plan.kept
    assert "have the weight 0," in wrong.plan.notes[-1]
    assert right.plan.scorer == "fixed on magnitude"


def test_the_report_and_the_ranking_have_the_note(network):
    """Trials are listed with their losses, in the plan, the report and the ranking; notes of both scorers stay."""
    result = pruned(network, RIGHT, channels="taylor")
    note = result.plan.notes[-1]
    assert note in result.report.notes
    assert result.ranking.notes[-1] == note
    assert "By hand." in result.ranking.notes
    assert "chosen by the loss on 3 held-out calibration batches (0: " in note
    assert "2: " in note


def test_other_scorers_of_blocks_get_no_channels_unless_asked(network):
    """The default concerns scorers that reach another machine; a scorer with channels of its own keeps them."""
    assert pruned(network, RIGHT).ranking.channel_scores == {}
    assert pruned(network, RIGHT, channels=None).ranking.channel_scores == {}
    assert pruned(network, "taylor", channels="magnitude").plan.kept == pruned(network, "taylor").plan.kept


def test_a_weight_cannot_be_chosen_without_data(network):
    """Named by the message, before anything is scored; a default without data says what the plan rests on."""
    for given in ({"batches": None}, {"batches": network.batches[:1]}, {"loss_fn": None}):
        with pytest.raises(MissingNeedError, match="channels='taylor' measures"):
            pruned(network, RIGHT, channels="taylor", **given)


def with_language_model(network: Network, act: Callable[[OpenAIScorer], object]):
    with FakeLLMServer() as server:
        return act(OpenAIScorer(model="fake", base_url=server.url_for("openai"), samples=2, max_samples=2))


def test_a_language_model_gets_the_channels_of_taylor_where_there_is_data(network):
    """In width mode, by default; without data the plan's notes say what it rests on; None leaves channels to magnitude."""
    given = with_language_model(network, lambda scorer: pruned(network, scorer))
    assert given.plan.scorer == "openai on taylor"
    assert loss_of(network, given) <= loss_of(network, pruned(network, "taylor"))
    blind = with_language_model(network, lambda scorer: pruned(network, scorer, batches=None))
    assert blind.plan.notes[-1].startswith("This plan rests on the block scores of 'openai', and inside each channel group on the ")
    assert blind.plan.notes[-1] in blind.report.notes
    without = with_language_model(network, lambda scorer: pruned(network, scorer, channels=None))
    assert without.plan.kept == blind.plan.kept
    assert with_language_model(network, lambda scorer: pruned(network, scorer, mode="depth")).plan.scorer == "openai"


def test_an_unreliable_ranking_is_still_rejected(network):
    """Nothing is measured for it unless it is accepted; then the notes repeat the reason."""
    doubtful = Fixed(RIGHT.scores, unreliable="Answers agree no better than chance.")
    with pytest.raises(UnreliableRankingError):
        pruned(network, doubtful, channels="taylor")
    accepted = pruned(network, doubtful, channels="taylor", accept_unreliable=True)
    assert any("Answers agree no better than chance." in note for note in accepted.plan.notes)


def test_a_prior_never_lowers_an_important_block(network):
    """Scores below 0 move up with an important block, too; the order inside a group stays."""
    graph = pp.trace(network.model, network.example_inputs)
    values = {group.id: tuple(np.linspace(-1.0, 1.0, group.atoms).tolist()) for group in graph.prunable}
    channels = Ranking(dict.fromkeys(graph.block_by_id, 0.5), "signed", channel_scores=values, comparable_channels=True)
    ranking = with_block_prior(graph, channels, dict(zip(graph.block_by_id, RIGHT.scores, strict=True)), 1.0)
    for group in graph.prunable:
        before, after = np.array(values[group.id]), np.array(ranking.channel_scores[group.id])
        assert (np.argsort(after) == np.argsort(before)).all()
        if group.blocks == (FRAGILE,):
            assert (after >= before).all()
