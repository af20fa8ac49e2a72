"""Networks in which all query heads share one key head: calls with a mask, which no trace saw, work after query heads left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import proxyprune as pp

transformers = pytest.importorskip("transformers")


def gpt_bigcode() -> nn.Module:
    """Return a decoder with one key head, as in StarCoder."""
    config = transformers.GPTBigCodeConfig(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, multi_query=True)
    return transformers.GPTBigCodeForCausalLM(config)


def llama() -> nn.Module:
    """Return a decoder of Llama's kind with one key head."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, max_position_embeddings=32, **sizes))


def heads(model: nn.Module) -> list[int]:
    """Return what attention modules state."""
    return [module.num_key_value_groups for module in model.modules() if hasattr(module, "num_key_value_groups")]


def logits(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask).logits


@pytest.mark.parametrize("build", [gpt_bigcode, llama])
@pytest.mark.parametrize("share", [0.6, 0.3])
def test_a_padded_batch_gives_what_single_sequences_give(build, share: float):
    """The trace has no mask; with one, the keys are repeated as often as there are query heads now."""
    torch.manual_seed(0)
    model, tokens = build().eval(), torch.randint(1, 60, (1, 8))
    result = pp.prune(model, {"input_ids": tokens}, share)
    assert min(heads(result.model)) < 4
    batch, mask = torch.cat([tokens, torch.zeros_like(tokens)]), torch.ones(2, 8, dtype=torch.long)
    batch[1, 3:], mask[1, :3] = tokens[0, :5], 0
    found = logits(result.model, batch, mask)
    torch.testing.assert_close(found[:1], logits(result.model, tokens, torch.ones_like(tokens)), rtol=1e-4, atol=1e-5)
    assert found.isfinite().all()


@pytest.mark.parametrize("build", [gpt_bigcode, llama])
def test_greedy_tokens_are_those_without_a_cache(build):
    """A cache of fixed size comes with a mask; tokens agree with and without it."""
    torch.manual_seed(0)
    model, tokens = build().eval(), torch.randint(1, 60, (1, 8))
    pruned = pp.prune(model, {"input_ids": tokens}, 0.6).model
    ways = ({"use_cache": False}, {"use_cache": True}, {"cache_implementation": "static", "disable_compile": True})
    found = [pruned.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, **way) for way in ways]
    assert all(torch.equal(found[0], other) for other in found)
