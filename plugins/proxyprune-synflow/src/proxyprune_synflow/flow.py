"""The scorer: one backward pass through the network made of the sizes of its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune import ModelGraph, ScoringContext
from proxyprune.errors import MissingNeedError, ScoringError
from proxyprune.scoring import (
    Ranking,
    call_arguments,
    group_importance,
    half_saturation,
    mapped,
    model_given,
    parameters_by_block,
    significant,
    tensors_of,
    untouched,
)
from proxyprune_synflow.linear import LinearFlow


@dataclass(frozen=True)
class SynFlowScorer:
    """Synaptic flow: |w| * dR/d|w|, where R is the summed output of the network with all weights made positive, fed with ones.

    Norms are replaced by a constant scale and their gain, activation functions by the identity, attention by the mean over all keys,
    biases by nothing; all in float64. What is left is linear in every layer, so the flow through a layer is the flow through the
    network, and a block's score is the mean flow through its layers: the share of all paths that lead through it. An atom gets the sum
    over the slices that leave with it.

    It needs no data, and it misleads accordingly: queries and keys carry no flow, so attention is judged by its values; a wide open
    path counts whether or not its signals cancel; and by construction the layers of a chain all get the same, so it says more about
    parallel paths (residual branches) than about depth.

    Source:
        Tanaka et al. 2020, arXiv:2006.05467, eq. 1 and algorithm 1, in one shot. Deviations: norms and attention as above, because a
        norm in evaluation or training mode breaks the conservation that the method rests on.
    """

    name: str = field(default="synflow", init=False)
    needs: frozenset[str] = field(default=frozenset({"weights"}), init=False)

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """One forward and one backward pass on the example inputs."""
        model = model_given(self, context)
        if context.example_inputs is None:
            raise MissingNeedError("Scorer 'synflow' runs the model on its example inputs, but got none. Pass example_inputs to score.")
        flows = _flows(model, context.example_inputs, context.seed)
        inside = parameters_by_block((block.id for block in graph.blocks), [name for name, flow in flows.items() if flow.ndim > 1])
        totals = {name: float(flow.sum()) for name, flow in flows.items()}
        through = {block: sum(totals[name] for name in names) / len(names) if names else None for block, names in inside.items()}
        atoms = group_importance(flows, graph.prunable, "l1")
        return Ranking(
            scores=half_saturation({block: None if value is None else significant(value) for block, value in through.items()}),
            scorer=self.name,
            channel_scores={group: tuple(significant(value) for value in values.tolist()) for group, values in atoms.items()},
            seed=context.seed,
            notes=("Synaptic flow through the absolute weights; no data was used, and queries and keys carry none.",),
        )


def _flows(model: nn.Module, example_inputs: Any, seed: int) -> dict[str, Tensor]:
    """|w| * dR/d|w| by every name of each parameter, as shares of the largest total flow."""
    names = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()}
    with untouched(model, seed), torch.inference_mode(mode=False), torch.enable_grad():
        model.eval()
        sizes = {id(p): p.detach().abs().double().requires_grad_(True) for p in names.values()}
        buffers = {name: b.detach().double() for name, b in model.named_buffers(remove_duplicate=False) if b.is_floating_point()}
        state = {**buffers, **{name: sizes[id(p)] for name, p in names.items()}}
        args, kwargs = call_arguments(mapped(example_inputs, _ones))
        try:
            with LinearFlow():
                output = torch.func.functional_call(model, state, args, kwargs, tie_weights=False)
            total = sum(tensor.double().abs().sum() for tensor in tensors_of(output) if tensor.is_floating_point())
        except Exception as error:
            raise ScoringError(
                f"Scorer 'synflow' cannot run {type(model).__name__} with positive weights ({type(error).__name__}: {error}). "
                "Its forward does something that the scorer does not follow; use another data-free scorer, such as 'magnitude'."
            ) from error
        if not isinstance(total, Tensor) or not total.requires_grad or not torch.isfinite(total):
            raise ScoringError(f"Scorer 'synflow' found no finite flow through {type(model).__name__}: the summed output is {total!r}.")
        found = torch.autograd.grad(total, list(sizes.values()), allow_unused=True)
    flows = {
        key: size.detach() * gradient if gradient is not None else torch.zeros_like(size)
        for (key, size), gradient in zip(sizes.items(), found, strict=True)
    }
    largest = max((float(flow.sum()) for flow in flows.values()), default=0.0) or 1.0
    return {name: flows[id(p)] / largest for name, p in names.items()}


def _ones(value: Tensor) -> Tensor:
    """Ones in the place of real numbers; timesteps, tokens and labels stay."""
    return torch.ones_like(value, dtype=torch.float64) if value.is_floating_point() else value
