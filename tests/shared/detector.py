"""A small detector: boxes are selected by value, and a head runs on what was selected."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

IMAGE = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).sin()


class Backbone(nn.Module):
    """Three convolutions with norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, stride=1 + (k < 2), padding=1), nn.BatchNorm2d(o), nn.ReLU())
                for k, (i, o) in enumerate(itertools.pairwise(sizes))
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return features [n, width, h, w]."""
        found: Tensor = self.layers(image)
        return found


def suppressed(boxes: Tensor, scores: Tensor, limit: float) -> Tensor:
    """Greedy non-maximum suppression in Python: branches and sizes depend on values."""
    order = [int(index) for index in scores.argsort(descending=True).tolist()]
    kept: list[int] = []
    for index in order:
        distances = [(boxes[index] - boxes[other]).abs().sum() for other in kept]
        if all(distance.item() > limit for distance in distances):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


class Detector(nn.Module):
    """Scores every position, keeps the best ones that do not overlap, and classifies the features there."""

    def __init__(self, width: int = 16, limit: float = 0.4) -> None:
        super().__init__()
        self.backbone = Backbone(width)
        self.score, self.box = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 4, 1)
        self.head = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 3))
        self.limit = limit
        self.last: Tensor | None = None

    def forward(self, image: Tensor) -> list[dict[str, Tensor]]:
        """Return boxes, scores and classes of each image, as many as were found."""
        features = self.backbone(image)
        self.last = features  # state that a trace must leave as it was
        found = []
        for number in range(len(image)):
            scores, boxes = self.score(features)[number].flatten(), self.box(features)[number].flatten(1).T
            good = torch.nonzero(scores > scores.mean()).squeeze(1)
            scores, boxes, own = scores[good], boxes[good], features[number].flatten(1).T[good]
            kept = suppressed(boxes, scores, self.limit)
            classes = self.head(own[kept])
            sure = classes.softmax(-1).amax(-1) > 0.0
            found.append({"boxes": boxes[kept][sure], "scores": scores[kept][sure], "classes": classes[sure]})
        return found


def detector(width: int = 16) -> Detector:
    """Build a detector with weights from a seed."""
    torch.manual_seed(7)
    return Detector(width).eval()
