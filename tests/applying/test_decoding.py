"""A pruned model decodes with a cache as it does without, or the block whose removal breaks that is kept."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from language_models import FAMILIES, assert_decodes_alike, assert_trains, language_model, prompt
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import VerificationError
from proxyprune.surgery.decoding import find_decoding


def without(model: nn.Module, inputs: Any, *blocks: str, inplace: bool = False) -> nn.Module:
    """Remove whole blocks."""
    graph = pp.trace(model, inputs, probe=False)
    ranking = pp.score(graph, "magnitude", model=model)
    scores = {block: 0.01 if block in blocks else 0.9 for block in ranking.scores}
    left = sum(block.macs for block in graph.blocks if block.id not in blocks) + graph.macs - sum(block.macs for block in graph.blocks)
    target = (left + 1) / graph.macs
    plan = pp.make_plan(graph, dataclasses.replace(ranking, scores=scores), target=target, mode="depth", model=model)
    assert set(plan.removed_blocks) == set(blocks)
    return pp.apply_plan(model, plan, inputs, inplace=inplace)


@pytest.mark.parametrize("mode", ["width", "depth", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_language_model_decodes_and_trains(family: str, mode: str) -> None:
    """Greedy tokens are equal with a dynamic cache, a static one and none, and a training step runs."""
    model, tokens = language_model(family), prompt()
    small = pp.prune(model, {"input_ids": tokens, "use_cache": mode == "both"}, 0.6, mode=mode).model
    assert_decodes_alike(small, tokens)
    assert_trains(small, tokens)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("numbers", [(0,), (1,), (3,), (0, 1), (0, 2)])
def test_layers_that_stay_fill_the_first_slots(numbers: tuple[int, ...], use_cache: bool) -> None:
    """Whichever layers of a Llama are removed, the cache has the length of the sequence and a step equals the whole pass."""
    model, tokens = language_model("llama"), prompt()
    small = without(model, {"input_ids": tokens, "use_cache": use_cache}, *(f"model.layers.{number}" for number in numbers))
    stay = [layer.self_attn.layer_idx for layer in small.model.layers if hasattr(layer, "self_attn")]
    assert stay == list(range(len(stay)))
    with torch.no_grad():
        filled = small(tokens, use_cache=True).past_key_values
        assert filled.get_seq_length() == tokens.shape[1]
        step = small(tokens[:, :1], past_key_values=filled, use_cache=True).logits[:, -1]
        whole = small(torch.cat([tokens, tokens[:, :1]], 1), use_cache=False).logits[:, -1]
    torch.testing.assert_close(step, whole, rtol=1e-4, atol=1e-4)
    assert_decodes_alike(small, tokens)


def test_a_layer_keeps_the_kind_of_its_slot() -> None:
    """Without the first layer of a Gemma 3, the other sliding layer takes the first slot, and the full layers keep theirs."""
    model, tokens = language_model("gemma3"), prompt()
    small = without(model, {"input_ids": tokens, "use_cache": False}, "model.layers.0")
    assert [small.model.layers[number].self_attn.layer_idx for number in (1, 2, 3)] == [1, 0, 3]
    assert [model.model.layers[number].self_attn.layer_idx for number in (0, 1, 2, 3)] == [0, 1, 2, 3]
    assert_decodes_alike(small, tokens)


def test_a_model_pruned_in_place_and_one_that_is_loaded_decode(tmp_path: Any) -> None:
    """The new positions are part of the surgery: in place and after loading, tokens are the same as with a copy."""
    model, tokens = language_model("llama"), prompt()
    inputs = {"input_ids": tokens, "use_cache": False}
    result = pp.prune(model, inputs, 0.7, mode="depth")
    loaded = pp.load(pp.save(result, tmp_path / "pruned"), lambda: language_model("llama"))
    assert_decodes_alike(loaded, tokens)
    other = copy.deepcopy(model)
    assert without(other, inputs, "model.layers.0", inplace=True) is other
    assert_decodes_alike(other, tokens)


class Layer(nn.Module):
    """Mix a sequence with what the cache holds of it; `number` chooses the slot, and in some models also a factor."""

    def __init__(self, number: int, *, scaled: bool) -> None:
        super().__init__()
        self.number, self.scaled, self.rank = number, scaled, number
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, memory: list[Tensor] | None = None) -> Tensor:
        """Add the mean over the sequence so far."""
        if memory is not None:
            held = memory[self.number]
            seen = torch.cat([held, x], 1)
            memory[self.number] = seen
        else:
            seen = x
        start = seen.shape[1] - x.shape[1]
        counts = torch.arange(1, seen.shape[1] + 1, dtype=x.dtype)[:, None]
        mean = (seen.cumsum(1) / counts)[:, start:]
        out = self.second(torch.relu(self.first(mean)))
        return x + (out / (self.number + 1.0) if self.scaled else out)


class Decoder(nn.Module):
    """Keep one slot for each layer; the first slot states how long the sequence is."""

    def __init__(self, *, scaled: bool) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(40, 16)
        self.layers = nn.ModuleList(Layer(number, scaled=scaled) for number in range(4))
        self.head = nn.Linear(16, 20)

    def forward(self, tokens: Tensor, past: list[Tensor] | None = None, use_past: bool = False) -> Any:
        """Return logits, with the cache if that is wanted."""
        if use_past and past is None:
            past = [torch.zeros(len(tokens), 0, 16) for _ in self.layers]
        start = 0 if past is None else past[0].shape[1]
        x = self.embed(tokens) + self.places(torch.arange(start, start + tokens.shape[1]))
        for layer in self.layers:
            x = layer(x, memory=past)
        logits = self.head(x)
        return (logits, past) if use_past else logits


def decoder(*, scaled: bool) -> Decoder:
    """Build a decoder with large weights."""
    torch.manual_seed(0)
    model = Decoder(scaled=scaled).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    return model


def test_a_cache_is_found_by_what_it_does() -> None:
    """The list that a hand-written decoder returns second and takes as `past` is detected, and the model is left as it was."""
    model, tokens = decoder(scaled=False), torch.randint(0, 20, (1, 10))
    before = copy.deepcopy(vars(model.layers[1]))
    found = find_decoding(model, (tokens,))
    assert found is not None
    assert (found.tokens, found.cache, found.output) == ("tokens", "past", 1)
    assert {name: value for name, value in vars(model.layers[1]).items() if isinstance(value, int)} == {
        name: value for name, value in before.items() if isinstance(value, int)
    }
    assert find_decoding(nn.Sequential(nn.Linear(4, 4)), (torch.randn(1, 4),)) is None


def test_only_an_attribute_that_chooses_the_slot_is_renumbered() -> None:
    """`number` chooses the slot and is renumbered; `rank` equals the position too, but nothing moves with it."""
    small = without(decoder(scaled=False), (torch.randint(0, 20, (1, 10)),), "layers.0")
    assert [small.layers[index].number for index in (1, 2, 3)] == [0, 1, 2]
    assert [small.layers[index].rank for index in (1, 2, 3)] == [1, 2, 3]


def test_a_position_with_a_second_use_keeps_the_block() -> None:
    """If the number is also a factor, it cannot change: removing the first layer raises and names it, and `prune` keeps it."""
    model, tokens = decoder(scaled=True), torch.randint(0, 20, (1, 10))
    with pytest.raises(VerificationError, match=r"without block 'layers\.0' decodes wrongly with a cache") as caught:
        without(model, (tokens,), "layers.0")
    assert caught.value.module == "layers.0"
    graph = pp.trace(model, (tokens,), probe=False)
    ranking = pp.score(graph, "magnitude", model=model)
    low = dataclasses.replace(ranking, scores={block: 0.01 if block == "layers.0" else 0.9 for block in ranking.scores})
    from proxyprune.api import prune_ranked
    from proxyprune.planning.request import PlanRequest

    result = prune_ranked(model, (tokens,), graph, low, PlanRequest.of(0.8, mode="depth"))
    assert result.plan.removed_blocks
    assert "layers.0" not in result.plan.removed_blocks
