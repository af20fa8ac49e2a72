"""Tiny causal language models of transformers with random weights, and greedy generation in three ways."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCABULARY = 96
WAYS: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "dynamic cache": {"use_cache": True},
    "static cache": {"use_cache": True, "cache_implementation": "static", "disable_compile": True},
}
_SIZES = {"vocab_size": VOCABULARY, "intermediate_size": 64, "num_hidden_layers": 4, "max_position_embeddings": 64}


def _llama(transformers: Any) -> nn.Module:
    """Nine heads in three groups, so that the head counts equal numbers of layers as well."""
    config = transformers.LlamaConfig(**_SIZES, hidden_size=72, num_attention_heads=9, num_key_value_heads=3)
    return transformers.LlamaForCausalLM(config)


def _qwen3(transformers: Any) -> nn.Module:
    config = transformers.Qwen3Config(**_SIZES, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    return transformers.Qwen3ForCausalLM(config)


def _gemma3(transformers: Any) -> nn.Module:
    """Layers with and without a sliding window, shorter than the sequences that the tests generate."""
    kinds = ["sliding_attention", "full_attention"] * 2
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Gemma3TextConfig(**_SIZES, hidden_size=32, **heads, sliding_window=8, layer_types=kinds)
    return transformers.Gemma3ForCausalLM(config)


def _gpt2(transformers: Any) -> nn.Module:
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=4, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def _mixtral(transformers: Any) -> nn.Module:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**_SIZES, hidden_size=32, **heads, num_local_experts=4))


def _mamba(transformers: Any) -> nn.Module:
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=4)
    return transformers.MambaForCausalLM(config)


_FAMILIES: dict[str, Callable[[Any], nn.Module]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "mixtral": _mixtral,
    "mamba": _mamba,
}
FAMILIES = tuple(_FAMILIES)


def language_model(family: str) -> nn.Module:
    """Build a model in eval mode; large weights make wrong positions change its tokens."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = _FAMILIES[family](transformers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def prompt(length: int = 12) -> Tensor:
    """Return a sequence of tokens, [1, length]."""
    return torch.randint(3, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))


def greedy(model: nn.Module, tokens: Tensor, way: str, new: int = 6) -> list[int]:
    """Generate greedily, in one of `WAYS`."""
    limits = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        found = copy.deepcopy(model).generate(tokens, attention_mask=torch.ones_like(tokens), **limits, **WAYS[way])
    return list(found[0].tolist())


def assert_decodes_alike(model: nn.Module, tokens: Tensor) -> None:
    """Greedy tokens are equal with a dynamic cache, with a static one and without."""
    found = {way: greedy(model, tokens, way) for way in WAYS}
    assert len({tuple(sequence) for sequence in found.values()}) == 1, found


def assert_trains(model: nn.Module, tokens: Tensor) -> None:
    """Check that a training step runs, and that every trained parameter gets a gradient or is not reached at all."""
    trained = copy.deepcopy(model).train()
    trained(tokens, labels=tokens).loss.backward()
    assert any(parameter.grad is not None for parameter in trained.parameters())
