"""From a traced network and the cost table of this machine to its predicted time at any widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from proxyprune.errors import InputError
from proxyprune.graph.build import analyse
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.time_cost import Curve, FloatArray, OpUse, Side, Surface, TimeCost, rising
from proxyprune.measuring.network_ops import OneSided, TwoSided, calls_by_block, ops_of
from proxyprune.measuring.op_calls import OpCall
from proxyprune.measuring.op_table import OpTable, machine
from proxyprune.measuring.op_timer import DeviceTimer, OpTimer
from proxyprune.measuring.timed_run import Network, prepared, running, threads_of
from proxyprune.measuring.timing import Timing
from proxyprune.measuring.width_grid import TILES, Penalty, grid_widths, multiples_that_pay, off_tile
from proxyprune.tracing.capture import capture_all
from proxyprune.tracing.model_call import ExampleInputs
from proxyprune.tracing.names import named_state
from proxyprune.tracing.nodes import op_name

_CALL_NANOSECONDS = 20_000.0
"""Most that a call costs beside its work: Python, dispatch and a launch. What is left of the network's time goes with the ops."""


@dataclass(frozen=True)
class CostTable:
    """The place of measured times, and the timer for those that are missing.

    Attributes:
        folder: Folder of the files; None takes the user's cache folder.
        timer: Measures ops and whole networks; None takes the device's clock.
        progress: Show a bar on stderr.
    """

    folder: Path | None = None
    timer: OpTimer | None = None
    progress: bool = False


def with_times(
    graph: ModelGraph, model: nn.Module, example_inputs: ExampleInputs, timing: Timing | None = None, *, table: CostTable | None = None
) -> ModelGraph:
    """Return the graph with predicted times, so that plans from it may have a budget of time (`metric="time"`) or `round_to="auto"`.

    Every op of the network is timed on this machine at several widths. Times are kept in the user's cache folder; what is there is not
    measured again.

    Args:
        graph: The traced model.
        model: The model, on the device that counts. It stays as it is.
        example_inputs: What it was traced on.
        timing: Batch, threads, dtype, and eager or compiled.
        table: Where times are kept, and what measures them.

    Raises:
        InputError: If the network has other channel groups at this batch size or dtype.
        StorageError: If the cache folder cannot be written.
    """
    timing, table = timing or Timing(), table or CostTable()
    network = prepared(model, example_inputs, timing)
    traced = graph
    if network.changed:
        traced = analyse(network.model, capture_all(network.model, network.inputs, ()), graph.options, graph.amendments)
        _check_same_groups(graph, traced)
    device = next((value.device for _, value in named_state(network.model)), torch.device("cpu"))
    with threads_of(timing):
        found = _Builder(traced, device, timing, table).build(None if device.type == "meta" else network)
    return replace(graph, cost=replace(graph.cost, time=found))


def times_again(graph: ModelGraph, former: ModelGraph, model: nn.Module, example_inputs: ExampleInputs) -> ModelGraph:
    """Return a graph of the same network with other groups, with times if the former graph had them."""
    if former.cost.time is None or graph.cost.time is not None:
        return graph
    timing = Timing(**{entry.name: former.cost.time.settings[entry.name] for entry in fields(Timing)})  # type: ignore[arg-type]
    return with_times(graph, model, example_inputs, timing)


def _check_same_groups(graph: ModelGraph, traced: ModelGraph) -> None:
    if [(group.id, group.atoms) for group in graph.prunable] != [(group.id, group.atoms) for group in traced.prunable]:
        raise InputError(
            "At the batch size and dtype of the timing the network has other channel groups than in the trace, so its time cannot be "
            "predicted there. Trace it on example inputs of that batch size and dtype, and omit both from the timing."
        )


class _Builder:
    """Builds the predicted time of one network."""

    def __init__(self, graph: ModelGraph, device: torch.device, timing: Timing, table: CostTable) -> None:
        self._graph = graph
        self._timing = timing
        self._settings = table
        self._tile = TILES.get(device.type, 16)
        self._timer = table.timer or DeviceTimer(device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._table = OpTable.opened(machine(name, torch.get_num_threads()), table.folder)
        self._ops = ops_of(graph)

    def build(self, network: Network | None) -> TimeCost:
        families: dict[str, list[TwoSided]] = {}
        for op in self._ops:
            if isinstance(op, TwoSided):
                families.setdefault(op.family, []).append(op)
        grids = {text: _Grid.of(members, self._tile) for text, members in families.items()}
        calls = [call for grid in grids.values() for call in grid.calls]
        calls += [call for op in self._ops if isinstance(op, OneSided) for call in op.calls]
        untimed = self._table.fill(calls, self._timer, progress=self._settings.progress)
        surfaces = {text: grid.surface(self._table.nanoseconds, self._tile) for text, grid in grids.items()}
        uses = [use for op in self._ops if (use := self._use(op, surfaces)) is not None]
        cost = TimeCost(
            uses=tuple(uses),
            overhead=0.0,
            calls=calls_by_block(self._graph),
            scale=1.0,
            multiples=multiples_that_pay(self._graph.prunable, self._penalties(families, grids), self._tile),
            settings={**self._table.machine, **self._timing.to_dict()},
            measured_now=self._table.measured_now,
            untimed=untimed,
            groups=len(self._graph.prunable),
        )
        return cost if network is None else self._calibrated(cost, network)

    def _use(self, op: TwoSided | OneSided, surfaces: Mapping[str, Surface | None]) -> OpUse | None:
        """Return an op with its time; None if it could not be timed."""
        owner = self._graph.program.owners[op.node.name]
        name = f"{op_name(op.node)} in {owner or 'the model itself'}"
        if isinstance(op, TwoSided):
            surface = surfaces[op.family]
            return None if surface is None else OpUse(name, op.block, surface, sizes=op.forms)
        found = [self._table.nanoseconds.get(call.text) for call in op.calls]
        times = np.array([value for value in found if value is not None], np.float64)
        amounts = np.array([amount for amount, value in zip(op.amounts, found, strict=True) if value is not None], np.float64)
        return OpUse(name, op.block, Curve(amounts, rising(times)), work=op.work) if len(times) else None

    def _penalties(self, families: Mapping[str, Sequence[TwoSided]], grids: Mapping[str, _Grid]) -> Iterator[Penalty]:
        for text, members in families.items():
            factors = grids[text].penalties(self._table.nanoseconds)
            for op in members:
                weight = self._table.nanoseconds.get(op.call.text, 0)
                for side in (0, 1):
                    groups = tuple(group for group, _ in op.forms[side][1])
                    if groups and weight:
                        yield Penalty(groups, weight, factors[side])

    def _calibrated(self, cost: TimeCost, network: Network) -> TimeCost:
        """Return the cost with what the network takes beside its ops: so much for each call, the rest in proportion to the ops."""
        key = f"{self._graph.model_class} {self._graph.fingerprint} {self._timing.batch} {self._timing.dtype} {self._timing.compiled}"
        if key not in self._table.networks:
            with running(network, self._timing) as run:
                self._table.networks[key] = self._timer.whole(run)
            self._table.save()
        measured, alone = self._table.networks[key], cost.total(self._graph.cost.full)
        calls = max(1, sum(cost.calls.values()))
        overhead = min(max(0.0, (measured - alone) / calls), _CALL_NANOSECONDS)
        return replace(cost, overhead=overhead, scale=(measured - overhead * calls) / max(1, alone))


@dataclass(frozen=True)
class _Grid:
    """The measurements of layers that differ in their two widths only.

    Attributes:
        first: Measured widths of the channels that are read.
        second: Of the channels that are made.
        points: Their calls, [first][second].
        off: Calls at widths off the tile, for each side: divisor -> (widths, call).
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    points: tuple[tuple[OpCall, ...], ...]
    off: tuple[Mapping[int, tuple[tuple[int, int], OpCall]], Mapping[int, tuple[tuple[int, int], OpCall]]]

    @staticmethod
    def of(members: Sequence[TwoSided], tile: int) -> _Grid:
        layer, widths = members[0], []
        for side in (0, 1):
            full = {op.full[side] for op in members}
            varies = any(op.forms[side][1] for op in members)
            widths.append(grid_widths(full, tile) if varies else tuple(sorted(full)))
        points = tuple(tuple(layer.at(read, made) for made in widths[1]) for read in widths[0])
        off: list[dict[int, tuple[tuple[int, int], OpCall]]] = []
        for side in (0, 1):
            other = widths[1 - side][-1]
            pairs = {d: (w, other) if side == 0 else (other, w) for d, w in off_tile(widths[side], tile).items()}
            off.append({divisor: (pair, layer.at(*pair)) for divisor, pair in pairs.items()})
        return _Grid(widths[0], widths[1], points, (off[0], off[1]))

    @property
    def calls(self) -> list[OpCall]:
        """Everything to measure."""
        return [call for row in self.points for call in row] + [call for side in self.off for _, call in side.values()]

    def surface(self, nanoseconds: Mapping[str, int], tile: int) -> Surface | None:
        """Return the time at any widths; None if a point could not be measured."""
        times = self._times(nanoseconds)
        if times is None:
            return None
        factors = self.penalties(nanoseconds)
        sides = (Side.of(self.first, factors[0], tile), Side.of(self.second, factors[1], tile))
        return Surface(*sides, rising(times))

    def penalties(self, nanoseconds: Mapping[str, int]) -> tuple[dict[int, float], dict[int, float]]:
        """Return for each side how much longer widths off the tile take than the same work on it."""
        times = self._times(nanoseconds)
        if times is None:
            return {}, {}
        plain = Surface(Side.of(self.first, {}, 1), Side.of(self.second, {}, 1), rising(times))

        def factor(pair: tuple[int, int], call: OpCall) -> float:
            read, made = (np.array([width]) for width in pair)
            return max(1.0, nanoseconds[call.text] / max(1.0, float(plain.at(read, made)[0])))

        first, second = (
            {divisor: factor(pair, call) for divisor, (pair, call) in side.items() if call.text in nanoseconds} for side in self.off
        )
        return first, second

    def _times(self, nanoseconds: Mapping[str, int]) -> FloatArray | None:
        if any(call.text not in nanoseconds for row in self.points for call in row):
            return None
        return np.array([[nanoseconds[call.text] for call in row] for row in self.points], np.float64)
