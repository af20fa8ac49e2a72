"""What every rule must say, on networks of one or two layers around the op: widths, units, members, pins and unsupported ops."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from drawn import random_plan
from masking import assert_equals_masking, randomise
from torch import Tensor, nn
from zoo import measured_macs

import proxyprune as pp
from proxyprune.coupling.rules.table import TABLE

BATCH, LENGTH, WIDTH, SIDE = 2, 6, 16, 8
TOKENS = (torch.linspace(-1, 1, BATCH * LENGTH * 8).sin().view(BATCH, LENGTH, 8),)
IMAGES = (torch.linspace(-9, 9, BATCH * 3 * SIDE * SIDE).sin().view(BATCH, 3, SIDE, SIDE),)

Forward = Callable[[Any, Tensor], Tensor]


class Around(nn.Module):
    """first -> forward(self, x) -> last; `parts` are submodules, or shapes of parameters."""

    def __init__(self, first: nn.Module, forward: Forward, last: nn.Module, parts: Mapping[str, Any]) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.middle = forward
        for name, part in parts.items():
            setattr(self, name, part() if callable(part) else nn.Parameter(torch.zeros(part)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, self.first(x)))


@dataclass(frozen=True)
class Case:
    """An op between two layers of width 16.

    Attributes:
        forward: Gets the module and the hidden tensor, [2, 6, 16] or [2, 16, 8, 8].
        out: Width of what it returns.
        image: Channels lie in dimension 1.
        parts: Submodules (factories) and shapes of parameters that the forward reads from the module.
    """

    forward: Forward
    out: int = WIDTH
    image: bool = False
    parts: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Around:
        if self.image:
            return Around(nn.Conv2d(3, WIDTH, 3, padding=1), self.forward, nn.Conv2d(self.out, 4, 1), self.parts).eval()
        return Around(nn.Linear(8, WIDTH), self.forward, nn.Linear(self.out, 4), self.parts).eval()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return IMAGES if self.image else TOKENS

    def trace(self, **options: Any) -> Any:
        return pp.trace(self.build(), self.inputs, probe=False, **options)


def tokens(forward: Forward, out: int = WIDTH, **parts: Any) -> Case:
    return Case(forward, out, False, parts)


def images(forward: Forward, out: int = WIDTH, **parts: Any) -> Case:
    return Case(forward, out, True, parts)


def groups_of(graph: Any, parameter: str, dim: int = 0) -> list[Any]:
    """Return the groups that cut a dimension."""
    return [group for group in graph.groups if (parameter, dim) in [tuple(member) for member in group.members]]


def group_of(graph: Any, parameter: str, dim: int = 0) -> Any:
    """Return the one group that cuts a dimension."""
    (group,) = groups_of(graph, parameter, dim)
    return group


def positions(graph: Any, parameter: str, dim: int) -> list[list[int]]:
    """Which positions of a dimension leave with each atom."""
    (member,) = [member for member in group_of(graph, parameter, dim).members if tuple(member) == (parameter, dim)]
    return [sorted(row) for row in member.positions.tolist()]


def linear(into: int, out: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(into, out, **options)


def rms(x: Tensor, dim: int = -1) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + 1e-5)


def centred(x: Tensor, square: Callable[[Tensor], Tensor]) -> Tensor:
    shifted = x - x.mean(-1, keepdim=True)
    return shifted / torch.sqrt(square(shifted).mean(-1, keepdim=True) + 1e-6)


def var_mean_norm(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-6)


def written_in_place(x: Tensor) -> Tensor:
    y = x.new_zeros(BATCH, LENGTH, x.shape[-1])
    y[:, :3] = x[:, :3]
    y[:, 3:] = F.relu(x[:, 3:])
    return y


def global_response(x: Tensor) -> Tensor:
    spread = x.norm(dim=(2, 3), keepdim=True)
    return x * (spread / (spread.mean(1, keepdim=True) + 1e-6))


def rotated(module: Any, x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * torch.cos(module.angle) + torch.cat([-second, first], -1) * torch.sin(module.angle)


def weight_standardised(module: Any, x: Tensor) -> Tensor:
    kernel = module.kernel
    shifted = kernel - kernel.mean((1, 2, 3), keepdim=True)
    return F.conv2d(x, shifted / (kernel.std((1, 2, 3), keepdim=True) + 1e-5))


def windows(x: Tensor) -> Tensor:
    """[2, c, 8, 8] -> [8, 16, c] in shifted windows of 4 x 4, and back."""
    x = torch.roll(x.permute(0, 2, 3, 1), (-2, -2), (1, 2))
    w = x.view(BATCH, 2, 4, 2, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, x.shape[-1])
    w = F.gelu(w).view(BATCH, 2, 2, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(BATCH, 8, 8, -1)
    return torch.roll(w, (2, 2), (1, 2)).permute(0, 3, 1, 2)


FREE: dict[str, Case] = {
    # elementwise
    "relu": tokens(lambda m, x: F.relu(x)),
    "sigmoid": tokens(lambda m, x: torch.sigmoid(x)),
    "parameter": tokens(lambda m, x: torch.addcmul(x, m.gain, x), gain=(WIDTH,)),
    "lerp": tokens(lambda m, x: torch.lerp(x, m.shift, 0.3), shift=(WIDTH,)),
    "where": tokens(lambda m, x: torch.where(x > 0, x, m.shift), shift=(WIDTH,)),
    "masked_fill": tokens(lambda m, x: x.masked_fill(x > 0, 1.0)),
    "masked_scatter_of_tokens": tokens(
        lambda m, x: x.masked_scatter((torch.arange(x.shape[1]) < 2)[None, :, None].expand_as(x), x.flip(1).reshape(-1, x.shape[-1]))
    ),
    "index_add_over_tokens": tokens(lambda m, x: x.index_add(1, torch.tensor([2, 0]), x[:, :2])),
    "scatter_over_tokens": tokens(lambda m, x: torch.zeros_like(x).scatter_add(1, torch.zeros_like(x).long(), x)),
    "log_sigmoid": tokens(lambda m, x: F.logsigmoid(x)),
    "clamp_by_tensor": tokens(lambda m, x: torch.clamp(x, min=m.low), low=(WIDTH,)),
    "other_type": tokens(lambda m, x: x.to(m.unlike).type_as(m.unlike), unlike=(3, 5)),
    "prelu_channels": tokens(lambda m, x: F.prelu(x.transpose(1, 2), m.slope).transpose(1, 2), slope=(WIDTH,)),
    "prelu_one": tokens(lambda m, x: F.prelu(x, m.slope), slope=(1,)),
    "broadcast_tensors": tokens(lambda m, x: sum(torch.broadcast_tensors(x, m.shift), torch.zeros(())), shift=(WIDTH,)),
    "in_place_on_zeros": tokens(lambda m, x: written_in_place(x)),
    "complex": tokens(lambda m, x: torch.complex(x, 2 * x).abs()),
    # sums and norms over zeros
    "sum": tokens(lambda m, x: x * x.sum(-1, keepdim=True)),
    "sum_of_squares": tokens(lambda m, x: x * (x**2).sum(-1, keepdim=True)),
    "normalize": tokens(lambda m, x: F.normalize(x, dim=-1)),
    "linalg_norm": tokens(lambda m, x: x * torch.linalg.norm(x, dim=-1, keepdim=True)),
    "cosine_similarity": tokens(lambda m, x: x * F.cosine_similarity(x, x.roll(1, 1), dim=-1)[..., None]),
    "demodulated": images(lambda m, x: F.conv2d(x, m.w * torch.rsqrt(m.w.pow(2).sum((1, 2, 3), keepdim=True) + 1e-5)), w=(16, 16, 3, 3)),
    # statistics of hand-written norms
    "rms_norm_by_hand": tokens(lambda m, x: rms(x) * m.gain, gain=(WIDTH,)),
    "rms_norm_with_casts": tokens(lambda m, x: (x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, True) + 1e-5)).to(x.dtype)),
    "layer_norm_by_hand": tokens(lambda m, x: centred(x, torch.square)),
    "layer_norm_by_product": tokens(lambda m, x: centred(x, lambda y: y * y)),
    "layer_norm_by_std": tokens(lambda m, x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)),
    "layer_norm_by_var_mean": tokens(lambda m, x: var_mean_norm(x)),
    "global_response_norm": images(lambda m, x: global_response(x)),
    # reductions over other dimensions
    "mean_over_space": images(lambda m, x: x * x.mean((2, 3), keepdim=True)),
    "std_over_space": images(lambda m, x: x * x.std((2, 3), keepdim=True)),
    "amax_over_tokens": tokens(lambda m, x: x - x.amax(1, keepdim=True)),
    "max_over_tokens": tokens(lambda m, x: x - x.max(1, keepdim=True)[0]),
    "softmax_over_tokens": tokens(lambda m, x: x.softmax(1)),
    "cumsum_over_tokens": tokens(lambda m, x: x.cumsum(1)),
    "topk_of_tokens": tokens(lambda m, x: x.topk(3, 1)[0]),
    "fft_over_tokens": tokens(lambda m, x: torch.fft.fft(x, dim=1).real),
    "unread_mean": tokens(lambda m, x: (x.mean(-1), x)[1]),
    # norms
    "layer_norm": tokens(lambda m, x: m.norm(x), norm=lambda: nn.LayerNorm(WIDTH)),
    "layer_norm_without_weights": tokens(lambda m, x: F.layer_norm(x, (x.shape[-1],))),
    "rms_norm": tokens(lambda m, x: m.norm(x), norm=lambda: nn.RMSNorm(WIDTH)),
    "batch_norm": images(lambda m, x: m.norm(x), norm=lambda: nn.BatchNorm2d(WIDTH)),
    "batch_norm_of_the_batch": images(lambda m, x: m.norm(x), norm=lambda: nn.BatchNorm2d(WIDTH, track_running_stats=False)),
    "instance_norm": images(lambda m, x: m.norm(x), norm=lambda: nn.InstanceNorm2d(WIDTH)),
    "one_norm_group": images(lambda m, x: m.norm(x), norm=lambda: nn.GroupNorm(1, WIDTH)),
    # shapes
    "permutations": images(lambda m, x: x.permute(0, 2, 3, 1).movedim(-1, 0).swapaxes(0, 1).mT.transpose(2, 3)[:, :].transpose(2, 3)),
    "flatten": images(lambda m, x: x.flatten(2).unflatten(2, (4, 16)).flatten(2).view(BATCH, -1, SIDE, SIDE)),
    "squeeze": tokens(lambda m, x: x[:, :1].squeeze().unsqueeze(1).squeeze((1,))),
    "flip": tokens(lambda m, x: x.flip(-1)),
    "repeat": tokens(lambda m, x: x.repeat(1, 1, 2), 32),
    "repeat_interleave": tokens(lambda m, x: x.repeat_interleave(2, -1), 32),
    "stack": tokens(lambda m, x: torch.stack([x, -x], -1).flatten(-2), 32),
    "expand": tokens(lambda m, x: x * x.sum(-1, keepdim=True).expand(-1, -1, x.shape[-1])),
    "expand_as": tokens(lambda m, x: x * m.gain.expand_as(x), gain=(WIDTH,)),
    "blur": images(lambda m, x: F.conv2d(x, m.k.expand(x.shape[1], 1, 3, 3), groups=x.shape[1], padding=1), k=(1, 1, 3, 3)),
    "pixel_unshuffle": images(lambda m, x: F.pixel_unshuffle(x, 2), 64),
    "unfold": images(lambda m, x: F.unfold(x, 3, padding=1).unflatten(2, (8, 8)), 144),
    "fold": images(lambda m, x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2)),
    "sliding_windows": tokens(lambda m, x: x.unfold(1, 2, 2).mean(-1)),
    "shifted_windows": images(lambda m, x: windows(x)),
    # joins
    "cat": tokens(lambda m, x: torch.cat([x, F.relu(x)], -1), 32),
    "hstack": tokens(lambda m, x: torch.hstack([x, x])),
    "pad_with_ones": tokens(lambda m, x: F.pad(x, (1, 2), value=1.0), 19),
    "pad_space": images(lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "select_token": tokens(lambda m, x: x[:, 0]),
    "roll_tokens": tokens(lambda m, x: x.roll(1, 1)),
    "triangle_of_space": images(lambda m, x: torch.tril(x, 2) + torch.triu(x)),
    "class_token": tokens(lambda m, x: torch.cat([m.token.expand(BATCH, -1, -1), x], 1), token=(1, 1, WIDTH)),
    "embedding": tokens(lambda m, x: x + m.table(torch.arange(LENGTH)), table=lambda: nn.Embedding(9, WIDTH)),
    "embedding_bag": tokens(lambda m, x: x + m.table(torch.arange(6).view(BATCH, 3))[:, None], table=lambda: nn.EmbeddingBag(6, WIDTH)),
    "relative_positions": tokens(lambda m, x: x + m.table[torch.arange(LENGTH)], table=(9, WIDTH)),
    "index_tokens": tokens(lambda m, x: x[torch.arange(BATCH)[:, None], torch.arange(3)[None]]),
    "index_select_tokens": tokens(lambda m, x: x.index_select(1, torch.arange(3))),
    "gather_tokens": tokens(lambda m, x: x.gather(1, torch.arange(3).view(1, 3, 1).repeat(BATCH, 1, x.shape[-1]))),
    "gather_tokens_expanded": tokens(lambda m, x: x.gather(1, torch.arange(3).view(1, 3, 1).expand(BATCH, -1, x.shape[-1]))),
    "take_along_dim": tokens(lambda m, x: torch.take_along_dim(x, torch.arange(3).view(1, 3, 1), dim=1)),
    # sampling
    "interpolate": images(lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bicubic")),
    "adaptive_pool": images(lambda m, x: F.adaptive_avg_pool2d(x, 3) + F.adaptive_max_pool2d(x, 3)),
    "max_unpool": images(lambda m, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    "grid_sample": images(lambda m, x: F.grid_sample(x, torch.zeros(BATCH, 8, 8, 2), align_corners=False)),
    # products
    "matmul_with_vector": tokens(lambda m, x: x * torch.matmul(x, m.v)[..., None], v=(WIDTH,)),
    "mv": tokens(lambda m, x: x * torch.mv(m.a, m.v), a=(WIDTH, 5), v=(5,)),
    "dot": tokens(lambda m, x: x * torch.dot(m.v, m.v), v=(WIDTH,)),
    "outer": tokens(lambda m, x: x * torch.outer(m.v, m.w)[0], v=(5,), w=(WIDTH,)),
    "einsum_by_letter": tokens(lambda m, x: torch.einsum("btc,c->btc", x, m.gain), gain=(WIDTH,)),
    "same_padding": images(lambda m, x: m.c(x), 12, c=lambda: nn.Conv2d(WIDTH, 12, 3, padding="same", dilation=2)),
    "circular_padding": images(lambda m, x: m.c(x), 12, c=lambda: nn.Conv2d(WIDTH, 12, 3, padding=1, padding_mode="circular")),
}
"""The hidden width may shrink channel by channel."""


@pytest.mark.parametrize("name", FREE)
def test_channels_stay_free(name: str) -> None:
    """16 atoms of one channel, which first and last layer share, and every op has a rule."""
    graph = FREE[name].trace()
    group = group_of(graph, "first.weight")
    assert graph.unsupported_ops == ()
    assert group.pinned is None
    assert (group.width, group.unit, group.atoms) == (WIDTH, 1, WIDTH)
    assert {("first.weight", 0), ("first.bias", 0)} <= {tuple(member) for member in group.members}


EXACT = [
    *("in_place_on_zeros", "sum", "cosine_similarity", "demodulated", "layer_norm_by_var_mean"),
    *("global_response_norm", "other_type", "broadcast_tensors", "expand", "blur", "fold", "unfold", "shifted_windows", "gather_tokens"),
    *("index_tokens", "embedding_bag", "max_unpool", "dot", "pad_with_ones", "stack", "class_token", "take_along_dim"),
]


@pytest.mark.parametrize("name", EXACT)
def test_what_stays_free_can_be_cut(name: str) -> None:
    """A random cut runs, costs what was planned, and equals masking."""
    case = FREE[name]
    model = randomise(case.build())
    graph = pp.trace(model, case.inputs)
    plan = random_plan(graph, random.Random(name))
    pruned = pp.apply_plan(model, plan, case.inputs, graph=graph)
    assert plan.macs == measured_macs(pruned, case.inputs)
    assert_equals_masking(model, pruned, graph, plan, case.inputs)


def shifted_view(x: Tensor) -> Tensor:
    y = F.relu(x)
    y[:, :3].add_(1.0)
    return y * y.sum(-1, keepdim=True)


def partly_filled(x: Tensor) -> Tensor:
    y = torch.cat([x, x], -1)
    y[..., :WIDTH] = 1.0
    return y * y.sum(-1, keepdim=True)


REDUCED = "is reduced, with dropped channels counted, in"
PINNED: dict[str, tuple[Case, str]] = {
    # reductions that would see that channels are missing
    "mean": (tokens(lambda m, x: x * torch.sigmoid(x.mean(-1, keepdim=True))), REDUCED),
    "weight_standardised": (images(weight_standardised, 12, kernel=(12, 16, 3, 3)), "weights are standardised over"),
    "mean_as_a_factor": (tokens(lambda m, x: x * x.mean(-1, keepdim=True)), REDUCED),
    "half_the_mean": (tokens(lambda m, x: x - 0.5 * x.mean(-1, keepdim=True)), REDUCED),
    "spread_as_a_feature": (tokens(lambda m, x: x + x.std(-1, keepdim=True)), REDUCED),
    "norm_of_another_tensor": (tokens(lambda m, x: F.relu(x) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)), REDUCED),
    "sum_of_what_is_not_zero": (tokens(lambda m, x: x * torch.sigmoid(x).sum(-1, keepdim=True)), REDUCED),
    "normalize_what_is_not_zero": (tokens(lambda m, x: F.normalize(torch.sigmoid(x), dim=-1)), REDUCED),
    "sum_after_a_shift": (tokens(lambda m, x: x * (x + 1.0).sum(-1, keepdim=True)), REDUCED),
    "sum_after_a_shared_bias": (tokens(lambda m, x: x * (x + m.bias).sum(-1, keepdim=True), bias=(1,)), REDUCED),
    "sum_after_a_power_of_zero": (tokens(lambda m, x: x * (x**0).sum(-1, keepdim=True)), REDUCED),
    "sum_of_powers": (tokens(lambda m, x: x * (2.0**x).sum(-1, keepdim=True)), REDUCED),
    "sum_after_a_fill": (tokens(lambda m, x: x * x.masked_fill(x > 0, 1.0).sum(-1, keepdim=True)), REDUCED),
    "sum_after_a_bounded_ramp": (tokens(lambda m, x: x * F.hardtanh(x, 1.0, 2.0).sum(-1, keepdim=True)), REDUCED),
    "sum_after_a_shift_in_place": (tokens(lambda m, x: shifted_view(x)), REDUCED),
    "sum_after_a_fill_in_place": (tokens(lambda m, x: partly_filled(x), 32), REDUCED),
    "sum_of_an_outer_sum": (tokens(lambda m, x: x * (x[..., None] + x[..., None, :]).sum((-1, -2))[..., None]), REDUCED),
    "amax": (tokens(lambda m, x: x - x.amax(-1, keepdim=True)), REDUCED),
    "logsumexp": (tokens(lambda m, x: x - x.logsumexp(-1, keepdim=True)), REDUCED),
    "norm_of_negative_order": (tokens(lambda m, x: x * torch.linalg.vector_norm(x, -1.0, -1, keepdim=True)), REDUCED),
    "mean_of_everything": (tokens(lambda m, x: x * x.mean()), REDUCED),
    "max_of_everything": (tokens(lambda m, x: x - x.max()), "is read in order in aten.max"),
    "median_of_everything": (tokens(lambda m, x: x - x.median()), "is read in order in aten.median"),
    "softmax": (tokens(lambda m, x: x.softmax(-1)), "is shared out in aten.softmax"),
    "cumsum": (tokens(lambda m, x: x.cumsum(-1)), "is read in order in aten.cumsum"),
    "topk": (tokens(lambda m, x: x.topk(8, -1)[0], 8), "is read in order in aten.topk"),
    "fft": (tokens(lambda m, x: torch.fft.fft(x).real), "is transformed in aten.fft_fft"),
    "local_response_norm": (images(lambda m, x: F.local_response_norm(x, 5)), "is a spatial dimension in aten.avg_pool3d"),
    "pool_over_channels": (tokens(lambda m, x: F.avg_pool1d(x, 2), 8), "is a spatial dimension in aten.avg_pool1d"),
    # positions that the code names
    "select": (tokens(lambda m, x: x * x.select(-1, 3)[..., None]), "is read at a fixed position in aten.select"),
    "index": (tokens(lambda m, x: x[..., torch.arange(15, -1, -1)]), "is looked up by number in aten.index"),
    "index_select": (tokens(lambda m, x: x.index_select(-1, torch.arange(16))), "is looked up by number in aten.index_select"),
    "unbind": (tokens(lambda m, x: torch.stack(x.unbind(-1), -1)), "is taken apart entry by entry in aten.unbind"),
    "roll": (tokens(lambda m, x: x.roll(1, -1)), "is rolled in aten.roll"),
    "roll_of_everything": (tokens(lambda m, x: x.roll(1)), "is rolled in aten.roll"),
    "positions": (tokens(lambda m, x: x + torch.arange(16.0)), "meets a fixed dimension in aten.add"),
    "strides_that_do_not_divide": (tokens(lambda m, x: x[..., ::3], 6), "is cut in strides that do not divide it in"),
    "strides_from_within": (tokens(lambda m, x: x[..., 2:10:2], 4), "is cut in strides that do not divide it in"),
    "unequal_chunks": (tokens(lambda m, x: torch.cat(x.chunk(3, -1)[::-1], -1)), "is cut into unequal chunks in aten.chunk"),
    "unequal_split": (tokens(lambda m, x: torch.cat(x.split(6, -1)[::-1], -1)), "is cut into unequal chunks in aten.split"),
    "unequal_tensor_split": (tokens(lambda m, x: torch.cat(torch.tensor_split(x, 3, -1)[::-1], -1)), "is cut into unequal chunks in"),
    "cut_across": (tokens(lambda m, x: x.reshape(BATCH, 8, 12), 12), "is cut across its parts in aten.reshape"),
    "cropped": (tokens(lambda m, x: F.pad(x, (-1, 0)), 15), "is padded in aten.pad"),
    "flattened_repeats": (tokens(lambda m, x: x.repeat_interleave(2).view(BATCH, LENGTH, 32), 32), "by a data-dependent count in"),
    # sums of products
    "outer_product_of_signals": (tokens(lambda m, x: x * (torch.exp(x) @ torch.exp(x).mT).mean(-1, True)), "is summed over"),
    "positive_kernel": (images(lambda m, x: F.conv2d(torch.sigmoid(x), m.w.exp()), w=(16, 16, 3, 3)), "is summed over"),
    "positive_grouped_kernel": (images(lambda m, x: F.conv2d(torch.sigmoid(x), m.w.exp(), groups=4), w=(16, 4, 3, 3)), "is summed over"),
    "trace_of_a_matrix": (tokens(lambda m, x: x + torch.einsum("ii->i", m.w), w=(16, 16)), "stands twice in one operand of"),
    "masked_scatter": (tokens(lambda m, x: x.masked_scatter(x > 0, x)), "is filled by position in aten.masked_scatter"),
    "scatter_along_channels": (
        tokens(lambda m, x: torch.zeros_like(x).scatter(2, torch.zeros_like(x).long(), x)),
        "is filled by position in aten.scatter",
    ),
    "index_add_along_channels": (
        tokens(lambda m, x: x.index_add(2, torch.arange(WIDTH), x)),
        "is filled by position in aten.index_add",
    ),
    "channels_as_a_sequence": (
        tokens(lambda m, x: m.c(x), c=lambda: nn.Conv1d(6, 6, 3, padding=1)),
        "is a spatial dimension in aten.conv1d",
    ),
}
"""The hidden width stays, for the reason given."""


@pytest.mark.parametrize("name", PINNED)
def test_what_a_cut_would_change_is_pinned(name: str) -> None:
    """No channel of the hidden width leaves, the reason is named, and the op has a rule nonetheless."""
    case, reason = PINNED[name]
    graph = case.trace()
    found = groups_of(graph, "first.weight")
    assert all(group.pinned is not None for group in found)
    assert any(reason in str(group.pinned) for group in found), [group.pinned for group in found]
    assert graph.unsupported_ops == ()


def spectrum(x: Tensor) -> Tensor:
    """Return amplitudes of windows of 8 entries."""
    return torch.stft(x, 8, window=torch.ones(8), center=False, return_complex=True).abs()


UNSUPPORTED: dict[str, tuple[Case, str]] = {
    "bilinear": (tokens(lambda m, x: m.pair(x, x), pair=lambda: nn.Bilinear(WIDTH, WIDTH, WIDTH)), "aten.bilinear"),
    "multi_dot": (tokens(lambda m, x: torch.linalg.multi_dot([x[0], x[0].T, x[0]])[None]), "aten.linalg_multi_dot"),
    "kron": (tokens(lambda m, x: x + torch.kron(m.a, m.b), a=(4,), b=(4,)), "aten.kron"),
    "trapezoid": (tokens(lambda m, x: x * torch.trapezoid(x)[..., None]), "aten.trapezoid"),
    "renorm": (tokens(lambda m, x: x.renorm(2, 0, 1.0)), "aten.renorm"),
    "inverse": (tokens(lambda m, x: x + torch.linalg.inv(m.w)[0], w=lambda: nn.Parameter(torch.eye(WIDTH))), "aten.linalg_inv"),
    "rot90": (tokens(lambda m, x: x.rot90(2, (1, 2))), "aten.rot90"),
    "pairwise_distance": (tokens(lambda m, x: x * F.pairwise_distance(x, x.flip(1))[..., None]), "aten.pairwise_distance"),
    "slice_scatter": (tokens(lambda m, x: torch.slice_scatter(x, x[..., :2] * 2, -1, 0, 2)), "aten.slice_scatter"),
    "column_stack": (tokens(lambda m, x: torch.column_stack([x[0], x[1]])[None], 32), "aten.column_stack"),
    "spectrum": (
        tokens(lambda m, x: spectrum(x.mean(1)), 5),
        "aten.stft",
    ),
    "loss_of_entries": (tokens(lambda m, x: F.mse_loss(x, x.roll(1, 1), reduction="none")), "aten.mse_loss"),
    "matrix_norm": (tokens(lambda m, x: x * torch.linalg.matrix_norm(x)[..., None, None]), "aten.linalg_matrix_norm"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_op_without_a_rule_is_reported_and_pins(name: str) -> None:
    """All that goes into it stays, and it is named."""
    case, op = UNSUPPORTED[name]
    graph = case.trace()
    assert op in graph.unsupported_ops
    assert any("an op without an axis rule" in str(group.pinned) for group in graph.groups)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_the_cost_of_an_op_without_a_rule_is_exact_or_said_to_be_unknown(name: str) -> None:
    """Nothing of it is cut, so its cost is that of the products that torch makes of it; an op that may hide products is named."""
    case, op = UNSUPPORTED[name]
    graph = case.trace()
    assert graph.uncosted_ops == ((op,) if name in HIDING_PRODUCTS else ())
    assert name in HIDING_PRODUCTS or graph.macs == measured_macs(case.build(), case.inputs)


HIDING_PRODUCTS = ("bilinear", "inverse")
"""Cases above whose op multiplies, or solves, in a way that the reference counter does not count."""


def test_the_table_names_ops_that_exist() -> None:
    """A misspelt name would be a rule that never applies; "add" stands for "add_" too, whether that exists or not."""
    names = {name.removeprefix("aten.") for name in TABLE if name.startswith("aten.")}
    assert {name for name in names if not hasattr(torch.ops.aten, name) and name.removesuffix("_") not in names} == set()


# --------------------------------------------------------------------------------------------------------------- members


def test_a_linear_layer_shares_its_width_with_the_next() -> None:
    """Rows and bias of one, columns of the other, position by position."""
    graph = tokens(lambda m, x: F.relu(x)).trace()
    (group,) = graph.prunable
    assert {tuple(member) for member in group.members} == {("first.weight", 0), ("first.bias", 0), ("last.weight", 1)}
    assert positions(graph, "last.weight", 1) == [[k] for k in range(WIDTH)]
    assert group_of(graph, "first.weight", 1).pinned == "meets a fixed dimension in aten.linear in first"
    assert group_of(graph, "last.weight").pinned == "is an output of the model"


@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
def test_linear_takes_any_leading_dimensions(ndim: int) -> None:
    """Vectors, matrices and stacks of them."""
    model = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
    assert pp.trace(model, torch.zeros((2,) * (ndim - 1) + (8,)), probe=False).prunable[0].atoms == WIDTH


@pytest.mark.parametrize("batched", [True, False])
def test_convolutions_take_inputs_without_a_batch(batched: bool) -> None:
    """Channels are dimension 1, or 0."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 4, 3))
    graph = pp.trace(model, torch.zeros((1, 3, 8, 8) if batched else (3, 8, 8)), probe=False)
    assert {tuple(member) for member in graph.prunable[0].members} == {("0.weight", 0), ("0.bias", 0), ("2.weight", 0)}


def test_kernel_sizes_are_not_reported() -> None:
    """They are pinned, and nobody asked."""
    graph = images(lambda m, x: x).trace()
    assert {member.dim for group in graph.groups for member in group.members if member.parameter == "first.weight"} == {0, 1}


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], str, int, list[list[int]]]] = {
    # name: (layer, option, its output width, rows or columns of the layer's weight that leave with the first channels of the input)
    "grouped": (lambda: nn.Conv2d(16, 32, 3, groups=4), "balanced", 32, [[k, k + 4, k + 8, k + 12] for k in range(4)]),
    "grouped_whole": (lambda: nn.Conv2d(16, 32, 3, groups=4), "whole", 32, [list(range(4 * k, 4 * k + 4)) for k in range(4)]),
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, groups=16), "balanced", 16, [[k] for k in range(16)]),
    "depthwise_multiplied": (lambda: nn.Conv2d(16, 32, 3, groups=16), "balanced", 32, [[k] for k in range(16)]),
    "transposed_grouped": (
        lambda: nn.ConvTranspose2d(16, 32, 2, 2, groups=4),
        "balanced",
        32,
        [[k, k + 4, k + 8, k + 12] for k in range(4)],
    ),
    "transposed_whole": (
        lambda: nn.ConvTranspose2d(16, 32, 2, 2, groups=4),
        "whole",
        32,
        [list(range(4 * k, 4 * k + 4)) for k in range(4)],
    ),
    "transposed_depthwise": (lambda: nn.ConvTranspose2d(16, 32, 2, 2, groups=16), "balanced", 32, [[k] for k in range(16)]),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_grouped_convolutions(name: str) -> None:
    """Position k of every group leaves, or whole groups; a whole group takes its outputs along."""
    layer, option, out, leaving = CONVOLUTIONS[name]
    graph = images(lambda m, x: m.c(F.relu(x)), out, c=layer).trace(conv_groups=option)
    assert positions(graph, "first.weight", 0) == leaving
    last = group_of(graph, "last.weight", 1)
    if "depthwise" in name or option == "whole":
        assert last is group_of(graph, "first.weight")
        per_atom = out // len(leaving)
        assert positions(graph, "last.weight", 1) == [list(range(k * per_atom, (k + 1) * per_atom)) for k in range(len(leaving))]
    else:
        assert last is not group_of(graph, "first.weight")
        assert positions(graph, "last.weight", 1) == [list(range(k, out, out // 4)) for k in range(out // 4)]


def test_one_output_channel_in_each_convolution_group_stays() -> None:
    """Cutting it would leave an empty group; the inputs stay free."""
    graph = images(lambda m, x: m.c(x), 4, c=lambda: nn.Conv2d(16, 4, 3, groups=4)).trace()
    assert "has one output channel in each convolution group" in str(group_of(graph, "last.weight", 1).pinned)
    assert group_of(graph, "first.weight").pinned is None


def test_a_residual_stream_is_one_group() -> None:
    """What is added up leaves together; the inner width is on its own."""
    model = tokens(lambda m, x: x + m.down(F.gelu(m.up(x))) * m.scale, up=linear(16, 24), down=linear(24, 16), scale=(WIDTH,))
    graph = model.trace()
    stream = {
        ("first.weight", 0),
        ("first.bias", 0),
        ("last.weight", 1),
        ("up.weight", 1),
        ("down.weight", 0),
        ("down.bias", 0),
        ("scale", 0),
    }
    assert {tuple(member) for member in group_of(graph, "first.weight").members} == stream
    assert {tuple(member) for member in group_of(graph, "up.weight").members} == {("up.weight", 0), ("up.bias", 0), ("down.weight", 1)}


def test_concatenation_puts_positions_end_to_end() -> None:
    """[x, up(x)]: the next layer reads x at 0 ... 15 and up(x) behind."""
    graph = tokens(lambda m, x: torch.cat([x, m.up(x)], -1), 40, up=linear(16, 24)).trace()
    first, second = groups_of(graph, "last.weight", 1)
    assert {first.width, second.width} == {16, 24}
    member = next(member for member in group_of(graph, "up.bias").members if tuple(member) == ("last.weight", 1))
    assert member.positions.reshape(-1).tolist() == list(range(16, 40))


def test_padding_adds_positions_that_never_leave() -> None:
    """One zero before, two behind: the last layer loses only what lies between."""
    graph = tokens(lambda m, x: F.pad(x, (1, 2)), 19).trace()
    (member,) = [member for member in group_of(graph, "first.weight").members if tuple(member) == ("last.weight", 1)]
    assert member.positions.reshape(-1).tolist() == list(range(1, 17))


HALVES = [[k, k + 8] for k in range(8)]
NEIGHBOURS = [[2 * k, 2 * k + 1] for k in range(8)]
COUPLED: dict[str, tuple[Case, list[list[int]]]] = {
    "chunk": (tokens(lambda m, x: torch.mul(*x.chunk(2, -1)), 8), HALVES),
    "split_by_size": (tokens(lambda m, x: torch.mul(*x.split(8, -1)), 8), HALVES),
    "split_by_sizes": (tokens(lambda m, x: torch.mul(*x.split([8, 8], -1)), 8), HALVES),
    "tensor_split": (tokens(lambda m, x: torch.mul(*torch.tensor_split(x, 2, -1)), 8), HALVES),
    "slices": (tokens(lambda m, x: x[..., : x.shape[-1] // 2] * x[..., x.shape[-1] // 2 :], 8), HALVES),
    "glu": (tokens(lambda m, x: F.glu(x), 8), HALVES),
    "rotary": (tokens(rotated, angle=(LENGTH, WIDTH)), HALVES),
    "strides": (tokens(lambda m, x: x[..., ::2] * x[..., 1::2], 8), NEIGHBOURS),
    "maxout": (tokens(lambda m, x: x.unflatten(-1, (-1, 2)).amax(-1), 8), NEIGHBOURS),
    "pixel_shuffle": (images(lambda m, x: F.pixel_shuffle(x, 2), 4), [list(range(4 * k, 4 * k + 4)) for k in range(4)]),
    "channel_shuffle": (
        images(lambda m, x: m.c(F.channel_shuffle(x, 4)), c=lambda: nn.Conv2d(16, 16, 1)),
        [[k, k + 4, k + 8, k + 12] for k in range(4)],
    ),
    "complex_pairs": (tokens(lambda m, x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (8, 2)))).flatten(-2)), NEIGHBOURS),
}


@pytest.mark.parametrize("name", COUPLED)
def test_positions_that_leave_together(name: str) -> None:
    """Halves, neighbours and strides, by their number in the first layer."""
    case, expected = COUPLED[name]
    graph = case.trace()
    assert group_of(graph, "first.weight").pinned is None
    assert positions(graph, "first.weight", 0) == expected


def test_runs_of_unequal_length_shrink_on_their_own() -> None:
    """split([10, 6]): two groups of one layer, swapped in the next."""
    graph = tokens(lambda m, x: torch.cat(x.split([10, 6], -1)[::-1], -1)).trace()
    long, short = groups_of(graph, "first.weight")
    assert (long.width, short.width) == (10, 6)
    member = next(member for member in short.members if tuple(member) == ("last.weight", 1))
    assert member.positions.reshape(-1).tolist() == list(range(6))


def test_a_position_read_alone_stays_and_the_others_go() -> None:
    """x[..., :1] is stretched over all channels: only position 0 is pinned."""
    graph = tokens(lambda m, x: x * x[..., :1]).trace()
    free, alone = groups_of(graph, "first.weight")
    assert (free.pinned, free.width) == (None, 15)
    assert "is read at a fixed position in aten.slice" in str(alone.pinned)
    assert alone.members[0].positions.reshape(-1).tolist() == [0]


def test_a_sequence_of_positions_is_pinned_but_not_its_channels() -> None:
    """A position embedding that is resampled loses channels, never positions."""
    case = images(
        lambda m, x: x + F.interpolate(m.table.unflatten(1, (4, 4)).permute(0, 3, 1, 2), size=(8, 8), mode="bicubic"), table=(1, 16, WIDTH)
    )
    graph = case.trace()
    assert group_of(graph, "table", 2) is group_of(graph, "first.weight")
    assert group_of(graph, "first.weight").pinned is None
    assert group_of(graph, "table", 1).pinned is not None


# ----------------------------------------------------------------------------------------------------------------- norms


def group_norm_case(groups: int = 4) -> Case:
    return images(lambda m, x: m.norm(x), norm=lambda: nn.GroupNorm(groups, WIDTH))


def test_a_balanced_group_norm_loses_as_many_channels_from_each_group() -> None:
    """Four groups of 4: steps of 4 atoms, one from each bin."""
    group = group_of(group_norm_case().trace(norm_groups="balanced"), "first.weight")
    assert (group.atoms, group.step, group.unit) == (16, 4, 4)
    assert group.bins == tuple(k // 4 for k in range(16))
    assert {("norm.weight", 0), ("norm.bias", 0)} <= {tuple(member) for member in group.members}


def test_a_whole_group_norm_loses_whole_groups() -> None:
    """Four atoms of 4 neighbours."""
    graph = group_norm_case().trace(norm_groups="whole")
    assert positions(graph, "first.weight", 0) == [list(range(4 * k, 4 * k + 4)) for k in range(4)]
    assert group_of(graph, "first.weight").step == 1


def test_a_reduced_group_norm_takes_finer_steps() -> None:
    """With fewer groups allowed, one channel can leave at a time."""
    group = group_of(group_norm_case().trace(norm_groups="reduced"), "first.weight")
    assert (group.atoms, group.step, group.bins) == (16, 1, None)


@pytest.mark.parametrize("mode", ["balanced", "whole", "reduced"])
def test_every_mode_of_group_norm_prunes_a_concatenation(mode: str) -> None:
    """Groups straddle the two sources; their widths stay such that the sum divides."""
    parts = {"up": lambda: nn.Conv2d(16, 8, 1), "norm": lambda: nn.GroupNorm(4, 24)}
    graph = images(lambda m, x: m.norm(torch.cat([x, m.up(x)], 1)), 24, **parts).trace(norm_groups=mode)
    steps = [group_of(graph, "first.weight").step, group_of(graph, "up.weight").step]
    assert steps == ([1, 1] if mode == "reduced" else [4, 4])


def test_a_norm_written_with_views_loses_whole_groups_or_as_much_of_each() -> None:
    """x.view(n, 4, c / 4, h, w), normalised by hand."""

    def forward(module: Any, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (4, -1))
        variance, mean = torch.var_mean(grouped, (2, 3, 4), keepdim=True)
        return ((grouped - mean) / torch.sqrt(variance + 1e-5)).flatten(1, 2)

    group = group_of(images(forward).trace(), "first.weight")
    assert (group.pinned, group.width, group.atoms) == (None, 16, 4)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, lambda width: nn.InstanceNorm2d(width, affine=True, track_running_stats=True)])
def test_running_statistics_follow_their_channels(layer: Callable[[int], nn.Module]) -> None:
    """Weight, bias, running mean and variance are members."""
    group = group_of(images(lambda m, x: m.norm(x), norm=lambda: layer(WIDTH)).trace(), "first.weight")
    members = {tuple(member) for member in group.members}
    assert {(f"norm.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")} <= members


def test_a_layer_norm_over_three_dimensions_keeps_height_and_width() -> None:
    """Channels of [c, h, w] leave, the rest meets fixed dimensions."""
    graph = images(lambda m, x: m.norm(x), norm=lambda: nn.LayerNorm((WIDTH, SIDE, SIDE))).trace()
    assert ("norm.weight", 0) in {tuple(member) for member in group_of(graph, "first.weight").members}
    assert group_of(graph, "norm.weight", 1).pinned is not None
    assert group_of(graph, "norm.weight", 2).pinned is not None


def test_weight_norm_follows_its_direction() -> None:
    """Length and direction share the output channels; inputs of the direction are those of the layer before."""
    first, second = (nn.utils.parametrizations.weight_norm(layer) for layer in (nn.Linear(8, 16), nn.Linear(16, 4)))
    graph = pp.trace(nn.Sequential(first, nn.ReLU(), second), torch.zeros(2, 8), probe=False)
    (group,) = graph.prunable
    names = {(name.replace("parametrizations.weight.original", ""), dim) for name, dim in group.members}
    assert names == {("0.0", 0), ("0.1", 0), ("0.bias", 0), ("2.1", 1)}


# ------------------------------------------------------------------------------------------------------------- attention


def attend(module: Any, x: Tensor, **options: Any) -> Tensor:
    query, key, value = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (module.q, module.k, module.v))
    return F.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2).flatten(2)


def attention(keys: int = 16, out: int = 16, **options: Any) -> Case:
    parts = {"q": linear(16, 16), "k": linear(16, keys), "v": linear(16, keys)}
    return tokens(lambda m, x: attend(m, x, **options), out, **parts)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": torch.zeros(6, 6)}, {"attn_mask": torch.zeros(2, 1, 6, 6)}])
def test_attention_loses_whole_heads(options: dict[str, Any]) -> None:
    """Four atoms of 4 channels, which queries, keys, values and the projection behind share."""
    graph = attention(**options).trace()
    group = group_of(graph, "q.weight")
    assert (group.atoms, group.unit, group.pinned) == (4, 4, None)
    assert {(f"{name}.{kind}", 0) for name in "qkv" for kind in ("weight", "bias")} | {("last.weight", 1)} == {
        tuple(m) for m in group.members
    }
    assert positions(graph, "last.weight", 1) == [list(range(4 * k, 4 * k + 4)) for k in range(4)]


def test_grouped_queries_leave_with_their_key_head() -> None:
    """Four query heads on two key heads: an atom is two query heads and one key head."""
    graph = attention(8, enable_gqa=True).trace()
    assert positions(graph, "q.weight", 0) == [list(range(8)), list(range(8, 16))]
    assert positions(graph, "k.weight", 0) == [list(range(4)), list(range(4, 8))]
    assert group_of(graph, "q.weight") is group_of(graph, "v.weight")


def test_a_single_key_head_stays_and_its_queries_leave_one_by_one() -> None:
    """Multi-query attention: the key head is shared by all."""
    graph = attention(4, enable_gqa=True).trace()
    assert group_of(graph, "q.weight").atoms == 4
    assert group_of(graph, "k.weight").pinned is not None


def test_a_bias_for_each_head_leaves_with_it() -> None:
    """A mask parameter [heads, length, length] loses heads, never positions."""
    parts = {"q": linear(16, 16), "k": linear(16, 16), "v": linear(16, 16), "bias": (4, 6, 6)}
    graph = tokens(lambda m, x: attend(m, x, attn_mask=m.bias), **parts).trace()
    assert ("bias", 0) in {tuple(member) for member in group_of(graph, "q.weight").members}
    assert group_of(graph, "bias", 1).pinned is not None


def test_a_mask_expanded_over_the_heads_does_not_pin_them() -> None:
    """All its heads are alike, so it takes any number of them."""
    parts = {"q": linear(16, 16), "k": linear(16, 16), "v": linear(16, 16)}
    graph = tokens(lambda m, x: attend(m, x, attn_mask=torch.zeros(1, 1, 6, 6).expand(2, 4, 6, 6)), **parts).trace()
    assert group_of(graph, "q.weight").pinned is None


def test_attention_without_heads_keeps_its_widths() -> None:
    """The scale is made from the width of the queries."""
    graph = tokens(lambda m, x: F.scaled_dot_product_attention(m.q(x), m.k(x), x), q=linear(16, 8), k=linear(16, 8)).trace()
    assert "is a head dimension or a sequence" in str(group_of(graph, "q.weight").pinned)


def test_multi_head_attention_with_weights_loses_heads() -> None:
    """The weights that it averages for nobody do not pin its heads."""
    parts = {"attention": lambda: nn.MultiheadAttention(WIDTH, 4, batch_first=True)}
    graph = tokens(lambda m, x: x + m.attention(x, x, x)[0], **parts).trace()
    assert group_of(graph, "attention.in_proj_weight").pinned is None


# -------------------------------------------------------------------------------------------------------------- products

CONTRACTIONS: dict[str, Case] = {
    "matmul": tokens(lambda m, x: x @ m.w, 12, w=(16, 12)),
    "addmm": tokens(lambda m, x: torch.addmm(m.b, x.flatten(0, 1), m.w).unflatten(0, (BATCH, LENGTH)), 12, w=(16, 12), b=(12,)),
    "baddbmm": tokens(lambda m, x: torch.baddbmm(m.b, x, m.w.expand(2, 16, 12)), 12, w=(16, 12), b=(12,)),
    "einsum": tokens(lambda m, x: torch.einsum("btc,cd->btd", x, m.w), 12, w=(16, 12)),
    "einsum_implicit": tokens(lambda m, x: torch.einsum("...c,cd", x, m.w), 12, w=(16, 12)),
    "tensordot": tokens(lambda m, x: torch.tensordot(x, m.w, dims=([2], [0])), 12, w=(16, 12)),
    "einsum_of_three": tokens(lambda m, x: torch.einsum("btc,cd,d->btd", x, m.w, m.v), 12, w=(16, 12), v=(12,)),
}


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_a_product_with_a_matrix_joins_two_widths(name: str) -> None:
    """[16, 12]: rows leave with the width before, columns with the width behind."""
    graph = CONTRACTIONS[name].trace()
    assert ("w", 0) in {tuple(member) for member in group_of(graph, "first.weight").members}
    assert ("w", 1) in {tuple(member) for member in group_of(graph, "last.weight", 1).members}
    assert [group.width for group in graph.prunable].count(12) + [group.width for group in graph.prunable].count(16) == 2


CHAINS: dict[str, Case] = {
    "einsum_of_a_chain": tokens(lambda m, x: torch.einsum("btc,cd,de->bte", x, m.w, m.v), 6, w=(16, 12), v=(12, 6)),
    "einsum_of_a_scan": tokens(lambda m, x: torch.einsum("btc,btn,cn->btc", x, x @ m.w, m.v), w=(16, 4), v=(16, 4)),
    "einsum_with_a_stretched_letter": tokens(lambda m, x: torch.einsum("btc,xc,cd->btd", x, m.v, m.w), 12, w=(16, 12), v=(1, 16)),
    "einsum_without_sums": tokens(lambda m, x: torch.einsum("btc,c,c->btc", x, m.v, m.w), w=(16,), v=(16,)),
}


@pytest.mark.parametrize("name", [*CONTRACTIONS, *CHAINS])
def test_a_product_costs_what_the_reference_counter_says(name: str) -> None:
    """Whichever way it is written, and however many factors it has."""
    case = (CONTRACTIONS | CHAINS)[name]
    assert case.trace().uncosted_ops == ()
    assert case.trace().macs == measured_macs(case.build(), case.inputs)


UNCOUNTED: dict[str, tuple[Case, str]] = {
    "vector": (tokens(lambda m, x: x * (x @ m.v)[..., None], v=(16,)), "aten.matmul"),
    "mv": (tokens(lambda m, x: x + torch.mv(m.w, m.v), w=(16, 5), v=(5,)), "aten.mv"),
    "bilinear": (UNSUPPORTED["bilinear"][0], "aten.bilinear"),
}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_a_product_without_a_cost_rule_is_named(name: str) -> None:
    """Ops that the reference counter does not count are named, never passed over in silence."""
    case, op = UNCOUNTED[name]
    assert op in case.trace().uncosted_ops


def test_products_of_single_entries_cost_nothing() -> None:
    """An Einstein sum that sums over nothing is an elementwise product, for the reference counter too."""
    case = FREE["einsum_by_letter"]
    graph = case.trace()
    assert graph.uncosted_ops == ()
    assert graph.macs == measured_macs(case.build(), case.inputs)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_paid_for_every_step(layer: type[nn.RNNBase]) -> None:
    """Two layers, both directions: every matrix is used once for each step and sequence."""
    recurrent = layer(16, 8, num_layers=2, bidirectional=True, batch_first=True)
    case = tokens(lambda m, x: m.r(x)[0], 16, r=lambda: recurrent)
    matrices = sum(parameter.numel() for parameter in recurrent.parameters() if parameter.dim() == 2)
    assert case.trace().macs == BATCH * LENGTH * (8 * 16 + matrices + 16 * 4)


# ----------------------------------------------------------------------------------------------------------- odd arguments


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x * m.scalar.squeeze().unsqueeze(0).mean(),
        lambda m, x: x * m.scalar.softmax(0),
        lambda m, x: x * m.scalar.amax(),
        lambda m, x: x.view(torch.int32).view(torch.float32),
        lambda m, x: torch.cat([x, x[:, :0]], 1),
        lambda m, x: x[:, 3:3].sum() + x,
        lambda m, x: torch.where(x > math.inf, x, 0.0),
        lambda m, x: x.std(unbiased=False) + x.var(1, keepdim=True) + x.sum((), keepdim=True),
        lambda m, x: F.pad(x, ()),
        lambda m, x: x.expand(BATCH, -1, -1).tile(1),
        lambda m, x: torch.addmv(m.v, m.w, m.v) + x,
        lambda m, x: x.diff(dim=1, prepend=m.v.expand(BATCH, 1, WIDTH)),
    ],
)
def test_odd_arguments_never_break_a_trace(forward: Forward) -> None:
    """Scalars, empty tensors, missing dims: some width may stay, but a graph comes out, and it says the right cost."""
    case = tokens(forward, scalar=(), v=(WIDTH,), w=(WIDTH, WIDTH))
    graph = case.trace()
    assert graph.unsupported_ops == ()
    assert graph.macs == measured_macs(case.build(), case.inputs)
    assert groups_of(graph, "first.weight")


# ------------------------------------------------------------------------------------------------------------------ vmap


def masked(x: Tensor) -> Tensor:
    """Add a causal mask that torch.vmap makes position by position, as libraries of transformers do."""

    def may_see(row: Tensor, column: Tensor) -> Tensor:
        return row >= column

    positions = torch.arange(LENGTH)
    mask = torch.vmap(torch.vmap(may_see, in_dims=(None, 0)), in_dims=(0, None))(positions, positions)
    return x + mask.to(x.dtype).sum(-1)[:, None]


def test_masks_made_by_vmap_cost_nothing() -> None:
    """The places where vmap begins and ends move entries only."""
    case = tokens(lambda m, x: masked(x))
    assert case.trace().uncosted_ops == ()
    assert case.trace().macs == measured_macs(case.build(), case.inputs)


def products_in_batches(m: Any, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row @ m.w)(x)


def test_products_inside_vmap_are_not_counted_for_one_entry_in_silence() -> None:
    """Inside vmap, shapes lack the dimension that is mapped over, so the cost is said to be unknown."""
    assert "_remove_batch_dim" in tokens(products_in_batches, w=(WIDTH, WIDTH)).trace().uncosted_ops
