"""Second moments of what a layer reads and of what it should yield, summed over batches as they come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ROWS = 4096
"""Positions that are multiplied at once; it bounds the weighted copies."""


@dataclass(frozen=True)
class MomentSizes:
    """Sizes of the sums of one layer.

    Attributes:
        groups: Independent products of the layer.
        features: Features that the layer reads, in each group.
        targets: Targets of the regression, in each group.
    """

    groups: int
    features: int
    targets: int

    @property
    def bytes(self) -> int:
        """Memory of one `Moments`."""
        return 8 * self.groups * (self.features + 1) * (self.features + self.targets + 1)


class Moments:
    """Weighted sums of products, in double precision: all that a ridge regression and the error of any solution need.

    With z the features, [groups, positions, features], t the targets and one weight w for each position:

    Attributes:
        gram: Sum of w z z^T, [groups, features, features].
        cross: Sum of w z t^T, [groups, features, targets].
        feature_sum: Sum of w z, [groups, features].
        target_sum: Sum of w t, [groups, targets].
        target_square: Sum of w t^2, [groups, targets].
        weight: Sum of w, [groups].
        positions: Number of positions.
    """

    def __init__(self, sizes: MomentSizes, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(sizes.groups, *shape, dtype=torch.float64, device=device)

        self.gram = zeros(sizes.features, sizes.features)
        self.cross = zeros(sizes.features, sizes.targets)
        self.feature_sum = zeros(sizes.features)
        self.target_sum, self.target_square = zeros(sizes.targets), zeros(sizes.targets)
        self.weight = zeros()
        self.positions = 0

    def add(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add the positions of one call.

        Products are taken in the tensors' precision, at least float32, and summed in float64.

        Args:
            features: [groups, positions, features].
            targets: The same positions, [groups, positions, targets].
            weights: One weight for each position, [positions]; None weights all alike.
        """
        dtype = torch.promote_types(features.dtype, torch.float32)
        for start in range(0, features.shape[1], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            z, t = features[:, rows].to(dtype), targets[:, rows].to(dtype)
            weighted, weighted_t, total = z, t, float(z.shape[1])
            if weights is not None:
                factors = weights[rows].to(dtype).reshape(1, -1, 1)
                weighted, weighted_t, total = z * factors, t * factors, float(factors.double().sum())
            self.gram += weighted.transpose(1, 2) @ z
            self.cross += weighted.transpose(1, 2) @ t
            self.feature_sum += weighted.sum(dim=1)
            self.target_sum += weighted_t.sum(dim=1)
            self.target_square += (weighted_t * t).sum(dim=1)
            self.weight += total
        self.positions += features.shape[1]
