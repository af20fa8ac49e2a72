"""The traced model, as every later stage reads it: structure, cost, and the program behind both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxyprune.graph.structure import Structure
from proxyprune.graph.text import to_dict, to_networkx, to_text

if TYPE_CHECKING:
    import networkx as nx

    from proxyprune.coupling.coupling import Coupling
    from proxyprune.coupling.options import Amendments, Options
    from proxyprune.graph.cost import CostModel
    from proxyprune.graph.structure import ResidualPath
    from proxyprune.tracing.program import Program


@dataclass(frozen=True)
class ModelGraph(Structure):
    """A traced model.

    Attributes:
        cost: Exact MACs and parameters for any widths.
        program: The ATen program behind it (internal, as are the rest; needed to apply a plan).
        coupling: Axis classes and rule outcomes.
        options: How norm and convolution groups may shrink.
        residual_paths: Removable block -> the tensors that take the place of its results.
        amendments: What probing found out: dimensions to pin or to tie.
        registered_ops: Ops of the model whose rule the caller registered.
    """

    cost: CostModel = field(repr=False)
    program: Program = field(repr=False)
    coupling: Coupling = field(repr=False)
    options: Options
    residual_paths: Mapping[str, tuple[ResidualPath, ...]] = field(repr=False)
    amendments: Amendments = field(repr=False)
    registered_ops: tuple[str, ...] = field(default=(), repr=False)

    def to_networkx(self) -> nx.DiGraph[str]:
        """Return the directed graph of blocks; node attributes are the fields of `Block`, edges carry kind="flow" or "skip"."""
        return to_networkx(self)

    def to_text(self) -> str:
        """Return deterministic text: legend, totals, one line a block."""
        return to_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the structure as plain JSON types: blocks with their inputs, channel groups, totals."""
        return to_dict(self)
