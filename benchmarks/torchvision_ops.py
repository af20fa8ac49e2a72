"""torchvision's network definitions beside a torch that its compiled operators do not load with.

The wheel of torchvision on PyPI is compiled for the CUDA build of torch. Beside the CPU build, `import torchvision` fails, although the
definitions are plain Python. `import_torchvision` declares the operators that the import looks up, and implements in Python the ones
that detectors call.

An environment with such a torchvision breaks `import transformers` too. `make zoo` therefore installs torchvision and timm into a folder
of their own, which is searched from here only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

PACKAGES = Path(__file__).parent / ".cache" / "site"
"""Folder in which `make zoo` installs torchvision and timm."""

_OPERATORS = ("nms", "qnms")
"""Looked up by the import; both select boxes."""

_LIBRARY: list[torch.library.Library] = []
"""Kept for the life of the process: operators vanish with their library."""


def import_torchvision() -> ModuleType:
    """Import torchvision, with its operators in Python if the compiled ones do not load.

    Raises:
        ImportError: If torchvision is not installed.
    """
    if PACKAGES.is_dir() and str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
    try:
        import torchvision
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare()
        import torchvision

        _allow(torchvision)
    return torchvision


def _declare() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", suppress_overlaps, "CPU")
    _LIBRARY.append(library)


def _allow(torchvision: ModuleType) -> None:
    """Remove the check for compiled operators in front of `nms`; run the Python form that `roi_align` has without compiling it."""
    torchvision.ops.boxes._assert_has_ops = lambda: None
    pooling = sys.modules["torchvision.ops.roi_align"]
    pooling._roi_align = pooling._roi_align.__wrapped__


def suppress_overlaps(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the boxes that no better box overlaps: greedy non-maximum suppression.

    Args:
        dets: Boxes as corners (x1, y1, x2, y2), [boxes, 4].
        scores: One score per box, [boxes].
        iou_threshold: Boxes whose intersection over union with a better box is larger are dropped.

    Returns:
        Indices of the boxes kept, best first, int64.
    """
    order = scores.argsort(descending=True)
    area = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    kept = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(dets[best, :2], dets[rest, :2])
        high = torch.minimum(dets[best, 2:], dets[rest, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        order = rest[shared / (area[best] + area[rest] - shared) <= iou_threshold]
    return torch.stack(kept) if kept else order
