"""Distances between two sets of images, by their features: Fréchet distance, KID, precision and recall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxyprune.errors import InputError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class MetricEstimate:
    """A figure with its bootstrap interval.

    Attributes:
        value: From all images.
        low: 2.5 % quantile over resampled generated images.
        high: 97.5 % quantile.
    """

    value: float
    low: float
    high: float


def frechet(mean_a: FloatArray, cov_a: FloatArray, mean_b: FloatArray, cov_b: FloatArray, root_a: FloatArray | None = None) -> float:
    """Squared Fréchet distance of two normal distributions.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)). The trace of the root is the sum of the roots of the eigenvalues of
    cov_a^(1/2) cov_b cov_a^(1/2), which is symmetric, so no complex number turns up.

    Args:
        mean_a: Mean of one, [D].
        cov_a: Its covariance, [D, D].
        mean_b: Mean of the other.
        cov_b: Its covariance.
        root_a: `square_root` of cov_a, where it is known.

    Source:
        Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500.
    """
    root = square_root(cov_a) if root_a is None else root_a
    mixed = np.linalg.eigvalsh(root @ cov_b @ root)
    cross = np.sqrt(np.clip(mixed, 0.0, None)).sum()
    difference = mean_a - mean_b
    return float(max(0.0, difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross))


def square_root(cov: FloatArray) -> FloatArray:
    """Symmetric square root of a covariance [D, D]."""
    values, vectors = np.linalg.eigh(cov)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)


def frechet_distance(a: FloatArray, b: FloatArray) -> float:
    """Fréchet distance of two sets of features [images, D]."""
    _check(a, b)
    return frechet(a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))


def kernel_distance(a: FloatArray, b: FloatArray) -> float:
    """KID: unbiased squared MMD with the kernel (x.y / D + 1)^3; may be slightly negative for equal distributions.

    Source:
        Binkowski et al. 2018, arXiv:1801.01401. Deviation: all images at once where the reference averages over subsets.
    """
    _check(a, b)
    n, m = len(a), len(b)
    inside = (_kernel_sum(a, a) - _kernel_diagonal(a)) / (n * (n - 1)) + (_kernel_sum(b, b) - _kernel_diagonal(b)) / (m * (m - 1))
    return inside - 2.0 * _kernel_sum(a, b) / (n * m)


def precision_recall(real: FloatArray, fake: FloatArray, neighbours: int = 3) -> tuple[float, float]:
    """Share of generated images inside the real manifold, and of real images inside the generated one.

    Source:
        Kynkäänniemi et al. 2019, arXiv:1904.06991: a manifold is the union of balls to the k-th nearest neighbour.
    """
    _check(real, fake)
    if min(len(real), len(fake)) <= neighbours:
        raise InputError(f"Precision and recall with {neighbours} neighbours need more images than that: {len(real)}, {len(fake)}.")
    return _inside(fake, real, neighbours), _inside(real, fake, neighbours)


def bootstrap(statistic: Callable[[FloatArray], float], fake: FloatArray, *, rounds: int = 100, seed: int = 0) -> MetricEstimate:
    """Return a statistic of generated features with its 95 % interval over resampling with replacement.

    The interval is centred on the value: a resample holds duplicates, which raises the Fréchet distance, so the resamples' own mean is
    taken off first.
    """
    value = statistic(fake)
    if rounds < 2:
        return MetricEstimate(value, value, value)
    generator = np.random.default_rng(seed)
    draws = np.asarray([statistic(fake[generator.integers(0, len(fake), len(fake))]) for _ in range(rounds)])
    low, high = np.quantile(draws - draws.mean(), (0.025, 0.975))
    return MetricEstimate(value, value + float(low), value + float(high))


def _check(a: FloatArray, b: FloatArray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(f"Expected two sets of at least 2 features of one length, found {a.shape} and {b.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("Features hold NaN or infinite values; check the images.")


def _kernel_sum(a: FloatArray, b: FloatArray, rows: int = 1000) -> float:
    return float(sum(((part @ b.T / a.shape[1] + 1.0) ** 3).sum() for part in np.array_split(a, -(-len(a) // rows))))


def _kernel_diagonal(a: FloatArray) -> float:
    return float((((a * a).sum(axis=1) / a.shape[1] + 1.0) ** 3).sum())


def _squared_distances(a: FloatArray, b: FloatArray) -> FloatArray:
    found = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None] - 2.0 * a @ b.T
    return np.asarray(np.clip(found, 0.0, None))


def _inside(points: FloatArray, manifold: FloatArray, neighbours: int, rows: int = 500) -> float:
    """Share of points within a ball of the manifold."""
    chunks = np.array_split(manifold, -(-len(manifold) // rows))
    # Place `neighbours` counts from 0, and place 0 is the point itself.
    radii = np.concatenate([np.partition(_squared_distances(part, manifold), neighbours, axis=1)[:, neighbours] for part in chunks])
    hits = [(_squared_distances(part, manifold) <= radii).any(axis=1) for part in np.array_split(points, -(-len(points) // rows))]
    return float(np.concatenate(hits).mean())
