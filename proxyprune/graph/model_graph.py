"""The traced model, as every later stage reads it: structure, cost, and the program behind both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from proxyprune.errors import InputError
from proxyprune.graph.structure import Structure
from proxyprune.graph.summary import graph_summary
from proxyprune.graph.text import to_dict, to_networkx, to_text
from proxyprune.support.summary import Summary

if TYPE_CHECKING:
    import networkx as nx

    from proxyprune.coupling.couple import Coupler
    from proxyprune.coupling.coupling import Coupling
    from proxyprune.coupling.options import Amendments, Options
    from proxyprune.graph.cost import CostModel
    from proxyprune.graph.structure import ResidualPath
    from proxyprune.standard.blueprint import Blueprint
    from proxyprune.tracing.program import Program


_NOT_PICKLED = ("program", "coupling", "coupler", "residual_paths", "further_residual_paths", "blueprint")


class _NotPickled:
    """Stands for what an unpickled graph does not have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(
            "This graph was unpickled, and pickling omits the traced program. Trace the model again: proxyprune.trace(model, inputs)."
        )

    def __iter__(self) -> Any:
        return self.__getattr__("items")


@dataclass(frozen=True)
class ModelGraph(Structure):
    """A traced model.

    Attributes:
        cost: Exact MACs and parameters for any widths.
        program: The ATen program behind it (internal, as are the rest; needed to apply a plan).
        coupling: Axis classes and rule outcomes.
        coupler: Couples the program with other amendments.
        options: How norm and convolution groups may shrink.
        residual_paths: Removable block -> the tensors that take the place of its results.
        amendments: What probing found out: dimensions to pin or to tie.
        registered_ops: Ops of the model whose rule the caller registered.
        further_residual_paths: As `residual_paths`, for each further example call.
        blueprint: Class and config that the model, or the one network inside it, was built from; None if it has no config.
    """

    cost: CostModel = field(repr=False)
    program: Program = field(repr=False)
    coupling: Coupling = field(repr=False)
    coupler: Coupler = field(repr=False, compare=False)
    options: Options
    residual_paths: Mapping[str, tuple[ResidualPath, ...]] = field(repr=False)
    amendments: Amendments = field(repr=False)
    registered_ops: tuple[str, ...] = field(default=(), repr=False)
    further_residual_paths: tuple[Mapping[str, tuple[ResidualPath, ...]], ...] = field(default=(), repr=False)
    blueprint: Blueprint | None = field(default=None, repr=False)

    def __copy__(self) -> ModelGraph:
        return self  # an immutable value

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelGraph:
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the traced program, which cannot be pickled; structure, cost and text stay."""
        kept = {name: value for name, value in vars(self).items() if name not in _NOT_PICKLED}
        return kept | {"options": replace(self.options, rules={})}  # registered rules may be functions that cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {name: _NotPickled() for name in _NOT_PICKLED})

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def summary(self, *, ids: bool = False) -> Summary:
        """Return totals, kinds of blocks and channel groups on one screen; `print(graph)` shows it.

        Args:
            ids: One row for each channel group, with its id instead of block and role.
        """
        return graph_summary(self, ids=ids)

    def to_networkx(self) -> nx.DiGraph[str]:
        """Return the directed graph of blocks; node attributes are the fields of `Block`, edges carry kind="flow" or "skip"."""
        return to_networkx(self)

    def to_text(self) -> str:
        """Return deterministic text: legend, totals, one line a block."""
        return to_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the structure as plain JSON types: blocks with their inputs, channel groups, totals."""
        return to_dict(self)
