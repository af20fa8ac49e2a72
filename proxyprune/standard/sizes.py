"""Sizes of a network's tensors by the atoms that its channel groups keep, under the names that its class uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxyprune.coupling.coupling import Coupling
from proxyprune.standard.reactions import Dim, Family
from proxyprune.tracing.program import Program


@dataclass(frozen=True)
class Sizes:
    """Sizes of all tensors; every one is linear in the atoms of the groups.

    Attributes:
        shapes: Shapes of the unpruned network.
        forms: Dimension -> change of its size with each atom, by the index of the prunable group; fixed dimensions are left out.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    forms: Mapping[Dim, Mapping[int, int]] = field(repr=False)

    @classmethod
    def of(cls, family: Family, coupling: Coupling, program: Program) -> Sizes:
        """Return the sizes in a coupled program."""
        prefix = family.blueprint.prefix
        tied = {alias: coupling.parameter_axes[name] for alias, name in program.aliases.items() if name in coupling.parameter_axes}
        forms = {
            (name[len(prefix) :], dim): coupling.count(axis)[1]
            for name, axes in {**coupling.parameter_axes, **tied}.items()
            if name.startswith(prefix)
            for dim, axis in enumerate(axes)
            if axis is not None
        }
        return cls(family.shapes, forms)

    def coefficients(self, dim: Dim) -> Mapping[int, int]:
        """Return the change of a dimension's size with each atom, by group."""
        return self.forms.get(dim, {})

    def without(self, atoms: Mapping[int, int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes after some atoms of each group left."""
        return {
            name: tuple(
                size - sum(coefficient * atoms.get(group, 0) for group, coefficient in self.coefficients((name, dim)).items())
                for dim, size in enumerate(shape)
            )
            for name, shape in self.shapes.items()
        }
