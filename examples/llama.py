"""A small Llama with grouped queries (8 query heads share 2 pairs of keys and values), as a model file.

    proxyprune describe --model examples/llama.py
    proxyprune prune --model examples/llama.py --target 0.7 --metric params

A pair of keys and values leaves together with the queries that share it, so the ratio of 4 stays. Needs `transformers`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 64
BYTES = 256


def build_model() -> LlamaForCausalLM:
    """Four layers that read bytes."""
    config = LlamaConfig(
        vocab_size=BYTES,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def example_inputs() -> dict[str, Tensor]:
    return {"input_ids": torch.zeros(1, CONTEXT, dtype=torch.long)}


def calibration_batches() -> list[Tensor]:
    """Text that every Python has with it (the docstring of `argparse`), as windows of bytes, [windows, context + 1]."""
    import argparse

    text = torch.frombuffer(bytearray((argparse.__doc__ or "").encode()), dtype=torch.uint8).long()
    windows = text[: (len(text) - 1) // CONTEXT * CONTEXT + 1].unfold(0, CONTEXT + 1, CONTEXT)
    return list(windows.split(8))


def loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Cross-entropy of the next byte."""
    logits = model(input_ids=batch[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
