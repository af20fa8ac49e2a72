"""Features for images that no classifier comes with: a small network that learns on the images to tell by how much they were turned.

Source:
    The task is that of Gidaris et al. 2018, arXiv:1803.07728. Distances by such features order pipelines for the same images; their
    size means nothing beside distances by other features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from proxyprune.diffusion.data.image_data import ImageData, to_float
from proxyprune.diffusion.evaluation.features import FeatureNet, Features, resized
from proxyprune.support.progress import bar
from proxyprune.support.seeds import derived_seed

_SEED = 0
_STEPS, _BATCH, _LEARNING_RATE = 300, 64, 2e-3
_WIDTHS = (16, 32, 48)
_LARGEST = 32  # pixels that the network sees
_TURNS = 4


def train_features(data: ImageData, *, progress: bool = True) -> Features:
    """Train features on the training images of a data set; the same images give the same features on one machine.

    Args:
        data: The images.
        progress: Whether to show a bar.
    """
    size = min(_LARGEST, data.shape[-1])
    generator = torch.Generator().manual_seed(derived_seed(_SEED, "features"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(_SEED, "network of features"))
        network = FeatureNet(_WIDTHS, classes=_TURNS, channels=data.shape[0])
        optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        right = 0.0
        with bar("features", _STEPS, shown=progress) as advance:
            for step in range(_STEPS):
                chosen = torch.randint(len(data.train), (_BATCH,), generator=generator)
                images = resized(to_float(data.train[chosen]), size)
                turns = torch.arange(_BATCH) % _TURNS
                turned = torch.cat([torch.rot90(image[None], int(turn), (2, 3)) for image, turn in zip(images, turns, strict=True)])
                logits = network(turned)
                optimizer.zero_grad(set_to_none=True)
                loss = functional.cross_entropy(logits, turns)
                torch.autograd.backward(loss)
                optimizer.step()
                right = 0.95 * right + 0.05 * float((logits.argmax(dim=1) == turns).float().mean())
                advance(step + 1, f"right {right:.0%}")
    network.eval()

    def embed(images: Tensor) -> Tensor:
        return network.embed(resized(to_float(images), size))

    note = (
        f"The features were trained on {len(data.train):,} images of {data.name}, to tell by how much one was turned ({right:.0%} right). "
        "Compare distances only with others by these features."
    )
    return Features(f"turns of {data.name}", embed, note)
