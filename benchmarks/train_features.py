"""Train the small classifiers whose features the metrics use, and say how accurate they are.

    python benchmarks/train_features.py --data fashion-mnist
    python benchmarks/train_features.py --data digits

Writes proxyprune/diffusion/weights/NAME.safetensors (half precision) and benchmarks/results/features_NAME.json.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import environment, save
from safetensors.torch import save_file
from torch.nn import functional

from proxyprune.diffusion import DataConfig
from proxyprune.diffusion.data.image_data import load_data, to_float
from proxyprune.diffusion.evaluation.features import SIZES, WEIGHTS, FeatureNet, load_into

EPOCHS = {"fashion-mnist": 7, "digits": 60}
BATCH = 128
PEAK = 3e-3
SEED = 0


def shifted(images: torch.Tensor, generator: torch.Generator, mirror: bool) -> torch.Tensor:
    """Move images by at most one pixel, and mirror half of them where that makes sense."""
    down, right = (int(torch.randint(-1, 2, (), generator=generator)) for _ in range(2))
    images = torch.roll(images, (down, right), (2, 3))
    if mirror:
        flip = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
    return images


@torch.no_grad()
def accuracy(network: FeatureNet, images: torch.Tensor, labels: torch.Tensor) -> float:
    network.eval()
    found = torch.cat([network(to_float(part)).argmax(1) for part in images.split(500)])
    return float((found == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(SIZES), default="fashion-mnist")
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    name = arguments.data
    epochs = arguments.epochs or EPOCHS[name]
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    size, widths = SIZES[name]
    data = load_data(DataConfig(source=name, labels=True), size)
    assert data.labels is not None
    assert data.held_out_labels is not None
    network = FeatureNet(widths)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    steps = epochs * (len(data.train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    started = time.perf_counter()
    for epoch in range(epochs):
        network.train()
        for chosen in torch.randperm(len(data.train), generator=generator).split(BATCH)[: len(data.train) // BATCH]:
            images = shifted(to_float(data.train[chosen]), generator, mirror=name == "fashion-mnist")
            optimizer.zero_grad()
            functional.cross_entropy(network(images), data.labels[chosen], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
        tested = accuracy(network, data.held_out, data.held_out_labels)
        if epoch % max(1, epochs // 8) == 0 or epoch == epochs - 1:
            print(f"epoch {epoch + 1}: held-out accuracy {tested:.4f}, {time.perf_counter() - started:.0f} s", flush=True)
    seconds = time.perf_counter() - started
    WEIGHTS.mkdir(exist_ok=True)
    path = WEIGHTS / f"{name}.safetensors"
    state = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    save_file(state, path)
    load_into(network, path)  # the figure is of what was written
    parameters = sum(p.numel() for p in network.parameters())
    result = {"data": name, "size": size, "epochs": epochs, "seed": SEED, "parameters": parameters, "seconds": seconds}
    result["held_out_accuracy"] = accuracy(network, data.held_out, data.held_out_labels)
    result["bytes"] = path.stat().st_size
    print(result)
    save(f"features_{name}", {"environment": environment(), **result})


if __name__ == "__main__":
    main()
