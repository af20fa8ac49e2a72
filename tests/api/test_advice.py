"""Advice: limits that are measured, kept if they help, and dropped and recorded if not; and three traps that it survives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import MEASURED, NETWORK, fail, succeed
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import InputError, MissingNeedError
from proxyprune.measuring.held_out import Data, held_out_loss
from proxyprune.pruning.advice import read_advice
from proxyprune.testing.scorer_contract import Network

WIDTH = 16


class Block(nn.Module):
    """x + gain * down(relu(up(x)))."""

    def __init__(self, gain: float, hidden: int = 2 * WIDTH) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, hidden)
        self.down = nn.Linear(hidden, WIDTH)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.down(self.up(x).relu())


class Fragile(nn.Module):
    """Three blocks; the second decides the output although its weights are small."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(gain) for gain in (0.05, 50.0, 0.05)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Tied(nn.Module):
    """A small layer that runs four times with the same weights, beside a large one that hardly counts: its error grows with every use."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.shared = Block(0.02, hidden=256), Block(3.0, hidden=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.large(x)
        for _ in range(4):
            x = self.shared(x)
        return x


class Auxiliary(nn.Module):
    """A main path, and an auxiliary head with small weights that the loss weighs a thousandfold."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.auxiliary = Block(1.0), Block(1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.main(x), self.auxiliary(x)


def plain_loss(model: nn.Module, batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def weighted_loss(model: nn.Module, batch) -> Tensor:
    first, second = (found - wanted for found, wanted in zip(model(batch[0]), batch[1], strict=True))
    return first.square().mean() + 1000.0 * second.square().mean()


TRAPS = {
    "fragile": (Fragile, "blocks.1", plain_loss),
    "tied": (Tied, "shared", plain_loss),
    "auxiliary": (Auxiliary, "auxiliary", weighted_loss),
}


def trap(name: str) -> tuple[Network, str]:
    """Return a network that fits its data exactly, and the block whose small weights mislead magnitude."""
    kind, fragile, loss_fn = TRAPS[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = kind().eval()
        for parameter in model.get_submodule(fragile).parameters():
            parameter.mul_(0.3)
        batches = [(x, model(x)) for x in torch.randn(6, 32, WIDTH)]
    return Network(name, model, torch.zeros(1, WIDTH), batches, loss_fn), fragile


def pruned(network: Network, *advice: pp.Advice, scorer: str = "magnitude", **given):
    data = {"batches": network.batches, "loss_fn": network.loss_fn, **given}
    return pp.prune(network.model, network.example_inputs, 0.7, scorer, allocation="blocks", advice=advice, **data)


def loss_of(network: Network, result) -> float:
    return held_out_loss(result.model, Data((), network.batches[1::2], network.loss_fn), 0)


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_survived_with_advice_and_not_without(name, compensate):
    """Magnitude cuts the block that decides the loss; advice to keep it is measured, kept, and takes most of the loss away."""
    network, fragile = trap(name)
    without = pruned(network, compensate=compensate)
    advised = pruned(network, pp.Advice("keep", fragile, "its output is amplified"), compensate=compensate)
    assert loss_of(network, without) > (2 if compensate else 4) * loss_of(network, advised)
    assert advised.plan.options["keep"] == [fragile]
    assert advised.plan.macs <= advised.plan.target_macs
    note = advised.plan.notes[-1]
    assert note.startswith(f"Advice to keep for '{fragile}' (its output is amplified) was kept, held-out loss ")
    assert note in advised.report.notes


def test_advice_that_does_not_help_is_dropped_and_recorded():
    """Keeping everything but the fragile block, a pattern without a match, and keeping all: the plan is that without advice."""
    network, _ = trap("fragile")
    wrong = [pp.Advice("keep", "blocks.0", "first blocks matter"), pp.Advice("keep", "nowhere"), pp.Advice("keep", "blocks")]
    result = pruned(network, *wrong)
    assert result.plan.kept == pruned(network).plan.kept
    verdicts = result.plan.notes[-3:]
    assert "(first blocks matter) was dropped, held-out loss" in verdicts[0]
    assert "'nowhere' was dropped: " in verdicts[1]
    assert "'blocks' was dropped: " in verdicts[2]


def test_floors_and_equal_widths_are_advice_too():
    """A floor that helps is in the plan; of two pieces of advice, the second is tried on top of the first."""
    network, fragile = trap("fragile")
    result = pruned(network, pp.Advice("floor", fragile, least=1.0), pp.Advice("same_width", "*.up.weight"))
    assert result.plan.options["floors"] == {fragile: 1.0}
    assert loss_of(network, result) < 0.25 * loss_of(network, pruned(network))
    assert result.plan.notes[-1].startswith("Advice to same_width for '*.up.weight' was ")


def test_advice_needs_data():
    """It is measured, so a network without data takes none."""
    network, fragile = trap("fragile")
    with pytest.raises(MissingNeedError, match="Advice is measured, which needs"):
        pruned(network, pp.Advice("keep", fragile), batches=None)


@pytest.mark.parametrize(
    "given", [{"kind": "wish"}, {"pattern": ""}, {"kind": "floor"}, {"least": 0.5}, {"kind": "floor", "least": -1}], ids=str
)
def test_malformed_advice_is_an_error(given, tmp_path):
    """In Python and in a file, whose message names the entry; a floor out of range is dropped when it is tried."""
    entry = {"kind": "keep", "pattern": "blocks.1", **given}
    if entry.get("least") == -1:
        network, _ = trap("fragile")
        assert "was dropped: " in pruned(network, pp.Advice(**entry)).plan.notes[-1]
        return
    with pytest.raises(InputError):
        pp.Advice(**entry)
    (tmp_path / "a.json").write_text(json.dumps([{"kind": "keep", "pattern": "x"}, entry]))
    with pytest.raises(InputError, match=r"a\.json, entry 1: "):
        read_advice(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"kind": "keep"}]', '[{"kind": "keep", "pattern": "x", "why": "y"}]', "nonsense"])
def test_a_file_that_holds_no_advice_is_an_error(text, tmp_path):
    """Whatever is wrong with it."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        read_advice(tmp_path / "a.json")


def test_the_command_reads_a_file(tmp_path, monkeypatch):
    """The verdict is in the plan's notes, with --plan-only and with a cut; a plan takes no advice."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK + MEASURED)
    Path("advice.json").write_text(json.dumps([{"kind": "keep", "pattern": "*", "reason": "all of it"}]))
    given = ("prune", "--model", "net.py", "--advice", "advice.json", "--json")
    for extra in (("--plan-only", "--out", "p.json"), ("--out", "cut")):
        notes = json.loads(succeed(*given, *extra).stdout)["plan"]["notes"]
        assert any(note.startswith("Advice to keep for '*' (all of it) was dropped: ") for note in notes)
    assert "--advice cannot be given with --plan" in " ".join(
        fail("prune", "--model", "net.py", "--plan", "p.json", "--advice", "advice.json").split()
    )
