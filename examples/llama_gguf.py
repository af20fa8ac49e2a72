"""Write a folder of a Llama, Mistral or Qwen as GGUF, the file that llama.cpp and its relatives read.

    proxyprune prune --model examples/llama.py --target 0.7 --uniform --out small --save-pretrained plain
    python examples/llama_gguf.py plain small.gguf

GGUF has one width for all layers, so the plan must be uniform. Weights are written in single precision; quantise the file afterwards
(`llama-quantize`). For a network with a tokenizer that llama.cpp runs itself, use its converter `convert_hf_to_gguf.py` on the same
folder: it also writes the vocabulary. Needs `gguf` and `safetensors`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""Type of the model in its config -> the name under which llama.cpp reads it."""


def write_gguf(folder: str | Path, file: str | Path) -> None:
    """Write config and weights of a folder by `save_pretrained` of a causal language model as GGUF.

    Args:
        folder: With config.json and model.safetensors.
        file: Where to.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in ARCHITECTURES:
        raise ValueError(f"Expected one of {', '.join(ARCHITECTURES)}, found '{config['model_type']}' in '{folder}'.")
    architecture = ARCHITECTURES[config["model_type"]]
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    layers, head_size = config["num_hidden_layers"], config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(layers)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    names = gguf.get_tensor_name_map(architecture, layers)
    in_pairs = architecture == gguf.MODEL_ARCH.LLAMA
    for name, tensor in load_file(Path(folder) / "model.safetensors").items():
        if in_pairs and name.endswith("q_proj.weight"):
            tensor = _paired(tensor, heads)
        elif in_pairs and name.endswith("k_proj.weight"):
            tensor = _paired(tensor, shared)
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise ValueError(f"GGUF has no name for '{name}' in a {config['model_type']}.")
        writer.add_tensor(written, np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of llama.cpp, which rotates neighbours where transformers rotates the two halves of a head."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a folder of a Llama, Mistral or Qwen as GGUF.")
    parser.add_argument("folder")
    parser.add_argument("file")
    arguments = parser.parse_args()
    write_gguf(arguments.folder, arguments.file)
