"""Run the forward of an unpruned model without data: once for each kind of empty tensors, whatever is asked of it later.

The unpruned forward is the same for every cut, so all probes of a model read the same few runs. How many there are does not depend on the
number of probes, of amendments or of layers.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence

from torch import nn

from proxyprune.graph.model_graph import ModelGraph
from proxyprune.surgery.comparison import PredictedCall, predicted_calls
from proxyprune.surgery.dry_run import DryRun, LinedUp
from proxyprune.surgery.prediction import Prediction
from proxyprune.tracing.model_call import Call, on_device_of
from proxyprune.tracing.skeleton import EmptyTensors, skeleton


class UnprunedRuns:
    """Runs of one unpruned model on one example call.

    Args:
        model: The unpruned model; it is not changed, and held weakly, so the caller has to hold it.
        graph: A trace of it. Amendments do not matter: nothing is cut here.
        example_inputs: What it was traced on.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph, example_inputs: Call) -> None:
        self._model = weakref.ref(model)
        self._graph = graph
        self._inputs = example_inputs
        self._lined_up: dict[EmptyTensors, LinedUp] = {}

    @property
    def model(self) -> nn.Module:
        """The unpruned model."""
        model = self._model()
        assert model is not None, "the model is gone"
        return model

    @functools.cached_property
    def calls(self) -> Sequence[PredictedCall]:
        """The traced calls, in order."""
        return predicted_calls(Prediction.unpruned_of(self._graph))

    @functools.cached_property
    def meta(self) -> DryRun:
        """A dry run on the meta device, the fastest way."""
        return DryRun(on_device_of(self.model, self._inputs), EmptyTensors.meta(), self._graph.program.known_ops)

    @functools.cached_property
    def fake(self) -> DryRun:
        """A dry run on fake tensors, which keep every tensor's device."""
        return DryRun(self.meta.example_inputs, EmptyTensors.fake())

    @property
    def ways(self) -> Iterator[DryRun]:
        """Ways to run a skeleton, the fastest first; one in which the unpruned forward is known to do something else is left out."""
        if self.meta.empty not in self._lined_up or self.lined_up(self.meta).complete:
            yield self.meta
        yield self.fake

    @functools.cached_property
    def faithful(self) -> DryRun:
        """The fastest way in which the unpruned forward does what was traced; the fastest of all if it never does."""
        return next((run for run in (self.meta, self.fake) if self.lined_up(run).complete), self.meta)

    def lined_up(self, run: DryRun) -> LinedUp:
        """Return how the unpruned forward lines up with the traced calls."""
        if run.empty not in self._lined_up:
            self._lined_up[run.empty] = run.line_up(skeleton(self.model, run.empty), self.calls)
        return self._lined_up[run.empty]

    def extra(self, run: DryRun) -> frozenset[int]:
        """Return the calls that the traced program lacks, as far as they are known without another run."""
        known = self._lined_up.get(run.empty)
        return known.extra if known is not None and known.complete else frozenset()
