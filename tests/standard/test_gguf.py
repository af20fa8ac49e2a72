"""A pruned Llama and its relatives as GGUF: what transformers reads back generates the same tokens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

import proxyprune as pp
from proxyprune.saving.plain_folder import differences_elsewhere, write_plain

pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from llama_gguf import write_gguf


def llama(**changes: object) -> transformers.LlamaForCausalLM:
    """Return a Llama with grouped queries and weights far from their tiny initial values, so that its tokens vary."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    return model


CASES = {"width": ("width", {}), "depth": ("depth", {}), "tied": ("width", {"tie_word_embeddings": True})}
INPUTS = {"input_ids": torch.randint(96, (1, 12), generator=torch.Generator().manual_seed(1))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return each pruned Llama with its plain folder; all folders are loaded elsewhere in one process, as `save_pretrained` does."""
    written = {}
    for name, (mode, changes) in CASES.items():
        result = pp.prune(llama(**changes), INPUTS, 0.6, uniform=True, mode=mode)
        written[name] = (result, write_plain(result, tmp_path_factory.mktemp(name) / "plain"))
    differences = differences_elsewhere([plain for _, plain in written.values()])
    return {
        name: (result, plain.folder, difference) for (name, (result, plain)), difference in zip(written.items(), differences, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_a_pruned_llama_survives_gguf(saved, name, tmp_path):
    """Greedy tokens after saving, GGUF and transformers' reader are those of the pruned network; logits agree."""
    result, folder, difference = saved[name]
    assert difference is None
    write_gguf(folder, tmp_path / "small.gguf")
    read = transformers.LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32).eval()
    plain = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    assert read.config.num_hidden_layers == plain.config.num_hidden_layers
    assert read.config.hidden_size == plain.config.hidden_size
    with torch.no_grad():
        torch.testing.assert_close(read(**INPUTS).logits, result.model(**INPUTS).logits)
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    tokens = [network.generate(INPUTS["input_ids"], **options) for network in (plain, read)]
    assert len(tokens[0].unique()) > 4
    assert torch.equal(*tokens)


@pytest.mark.parametrize(("kind", "changes"), [("Mistral", {}), ("Qwen2", {}), ("Qwen3", {"head_dim": 128, "num_attention_heads": 2})])
def test_pruned_relatives_of_a_llama_survive_gguf(kind, changes, tmp_path):
    """Logits of a Mistral and of Qwens after the round trip are those of the pruned network."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = sizes | {"num_key_value_heads": 2, "max_position_embeddings": 64} | changes
    network = getattr(transformers, f"{kind}ForCausalLM")
    model = network(getattr(transformers, f"{kind}Config")(**settings)).eval()
    inputs = {"input_ids": torch.randint(96, (1, 12), generator=torch.Generator().manual_seed(1))}
    result = pp.prune(model, inputs, 0.7, uniform=True)
    pp.save_pretrained(result, tmp_path / "plain")
    write_gguf(tmp_path / "plain", tmp_path / "small.gguf")
    read = network.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32).eval()
    assert read.config.intermediate_size == result.model.config.intermediate_size < 160
    with torch.no_grad():
        torch.testing.assert_close(read(**inputs).logits, result.model(**inputs).logits)
