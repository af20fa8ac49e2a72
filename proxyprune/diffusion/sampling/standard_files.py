"""Files beside whole networks that make their folder one of diffusers: `Model.from_pretrained(folder)` loads it without proxyprune.

Weights keep their file name. diffusers finds them through its index of sharded checkpoints, which here names one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from safetensors import safe_open

from proxyprune.support.files import write_json

CONFIG = "config.json"
INDEX_OF_WEIGHTS = "diffusion_pytorch_model.safetensors.index.json"


def write_standard_files(weights: Path, network: Mapping[str, Any] | None) -> None:
    """Write config and index of weights beside the weights of a network that is not cut.

    Args:
        weights: Safetensors file with all of its weights.
        network: Class and settings of the diffusers network; None, for which nothing is written, if it is none of diffusers.

    Raises:
        StorageError: If a file cannot be written.
    """
    if network is None:
        return
    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
    kept = {"_class_name": network["class"], "_diffusers_version": diffusers.__version__}
    write_json(weights.parent / CONFIG, kept | dict(network["config"]))
    index = {"metadata": {"total_size": weights.stat().st_size}, "weight_map": dict.fromkeys(names, weights.name)}
    write_json(weights.parent / INDEX_OF_WEIGHTS, index)
