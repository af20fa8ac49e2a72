"""Recurrent layers: hidden units are cut across gates, layers and directions, and so are inputs; the cost is exact."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from masking import assert_equals_masking, randomise
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import proxyprune as pp

LENGTH, INPUTS, INNER, HIDDEN = 5, 8, 24, 16
X = torch.randn(1, LENGTH, INPUTS, generator=torch.Generator().manual_seed(0))


class Sequence(nn.Module):
    """A linear layer, a recurrent one, and a linear layer on its outputs."""

    def __init__(self, layer: nn.RNNBase, *, ends: bool = False) -> None:
        super().__init__()
        self.first, self.layer, self.ends = nn.Linear(INPUTS, INNER), layer, ends
        with torch.no_grad():
            width = layer(torch.zeros(1, 1, INNER))[0].shape[-1]
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        output, state = self.layer(x if self.layer.batch_first else x.transpose(0, 1))
        if not self.ends:
            return self.last(output)
        last = state[0] if isinstance(state, tuple) else state
        return self.last(last[-1])


class Stepped(nn.Module):
    """A cell that is called once for each step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(INPUTS, INNER), cell, nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in self.first(x).unbind(1):
            state = self.cell(step, state)
        return self.last(state[0] if isinstance(state, tuple) else state)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Sequence(nn.LSTM(INNER, HIDDEN, batch_first=True)),
    "lstm, deep, both directions": lambda: Sequence(nn.LSTM(INNER, HIDDEN, num_layers=3, bidirectional=True)),
    "lstm, projected": lambda: Sequence(nn.LSTM(INNER, 2 * HIDDEN, num_layers=2, bidirectional=True, proj_size=HIDDEN, batch_first=True)),
    "lstm, no bias": lambda: Sequence(nn.LSTM(INNER, HIDDEN, bias=False)),
    "lstm, last state": lambda: Sequence(nn.LSTM(INNER, HIDDEN, num_layers=2, batch_first=True), ends=True),
    "gru": lambda: Sequence(nn.GRU(INNER, HIDDEN, num_layers=2, batch_first=True)),
    "gru, both directions": lambda: Sequence(nn.GRU(INNER, HIDDEN, bidirectional=True)),
    "rnn, tanh": lambda: Sequence(nn.RNN(INNER, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)),
    "rnn, relu": lambda: Sequence(nn.RNN(INNER, HIDDEN, nonlinearity="relu")),
    "lstm cell": lambda: Stepped(nn.LSTMCell(INNER, HIDDEN)),
    "gru cell": lambda: Stepped(nn.GRUCell(INNER, HIDDEN)),
    "rnn cell": lambda: Stepped(nn.RNNCell(INNER, HIDDEN)),
}


def sizes(model: nn.Module) -> dict[str, int]:
    """Size attributes of the recurrent layer."""
    layer = model.layer if isinstance(model, Sequence) else model.cell
    return {name: getattr(layer, name) for name in ("input_size", "hidden_size", "proj_size") if getattr(layer, name, 0)}


def cost(model: nn.Module) -> int:
    """MACs by hand: every matrix of a layer is used once for each step."""
    linear, steps = LENGTH * model.first.weight.numel(), LENGTH
    layer = model.layer if isinstance(model, Sequence) else model.cell
    read = 1 if isinstance(model, Stepped) or model.ends else LENGTH
    return linear + steps * sum(p.numel() for p in layer.parameters() if p.dim() == 2) + read * model.last.weight.numel()


@pytest.mark.parametrize("name", NETWORKS)
def test_recurrent_layers_are_cut(name: str, tmp_path) -> None:
    """Inputs, hidden units and a projected state all shrink; the result equals masking, costs what was planned, and loads bit for bit."""
    torch.manual_seed(1)
    model = randomise(NETWORKS[name]().eval())
    result = pp.prune(model, X, 0.5)
    before, after = sizes(model), sizes(result.model)
    assert before.keys() == after.keys()
    assert all(after[key] < before[key] for key in before), (before, after)
    assert cost(model) == result.plan.base_macs
    assert cost(result.model) == result.plan.macs <= 0.5 * result.plan.base_macs
    assert_equals_masking(model, result.model, result.graph, result.plan, (X,))
    pp.save(result, tmp_path / "pruned")
    loaded = pp.load(tmp_path / "pruned", NETWORKS[name])
    assert torch.equal(loaded(X), result.model(X))
    loaded.train()(X).sum().backward()


def test_hidden_units_are_one_group() -> None:
    """One unit is a row of each of four gates in every layer and direction, and stands twice in the output of both directions."""
    graph = pp.trace(NETWORKS["lstm, deep, both directions"](), X)
    (group,) = (group for group in graph.prunable if any(member.parameter == "layer.weight_hh_l0" for member in group.members))
    assert group.atoms == HIDDEN
    positions = {(member.parameter, member.dim): member.positions for member in group.members}
    assert positions["layer.weight_hh_l2_reverse", 0][3].tolist() == [3, 19, 35, 51]
    assert positions["layer.weight_ih_l1", 1][3].tolist() == [3, 19]
    assert positions["last.weight", 1][3].tolist() == [3, 19]


def test_a_layer_is_cut_in_place() -> None:
    """The weights that a recurrent layer keeps in a list follow, so that the next call runs on the cut ones."""
    model = randomise(NETWORKS["lstm"]().eval())
    expected = pp.prune(model, X, 0.5).model(X)
    pp.prune(model, X, 0.5, inplace=True)
    assert torch.equal(model(X), expected)
    assert torch.equal(copy.deepcopy(model)(X), expected)


class Started(nn.Module):
    """A state that the caller passes, and one that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(INPUTS, INNER), nn.GRU(INNER, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 3)
        self.start = nn.Parameter(torch.randn(1, 1, HIDDEN))

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        return self.last(self.layer(self.first(x), self.start if state is None else state)[0])


def test_states_from_outside() -> None:
    """A learned state is cut with the units; a state that the caller passes keeps them whole, while inputs are cut."""
    model = randomise(Started().eval())
    result = pp.prune(model, X, 0.5)
    assert result.model.start.shape[-1] == result.model.layer.hidden_size < HIDDEN
    assert_equals_masking(model, result.model, result.graph, result.plan, (X,))
    inputs = (X, torch.randn(1, 1, HIDDEN))
    result = pp.prune(model, inputs, 0.8)
    assert (result.model.layer.hidden_size, result.model.layer.input_size < INNER) == (HIDDEN, True)
    assert_equals_masking(model, result.model, result.graph, result.plan, inputs)


class Packed(nn.Module):
    """Sequences of different lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(INPUTS, INNER), nn.LSTM(INNER, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.first(x), torch.tensor([LENGTH, LENGTH - 2]), batch_first=True)
        return self.last(pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0])


def test_packed_sequences_are_cut() -> None:
    """Packing and padding leave features as they are; only steps that exist cost something."""
    model, inputs = randomise(Packed().eval()), torch.cat([X, X.flip(1)])
    result = pp.prune(model, inputs, 0.6)
    matrices = sum(p.numel() for p in model.layer.parameters() if p.dim() == 2)
    assert result.plan.base_macs == 2 * LENGTH * (INPUTS * INNER + HIDDEN * 3) + (2 * LENGTH - 2) * matrices
    assert result.plan.macs <= 0.6 * result.plan.base_macs
    assert result.model.layer.hidden_size < HIDDEN
    assert_equals_masking(model, result.model, result.graph, result.plan, (inputs,))
