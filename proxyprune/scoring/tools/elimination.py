"""Remove inputs of linear maps one after the other, each time the one whose loss the others can make up for best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARE_AT_ONCE = 1 / 16
"""Share of the atoms that are left that one round removes; inside a round they are still removed one by one."""

COMPACT_AT = 0.8
"""Share of the atoms that is left when matrices are made smaller again."""

FloatArray = NDArray[np.float64]


@dataclass
class Readers:
    """One linear map that reads the atoms, as two matrices.

    With H the second moments of the inputs and W the weight, removing the inputs P and refitting the others leaves the squared error
    tr(W_P ([H^-1]_PP)^-1 W_P^T); it needs H^-1 and W^T W alone.

    Attributes:
        inverse: H^-1, [features, features], float64; loses rows and columns as atoms leave.
        product: W^T W in the unit of the score, for the refitted W.
        positions: [atoms, multiplicity], features of each atom.
        present: Atoms whose features the matrices have; the positions of others mean nothing.
    """

    inverse: Tensor = field(repr=False)
    product: Tensor = field(repr=False)
    positions: Tensor = field(repr=False)
    present: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.present = torch.arange(len(self.positions), device=self.positions.device)

    def costs(self, atoms: Tensor) -> Tensor:
        """Return the squared error that each of several atoms would add if it left alone, [atoms]."""
        return _costs(self.inverse, self.product, self.positions[atoms])

    def part(self, atoms: Tensor) -> Readers:
        """Return the same for some atoms, which alone are removed from it; their costs are exact."""
        features = self.positions[atoms].flatten()
        positions = torch.arange(len(features), device=features.device).reshape(len(atoms), -1)
        inner = features[:, None], features[None, :]
        return Readers(self.inverse[inner].clone(), self.product[inner].clone(), positions)

    def remove(self, atoms: Tensor) -> None:
        """Take atoms out, and let the other inputs make up for them."""
        gone = self.positions[atoms].flatten()
        share = torch.linalg.solve(_regular(self.inverse[gone[:, None], gone[None, :]]), self.inverse[gone])
        left = self.product[:, gone] @ share
        self.product -= left + left.T - share.T @ self.product[gone[:, None], gone[None, :]] @ share
        self.inverse -= self.inverse[:, gone] @ share

    def compact(self, left: Tensor) -> None:
        """Drop the rows and columns of atoms that left, so that later removals are cheaper."""
        stays = torch.ones(len(self.inverse), dtype=torch.bool, device=left.device)
        stays[self.positions[self.present].flatten()] = False
        stays[self.positions[left].flatten()] = True
        kept = stays.nonzero()[:, 0]
        self.inverse, self.product = self.inverse[kept][:, kept], self.product[kept][:, kept]
        self.positions = (torch.cumsum(stays.long(), dim=0) - 1)[self.positions.clamp_max(len(stays) - 1)]
        self.present = left


def elimination_costs(readers: Sequence[Readers], atoms: int) -> FloatArray:
    """Return the error that each atom adds when it leaves after all cheaper ones, [atoms].

    The sum over the atoms that leave first is the error of all readers after a refit, so costs add up although inputs are redundant: of
    two equal channels the first one costs nothing, and the second one everything.

    Args:
        readers: Maps that read the atoms; they are changed.
        atoms: Number of atoms.

    Returns:
        Costs whose order is that of the removal.
    """
    device = readers[0].inverse.device
    left = torch.arange(atoms, device=device)
    size = atoms
    order: list[int] = []
    costs: list[float] = []
    while len(left):
        now = torch.stack([reader.costs(left) for reader in readers]).sum(dim=0)
        count = max(1, int(len(left) * SHARE_AT_ONCE))
        near = left[torch.argsort(now, stable=True)[: 2 * count]]
        chosen, found = _one_by_one([reader.part(near) for reader in readers], count)
        gone = near[chosen]
        for reader in readers:
            reader.remove(gone)
        order += gone.tolist()
        costs += found
        left = left[~torch.isin(left, gone)]
        if len(left) <= COMPACT_AT * size:
            size = len(left)
            for reader in readers:
                reader.compact(left)
    result = np.zeros(atoms)
    result[order] = ascending(np.array(costs))
    return result


def ascending(values: FloatArray) -> FloatArray:
    """Return the closest ascending sequence with the same sum: neighbours out of order get their mean."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values.tolist():
        means.append(max(value, 0.0))
        sizes.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            size = sizes[-2] + sizes[-1]
            means[-2:] = [(means[-2] * sizes[-2] + means[-1] * sizes[-1]) / size]
            sizes[-2:] = [size]
    return np.repeat(np.array(means), sizes)


def _one_by_one(parts: Sequence[Readers], count: int) -> tuple[Tensor, list[float]]:
    """Remove the cheapest of a few atoms, then the cheapest of the others, and so on."""
    left = torch.arange(len(parts[0].positions), device=parts[0].positions.device)
    chosen: list[int] = []
    costs: list[float] = []
    for _ in range(count):
        now = torch.stack([part.costs(left) for part in parts]).sum(dim=0)
        place = int(now.argmin())
        costs.append(float(now[place]))
        chosen.append(int(left[place]))
        gone = left[place : place + 1]
        left = torch.cat([left[:place], left[place + 1 :]])
        for part in parts:
            part.remove(gone)
    return torch.tensor(chosen, device=left.device), costs


def _costs(inverse: Tensor, product: Tensor, positions: Tensor) -> Tensor:
    if positions.shape[1] == 1:
        each = positions[:, 0]
        diagonal = inverse.diagonal()[each].clamp_min(torch.finfo(torch.float64).tiny)
        return (product.diagonal()[each] / diagonal).clamp_min(0.0)
    rows, columns = positions[:, :, None], positions[:, None, :]
    solved: Tensor = torch.linalg.solve(_regular(inverse[rows, columns]), product[rows, columns])
    return solved.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(0.0)


def _regular(matrix: Tensor) -> Tensor:
    """Return the matrix with a trace of its diagonal added, so that rounding does not make it singular."""
    size = matrix.diagonal(dim1=-2, dim2=-1).mean(dim=-1).abs()
    small = (1e-10 * size + torch.finfo(torch.float64).tiny)[..., None, None]
    return matrix + small * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
