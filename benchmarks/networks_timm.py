"""One network of every module of timm: the one with the fewest parameters, on the smallest image that it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from candidates import Candidate, images
from torch import nn
from torchvision_ops import import_torchvision

_CHOICES = Path(__file__).parent / ".cache" / "timm_smallest.json"
_IMAGE_SIZES = (64, 96, 128, 160, 192, 224, 256)


def candidates() -> Iterator[Candidate]:
    """Yield the smallest network of each module in timm's registry."""
    for choice in _choices():
        make = partial(_create, choice["name"], choice["image_size"] if choice["sized"] else None)
        yield Candidate("timm", choice["name"], make, images(choice["image_size"]))


def _choices() -> list[dict[str, Any]]:
    """Return the network chosen of every module; read from a cache where there is one, because counting takes minutes."""
    import_torchvision()  # timm imports it
    import timm

    cached = json.loads(_CHOICES.read_text(encoding="utf-8")) if _CHOICES.exists() else {}
    if cached.get("version") != timm.__version__:
        cached = {"version": timm.__version__, "choices": [_choose(module) for module in timm.list_modules()]}
        _CHOICES.parent.mkdir(exist_ok=True)
        _CHOICES.write_text(json.dumps(cached, indent=1), encoding="utf-8")
    return cached["choices"]


def _choose(module: str) -> dict[str, Any]:
    import timm

    names = timm.list_models(module=module)
    counts = {name: _parameters(name) for name in names}
    name = min(names, key=lambda found: counts[found])
    size, sized = _image_size(name)
    return {"module": module, "name": name, "image_size": size, "sized": sized}


def _parameters(name: str) -> float:
    """Count on the meta device, which takes no memory; infinite for builders that read values."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in _create(name).parameters())
    except Exception:  # noqa: BLE001  counted last, as timm's builders fail in many ways on the meta device
        return float("inf")


def _image_size(name: str) -> tuple[int, bool]:
    """Return the smallest image that the network runs on, and whether it is an argument of its builder."""
    for size in _IMAGE_SIZES:
        for sized in (True, False):
            try:
                with torch.no_grad():
                    _create(name, size if sized else None).eval()(torch.zeros(1, 3, size, size))
            except Exception:  # noqa: BLE001  timm's networks reject sizes in many ways
                continue
            return size, sized
    return 224, False


def _create(name: str, image_size: int | None = None) -> nn.Module:
    import timm

    return timm.create_model(name) if image_size is None else timm.create_model(name, img_size=image_size)
