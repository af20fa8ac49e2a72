"""Other tools and published methods on the networks of real_networks.py, at the same budget and judged in the same way.

    torch-pruning-magnitude, torch-pruning-taylor   its own pruner, given the number of heads; the layers that make the output are ignored
    ShortGPT    Men et al. 2024, arXiv:2403.03853: whole layers leave by block influence
    Wanda-sp    the structured Wanda of An et al. 2023, arXiv:2312.11983: |W| * ||x||, every group narrowed by the same share
    FLAP        An et al. 2023: variance of the input times squared weights, standardised by group, one threshold; then a bias
    GRAIL       arXiv:2602.23795: the cut of Wanda-sp, then W G_:P (G_PP + lambda mean(diag) I)^-1; convolutions by channel

Written from the papers, on our groups: atoms of Wanda-sp and FLAP are the attention heads and hidden features that one layer reads. FLAP
adds the saved mean of the dropped inputs as a bias, where the layer has none too. GRAIL fits all batches and has no guard; lambda is 0 for
language models and 1e-3 elsewhere, as in its code.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from real_subjects import RealNetwork
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.applying.apply import apply
from proxyprune.compensation.calibration_pass import CalibrationData, Pass, measuring, paired_moments, survey
from proxyprune.compensation.moments import Moments
from proxyprune.compensation.readers import Networks, Reader, find_readers
from proxyprune.compensation.refit import BUFFER_BYTES, waves_of
from proxyprune.compensation.ridge import ridge
from proxyprune.coupling.groups import ChannelGroup, Member
from proxyprune.planning.importance import best_atoms
from proxyprune.result import PruneResult, make_report
from proxyprune.scoring.tools.hooks import hooked
from proxyprune.scoring.tools.layer_views import LayerView, view_of
from proxyprune.support.nested import tensors_of

FloatArray = NDArray[np.float64]

TORCH_PRUNING: Mapping[str, str] = {
    "torch-pruning-magnitude": "GroupMagnitudeImportance",
    "torch-pruning-taylor": "GroupTaylorImportance",
}
PEERS = (*TORCH_PRUNING, "ShortGPT", "Wanda-sp", "FLAP", "GRAIL")
_BISECTIONS = 24
_TORCH_PRUNING_BISECTIONS = 9
_NEAR = 0.01
_QUERIES_AND_KEYS = ("query", "key", "value", "q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class PeerCut:
    """The result of a peer on a network.

    Attributes:
        cut: As cut, without the peer's own repair.
        final: After its repair; the same network where it has none.
        macs: By our counter.
        params: By our counter.
    """

    cut: nn.Module
    final: nn.Module
    macs: int
    params: int


def peer_cut(peer: str, subject: RealNetwork, graph: pp.ModelGraph, ratio: float, seed: int) -> PeerCut:
    """Cut a network to a share of its budget as a peer does.

    Raises:
        Exception: Whatever torch-pruning or the network that it returns raises.
    """
    if peer in TORCH_PRUNING:
        return _by_torch_pruning(peer, subject, graph, ratio)
    if peer == "ShortGPT":
        return _short_gpt(subject, graph, ratio, seed)
    layers = _single_readers(graph, subject)
    statistics = _input_statistics(subject, layers)
    if peer == "FLAP":
        scores = {group: _standardised(_fluctuation(subject, layers[group], statistics[group])) for group in layers}
        result = _cut(subject, graph, _kept_by_threshold(subject, graph, scores, ratio))
        final = _with_mean_bias(subject, result, seed)
    else:
        scores = {group: _wanda(subject, layers[group], statistics[group]) for group in layers}
        result = _cut(subject, graph, _kept_by_share(subject, graph, scores, ratio))
        final = result.model if peer == "Wanda-sp" else _with_grail(subject, result, seed)
    return PeerCut(result.model, final, result.plan.macs, result.plan.params)


def _data(subject: RealNetwork, seed: int) -> CalibrationData:
    return CalibrationData(subject.batches, subject.loss_fn if subject.metric == "perplexity" else None, seed)


def _short_gpt(subject: RealNetwork, graph: pp.ModelGraph, ratio: float, seed: int) -> PeerCut:
    """Remove whole layers, lowest block influence first, until the budget is met."""
    if not subject.stack:
        raise RuntimeError("the network has no stack of layers")
    influence = _influence(subject, seed)
    order = sorted(range(len(influence)), key=influence.__getitem__)
    base = graph.params if subject.budget == "params" else graph.macs
    for count in range(1, len(order)):
        model = copy.deepcopy(subject.model)
        owner, _, name = subject.stack.rpartition(".")
        stack: Any = model.get_submodule(subject.stack)
        left = [layer for index, layer in enumerate(stack) if index not in order[:count]]
        setattr(model.get_submodule(owner), name, nn.ModuleList(left))
        config: Any = model.config
        config.num_hidden_layers = len(left)
        counted = pp.trace(model, subject.example, probe=False)
        if (counted.params if subject.budget == "params" else counted.macs) <= ratio * base:
            return PeerCut(model, model, counted.macs, counted.params)
    raise RuntimeError(f"one layer alone is above {ratio:g} of the {subject.budget}")


def _influence(subject: RealNetwork, seed: int) -> list[float]:
    """Return one minus the mean cosine of the input and the output of each layer."""
    stack: Any = subject.model.get_submodule(subject.stack)
    sums = [[0.0, 0.0] for _ in stack]

    def watch(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before, after = next(tensors_of((args, tuple(kwargs.values())))), next(tensors_of(output))
            cosines = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            sums[index][0] += float((1.0 - cosines).sum())
            sums[index][1] += cosines.numel()

        return hook

    data = _data(subject, seed)
    with measuring(subject.model), hooked((layer, watch(index)) for index, layer in enumerate(stack)):
        for index in range(len(data.batches)):
            data.run(subject.model, index)
    return [total / count for total, count in sums]


@dataclass(frozen=True)
class _ReadBy:
    """The one layer that reads a group."""

    name: str
    view: LayerView
    group: ChannelGroup
    member: Member


def _single_readers(graph: pp.ModelGraph, subject: RealNetwork) -> dict[str, _ReadBy]:
    """Return groups that one linear layer or convolution reads: heads and hidden features, not the residual width."""
    modules = dict(subject.model.named_modules())
    found = {}
    for group in graph.prunable:
        readers = []
        for member in group.members:
            name = member.parameter.removesuffix(".weight")
            view = view_of(modules[name], 1) if member.parameter.endswith(".weight") and name in modules else None
            if view is not None and member.dim == view.input_dim:
                readers.append(_ReadBy(name, view, group, member))
        if len(readers) == 1:
            found[group.id] = readers[0]
    return found


def _input_statistics(subject: RealNetwork, layers: Mapping[str, _ReadBy]) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return mean and mean square of every input channel, by group."""
    modules = dict(subject.model.named_modules())
    sums: dict[str, tuple[Any, Any, int]] = dict.fromkeys(layers, (0.0, 0.0, 0))

    def watch(group: str, layer: _ReadBy) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = next(tensors_of((args, tuple(kwargs.values())))).detach()
            inputs = layer.view.inputs(module, value).transpose(0, 1).flatten(1).double()
            total, squares, count = sums[group]
            sums[group] = (total + inputs.sum(dim=0), squares + inputs.square().sum(dim=0), count + len(inputs))

        return hook

    data = _data(subject, 0)
    with measuring(subject.model), hooked((modules[layer.name], watch(group, layer)) for group, layer in layers.items()):
        for index in range(len(data.batches)):
            data.run(subject.model, index)
    return {group: ((total / count).numpy(), (squares / count).numpy()) for group, (total, squares, count) in sums.items()}


def _weights(subject: RealNetwork, layer: _ReadBy) -> Tensor:
    """Return the weight of a reader as [inputs, everything else], float64."""
    weight = subject.model.get_submodule(layer.name).get_parameter("weight").detach().double()
    return weight.movedim(layer.view.input_dim, 0).flatten(1)


def _by_atom(layer: _ReadBy, channels: FloatArray) -> FloatArray:
    return np.asarray(channels[layer.member.positions].sum(axis=1))


def _wanda(subject: RealNetwork, layer: _ReadBy, statistics: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Return the sum of |W| * ||x|| over what leaves with an atom."""
    return _by_atom(layer, _weights(subject, layer).abs().sum(dim=1).numpy() * np.sqrt(statistics[1]))


def _fluctuation(subject: RealNetwork, layer: _ReadBy, statistics: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Return the variance of an input times its squared weights, added up over an atom."""
    variance = np.maximum(statistics[1] - statistics[0] ** 2, 0.0)
    return _by_atom(layer, _weights(subject, layer).square().sum(dim=1).numpy() * variance)


def _standardised(scores: FloatArray) -> FloatArray:
    return (scores - scores.mean()) / max(float(scores.std()), np.finfo(np.float64).tiny)


def _counts(graph: pp.ModelGraph, counts: Mapping[str, int]) -> NDArray[np.int64]:
    return np.array([counts.get(group.id, group.atoms) for group in graph.prunable], dtype=np.int64)


def _in_steps(group: ChannelGroup, count: float) -> int:
    """Round down to whole steps, at least the floor of the group."""
    steps = int((group.atoms - count + group.step - 1e-9) // group.step)
    return max(group.floor, group.atoms - steps * group.step)


def _kept_by_share(
    subject: RealNetwork, graph: pp.ModelGraph, scores: Mapping[str, FloatArray], ratio: float
) -> dict[str, tuple[int, ...]]:
    """Keep the same share of every group, the largest that meets the budget."""

    def counts(share: float) -> dict[str, int]:
        return {group: _in_steps(graph.by_id[group], share * len(values)) for group, values in scores.items()}

    return _largest(subject, graph, scores, ratio, counts)


def _kept_by_threshold(
    subject: RealNetwork, graph: pp.ModelGraph, scores: Mapping[str, FloatArray], ratio: float
) -> dict[str, tuple[int, ...]]:
    """Keep what is above one threshold, the lowest that meets the budget."""
    ordered = np.sort(np.concatenate(list(scores.values())))[::-1]

    def counts(share: float) -> dict[str, int]:
        least = ordered[min(int(share * len(ordered)), len(ordered) - 1)]
        return {group: _in_steps(graph.by_id[group], int((values >= least).sum())) for group, values in scores.items()}

    return _largest(subject, graph, scores, ratio, counts)


def _largest(
    subject: RealNetwork, graph: pp.ModelGraph, scores: Mapping[str, FloatArray], ratio: float, counts: Any
) -> dict[str, tuple[int, ...]]:
    cost, base = (graph.cost.params, graph.params) if subject.budget == "params" else (graph.cost.macs, graph.macs)
    low, high = 0.0, 1.0
    if cost(_counts(graph, counts(low))) > ratio * base:
        raise RuntimeError(f"The smallest network is above {ratio:g} of the {subject.budget}.")
    for _ in range(_BISECTIONS):
        share = (low + high) / 2
        low, high = (share, high) if cost(_counts(graph, counts(share))) <= ratio * base else (low, share)
    return {group: best_atoms(graph.by_id[group], scores[group], count) for group, count in counts(low).items()}


def _cut(subject: RealNetwork, graph: pp.ModelGraph, kept: Mapping[str, Sequence[int]]) -> PruneResult:
    """Cut exactly these atoms."""
    left = {group: tuple(atoms) for group, atoms in kept.items() if len(atoms) < graph.by_id[group].atoms}
    atoms = _counts(graph, {group: len(values) for group, values in left.items()})
    macs, params = int(graph.cost.macs(atoms)), int(graph.cost.params(atoms))
    plan = pp.PrunePlan(
        fingerprint=graph.fingerprint,
        mode="width",
        metric="macs",
        target=macs,
        base_macs=graph.macs,
        target_macs=macs,
        macs=macs,
        base_params=graph.params,
        target_params=graph.params,
        params=params,
        kept={group.id: left[group.id] for group in graph.prunable if group.id in left},
        widths={g.id: (g.width, len(left[g.id]) * g.atom_channels) for g in graph.prunable if g.id in left},
    )
    applied = apply(subject.model, plan, subject.example, graph=graph)
    return PruneResult(applied.model, plan, pp.Ranking({}, "peer"), make_report(graph, plan), applied.surgery, graph, subject.example)


def _summed(subject: RealNetwork, networks: Networks, readers: Sequence[Reader], seed: int) -> Iterator[tuple[Reader, Moments]]:
    """Yield the sums over all batches of what the unpruned layers read and yield, unweighted."""
    data = _data(subject, seed)
    how = Pass(from_dense=True, weighted=False, may_stop=False)
    for wave in waves_of(readers, BUFFER_BYTES, 1):
        pairs = paired_moments(networks, wave, data, how, lambda done: None)
        for reader in wave:
            both, other = pairs.pop(reader.name)
            for attribute in ("gram", "cross", "feature_sum", "target_sum", "target_square", "weight"):
                setattr(both, attribute, getattr(both, attribute) + getattr(other, attribute))
            both.positions += other.positions
            yield reader, both


def _read(subject: RealNetwork, result: PruneResult, seed: int) -> tuple[Networks, tuple[Reader, ...]]:
    networks = Networks(subject.model, copy.deepcopy(result.model), result.surgery, result.graph.program)
    return networks, survey(networks, find_readers(networks, largest_features=1).readers, _data(subject, seed)).readers


def _with_grail(subject: RealNetwork, result: PruneResult, seed: int) -> nn.Module:
    """Replace the weights of the readers by their ridge regression on the kept inputs, towards zero and without an intercept."""
    networks, readers = _read(subject, result, seed)
    with measuring(networks.dense, networks.pruned):
        strength = 0.0 if subject.metric == "perplexity" else 1e-3
        for reader, moments in _summed(subject, networks, readers, seed):
            start = torch.zeros_like(reader.start(reader.pruned.get_parameter("weight").detach()))
            weight = reader.weights(ridge(moments, start, strength, intercept=False).slope)
            with torch.no_grad():
                reader.pruned.get_parameter("weight").copy_(weight)
    return networks.pruned


def _with_mean_bias(subject: RealNetwork, result: PruneResult, seed: int) -> nn.Module:
    """Add to the bias of each reader what the dropped inputs yield on average."""
    networks, readers = _read(subject, result, seed)
    shifts: dict[str, Tensor] = {}
    with measuring(networks.dense, networks.pruned):
        for reader, moments in _summed(subject, networks, readers, seed):
            weight = moments.weight.unsqueeze(1)
            start = reader.start(reader.pruned.get_parameter("weight").detach())
            missing = moments.target_sum / weight - torch.einsum("gf,gft->gt", moments.feature_sum / weight, start)
            shifts[reader.name] = reader.shift(missing).to(torch.float32)
    for name, shift in shifts.items():
        layer: Any = networks.pruned.get_submodule(name)
        layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias.detach() + shift)
    return networks.pruned


def _by_torch_pruning(peer: str, subject: RealNetwork, graph: pp.ModelGraph, ratio: float) -> PeerCut:
    """Return the largest network within the budget that bisecting torch-pruning's global ratio finds."""
    base = graph.params if subject.budget == "params" else graph.macs
    low, high = 0.0, 0.95
    best: tuple[int, PeerCut] | None = None
    whole = copy.deepcopy(subject.model).eval()
    if peer == "torch-pruning-taylor":
        for batch in subject.batches:
            torch.autograd.backward(subject.loss_fn(whole, batch) / len(subject.batches))
    for _ in range(_TORCH_PRUNING_BISECTIONS):
        share = (low + high) / 2
        model = copy.deepcopy(whole)
        for own, source in zip(model.parameters(), whole.parameters(), strict=True):
            own.grad = source.grad  # a copy of a parameter has no gradient
        model = _torch_pruned(peer, subject, model, share)
        _called(model, subject.example)
        counted = pp.trace(model, subject.example, probe=False)
        cost = counted.params if subject.budget == "params" else counted.macs
        if cost <= ratio * base:
            best = best if best is not None and best[0] >= cost else (cost, PeerCut(model, model, counted.macs, counted.params))
            high = share
        else:
            low = share
        if best is not None and ratio * base - best[0] <= _NEAR * base:
            break
    if best is None:
        raise RuntimeError(f"no ratio up to {high:.2f} meets the budget")
    return best[1]


def _called(model: nn.Module, example: Any) -> None:
    with torch.no_grad():
        _ = model(**example) if isinstance(example, Mapping) else model(example)


def _torch_pruned(peer: str, subject: RealNetwork, model: nn.Module, share: float) -> nn.Module:
    import torch_pruning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            subject.example,
            importance=getattr(torch_pruning.importance, TORCH_PRUNING[peer])(),
            global_pruning=True,
            pruning_ratio=share,
            max_pruning_ratio=0.95,
            ignored_layers=[model.get_submodule(name) for name in subject.whole],
            num_heads=_heads(model),
            prune_head_dims=False,
            prune_num_heads=bool(_heads(model)),
            output_transform=lambda output: list(tensors_of(output)),
        )
        pruner.step()
    _with_head_counts(model, pruner.num_heads)
    return model.zero_grad(set_to_none=True) or model


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    found = {}
    for module in model.modules():
        count = getattr(module, "num_attention_heads", None)
        if isinstance(count, int):
            found |= {child: count for name, child in module.named_children() if isinstance(child, nn.Linear) and name in _QUERIES_AND_KEYS}
    return found


def _with_head_counts(model: nn.Module, counts: Mapping[nn.Module, int]) -> None:
    """Write the counts of heads where the forward reads them, as torch-pruning's examples do."""
    for module in model.modules():
        for name, child in module.named_children():
            if name == "query" and child in counts:
                layer: Any = module
                layer.num_attention_heads, layer.all_head_size = counts[child], child.out_features
