"""Networks larger than this machine: describe, score from the text alone, and plan, on weights that do not exist.

Each network is read in a process of its own, so that its peak memory can be measured.

    python benchmarks/large_networks.py            # all three; writes results/large_networks.json
    python benchmarks/large_networks.py sdxl       # one, prints its JSON
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

from common import environment, print_table, save

LIMIT_SECONDS, LIMIT_GIB = 60.0, 1.5


def stable_diffusion_15() -> tuple[Any, dict[str, Any]]:
    """Return the U-Net of Stable Diffusion 1.5 (860 M parameters) on 64 x 64 latents."""
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768, attention_head_dim=8
    )
    return unet, {"sample": torch.empty(1, 4, 64, 64), "timestep": torch.empty(1), "encoder_hidden_states": torch.empty(1, 77, 768)}


def sdxl() -> tuple[Any, dict[str, Any]]:
    """Return the U-Net of SDXL (2.6 B parameters) on 128 x 128 latents."""
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    inputs = {"sample": torch.empty(1, 4, 128, 128), "timestep": torch.empty(1), "encoder_hidden_states": torch.empty(1, 77, 2048)}
    return unet, inputs | {"added_cond_kwargs": {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}}


def flux() -> tuple[Any, dict[str, Any]]:
    """Return the transformer of Flux.1 (12 B parameters) on a 1024 x 1024 image: 4,096 image and 512 text tokens."""
    import torch
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(guidance_embeds=True)
    inputs = {
        "hidden_states": torch.empty(1, 4096, 64),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
        "pooled_projections": torch.empty(1, 768),
        "timestep": torch.empty(1),
        "img_ids": torch.empty(4096, 3),
        "txt_ids": torch.empty(512, 3),
        "guidance": torch.empty(1),
    }
    return transformer, inputs


NETWORKS = {"sd15": stable_diffusion_15, "sdxl": sdxl, "flux": flux}


def measure(name: str) -> dict[str, Any]:
    """Build on the meta device, trace, describe, score and plan; seconds and peak memory of this process."""
    import torch

    import proxyprune as pp

    with torch.device("meta"):
        model, inputs = NETWORKS[name]()
    model.eval()
    laps = {}
    start = time.perf_counter()
    graph = pp.trace(model, inputs)
    laps["trace"] = time.perf_counter() - start
    text = graph.to_text()
    laps["describe"] = time.perf_counter() - start - laps["trace"]
    ranking = pp.score(graph, "random", seed=0)  # needs no weights: it reads the graph alone, as an LLM does
    plan = pp.make_plan(graph, ranking, 0.6)
    total = time.perf_counter() - start
    return {
        "network": name,
        "params": graph.params,
        "macs": graph.macs,
        "blocks": len(graph.blocks),
        "groups": len(graph.prunable),
        "pinned": len(graph.groups) - len(graph.prunable),
        "text_lines": text.count("\n"),
        "text_characters": len(text),
        "planned_share": plan.macs / plan.base_macs,
        "trace_seconds": round(laps["trace"], 2),
        "seconds": round(total, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "unsupported_ops": list(graph.unsupported_ops),
        "amendments": graph.amendments.to_dict(),
    }


def main() -> None:
    """Measure all networks, each in its own process."""
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(measure(sys.argv[1])) + "\n")
        return
    rows = []
    for name in NETWORKS:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    columns = ("network", "params", "macs", "blocks", "groups", "text_lines", "planned_share", "seconds", "peak_gib")
    print_table("Described, scored and planned without weights", columns, rows)
    within = all(row["seconds"] < LIMIT_SECONDS and row["peak_gib"] < LIMIT_GIB for row in rows)
    save("large_networks", {"limits": {"seconds": LIMIT_SECONDS, "gib": LIMIT_GIB}, "within": within, "rows": rows} | environment())


if __name__ == "__main__":
    main()
