"""Ridge regression towards the weights that a layer has, from second moments alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxyprune.compensation.moments import Moments


@dataclass(frozen=True)
class Solution:
    """A linear map from features to targets.

    Attributes:
        slope: [groups, features, targets].
        intercept: [groups, targets].
    """

    slope: Tensor
    intercept: Tensor

    @staticmethod
    def unchanged(slope: Tensor) -> Solution:
        """Return the map that the layer has now, without a shift."""
        return Solution(slope, torch.zeros(slope.shape[0], slope.shape[2], dtype=slope.dtype, device=slope.device))

    def error(self, moments: Moments) -> Tensor:
        """Return the weighted squared error for each target, [groups, targets], float64."""
        slope, shift = self.slope, self.intercept
        quadratic = ((moments.gram @ slope) * slope).sum(dim=1)
        linear = (moments.cross * slope).sum(dim=1)
        mean_output = torch.einsum("gf,gft->gt", moments.feature_sum, slope)
        constant = shift * (2.0 * (mean_output - moments.target_sum) + moments.weight.unsqueeze(1) * shift)
        return (moments.target_square - 2.0 * linear + quadratic + constant).clamp_min(0.0)


def ridge(moments: Moments, start: Tensor, strength: float, *, intercept: bool) -> Solution:
    """Solve min over B of sum w |t - B^T z - a|^2 + strength * mean(diag G) * |B - start|^2.

    With H the Gram matrix, K the kept and C the dropped inputs of a layer whose dense inputs are the features too, this is
    W_K + W_C H_CK (H_KK + strength * mean(diag H_KK) I)^-1.

    Args:
        moments: Of features and targets.
        start: The map towards which the solution shrinks, [groups, features, targets], float64.
        strength: Ridge, relative to the mean square of a feature.
        intercept: Solve for `a` too (then everything is centred); 0 otherwise.

    Returns:
        The solution, float64.
    """
    gram, cross = moments.gram, moments.cross
    mean_feature = mean_target = None
    if intercept:
        weight = moments.weight.clamp_min(torch.finfo(torch.float64).tiny)
        mean_feature, mean_target = moments.feature_sum / weight.unsqueeze(1), moments.target_sum / weight.unsqueeze(1)
        gram = gram - torch.einsum("gf,gh->gfh", mean_feature, moments.feature_sum)
        cross = cross - torch.einsum("gf,gt->gft", mean_feature, moments.target_sum)
    size = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    damped = gram + (strength * size).reshape(-1, 1, 1) * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    slope = start + _solved(damped, cross - gram @ start)
    if mean_feature is None or mean_target is None:
        return Solution.unchanged(slope)
    return Solution(slope, mean_target - torch.einsum("gf,gft->gt", mean_feature, slope))


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve for a symmetric matrix; by its pseudo-inverse if rounding made it indefinite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not bool(failed.any()):
        return torch.cholesky_solve(right, factor)
    inverse: Tensor = torch.linalg.pinv(matrix, hermitian=True)
    return inverse @ right
