"""torchvision's classification, segmentation, detection, video and optical-flow networks, at sizes that are fast on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from candidates import Candidate, Inputs, images
from torch import nn
from torchvision_ops import import_torchvision

_OPTIONS: dict[str, dict[str, Any]] = {"vit_h": {"image_size": 56}, "vit_": {"image_size": 64}}
"""Builders whose parameters depend on the size of the input: beginning of the name -> arguments; the first that fits counts."""

_SIZES = {"inception_v3": 96, "vit_h": 56, "maxvit": 224, "mvit": 224, "s3d": 224}
_FRAMES = {"s3d": 16, "mvit": 16}


def candidates() -> Iterator[Candidate]:
    """Yield one candidate for each builder, by kind of task."""
    models = import_torchvision().models
    for task, describe in _TASKS.items():
        module = getattr(models, task, None) if task != "classification" else models
        for name in models.list_models(module=module):
            options, feed = describe(name)
            yield Candidate("torchvision", name, partial(models.get_model, name, weights=None, **options), feed)


def _classification(name: str) -> tuple[dict[str, Any], Callable[[nn.Module], Inputs]]:
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return options | _options(name), images(_first(_SIZES, name, 64))


def _segmentation(name: str) -> tuple[dict[str, Any], Callable[[nn.Module], Inputs]]:
    return {"weights_backbone": None}, images(64)


def _detection(name: str) -> tuple[dict[str, Any], Callable[[nn.Module], Inputs]]:
    sized = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 64}
    return {"weights_backbone": None} | sized, lambda model: ([torch.rand(3, 64, 64)],)


def _video(name: str) -> tuple[dict[str, Any], Callable[[nn.Module], Inputs]]:
    return _options(name), images(_first(_SIZES, name, 64), frames=_first(_FRAMES, name, 8))


def _optical_flow(name: str) -> tuple[dict[str, Any], Callable[[nn.Module], Inputs]]:
    return {}, lambda model: (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128), 2)


def _options(name: str) -> dict[str, Any]:
    return _first(_OPTIONS, name, {})


def _first(table: dict[str, Any], name: str, otherwise: Any) -> Any:
    return next((value for beginning, value in table.items() if name.startswith(beginning)), otherwise)


_TASKS = {
    "classification": _classification,
    "segmentation": _segmentation,
    "detection": _detection,
    "video": _video,
    "optical_flow": _optical_flow,
}
