"""Adapters that PEFT itself writes and reads: variants of LoRA over a cut, and networks pruned with the adapter around them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import proxyprune as pp
from proxyprune.errors import InputError

peft = pytest.importorskip("peft", reason="needs the package peft: pip install peft")

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def mistral() -> nn.Module:
    """Return a small language model."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=32, use_cache=False)
    return transformers.MistralForCausalLM(config).eval()


def gpt2() -> nn.Module:
    """Return a network whose weights are transposed."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


def wrapped(model: nn.Module, **settings: Any) -> Any:
    """Return a PEFT model around a copy of a network, with random entries in the adapter."""
    found = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, **settings)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.1)
            elif "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return found


INPUTS = {"input_ids": torch.arange(3, 15)[None]}

PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.2.mlp.down_proj": 6},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 32},
    "target_modules": ["q_proj", "down_proj"],
}


@pytest.mark.parametrize("mode", ["width", "depth"])
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (mistral, PATTERNS | {"use_rslora": True, "lora_alpha": 16}),
        (mistral, {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}),
        (mistral, {"target_modules": ["up_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers", "bias": "lora_only"}),
        (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    ],
    ids=["patterns", "embedding", "some-layers", "transposed"],
)
def test_peft_loads_what_it_saved_after_the_cut(make: Any, settings: dict[str, Any], mode: str, tmp_path: Path) -> None:
    """The dense network with its adapter merged and cut equals the pruned and the plain network, each with its carried folder."""
    model = make()
    adapter = wrapped(model, **settings)
    adapter.save_pretrained(tmp_path / "dense", save_embedding_layers=False)
    result = pp.prune(model, INPUTS, 0.7, mode=mode, uniform=True)
    pp.carry_lora(tmp_path / "dense", result, tmp_path / "pruned")
    pp.carry_lora(tmp_path / "dense", result, tmp_path / "plain", plain=True)
    pp.save_pretrained(result, tmp_path / "network")
    network: Any = type(model)
    expected = pp.apply_plan(copy.deepcopy(adapter).merge_and_unload().eval(), result.plan, INPUTS, graph=result.graph)
    one = peft.PeftModel.from_pretrained(copy.deepcopy(result.model), tmp_path / "pruned")
    other = peft.PeftModel.from_pretrained(network.from_pretrained(tmp_path / "network"), tmp_path / "plain")
    with torch.no_grad():
        logits = [net.eval()(**INPUTS).logits for net in (expected, one, other, result.model)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[3], logits[0], atol=1e-2)


def test_magnitudes_are_carried_past_removed_layers(tmp_path: Path) -> None:
    """DoRA follows whole layers; where a layer loses inputs, its magnitudes are an error and nothing is written."""
    model = mistral()
    adapter = wrapped(model, use_dora=True, target_modules=["q_proj", "gate_proj"])
    adapter.save_pretrained(tmp_path / "dense")
    result = pp.prune(model, INPUTS, 0.7, mode="depth", uniform=True)
    assert pp.carry_lora(tmp_path / "dense", result, tmp_path / "pruned").dropped
    found = peft.PeftModel.from_pretrained(copy.deepcopy(result.model), tmp_path / "pruned").eval()
    expected = pp.apply_plan(copy.deepcopy(adapter).merge_and_unload().eval(), result.plan, INPUTS, graph=result.graph)
    with torch.no_grad():
        torch.testing.assert_close(found(**INPUTS).logits, expected(**INPUTS).logits, rtol=1e-5, atol=1e-5)
    narrow = pp.prune(model, INPUTS, 0.6, uniform=True)
    with pytest.raises(InputError, match="holds magnitudes of DoRA"):
        pp.carry_lora(tmp_path / "dense", narrow, tmp_path / "narrow")
    assert not (tmp_path / "narrow").exists()


@pytest.mark.parametrize("uniform", [True, False])
def test_a_wrapped_network_keeps_its_ranks(uniform: bool) -> None:
    """A PEFT model is pruned with its adapter: every rank stays, `r` is the rank, and the merged network computes the same."""
    adapter = wrapped(mistral(), **PATTERNS)
    result = pp.prune(adapter, INPUTS, 0.7, uniform=uniform)
    model: Any = result.model
    layers = [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "r")]
    assert sorted(module.r["default"] for module in layers) == [2, 2, 2, 4, 4, 6]
    assert all(module.lora_A["default"].weight.shape[0] == module.r["default"] for module in layers)
    with torch.no_grad():
        before = model(**INPUTS).logits
        after = model.merge_and_unload()(**INPUTS).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
