"""Cost of an op without an axis rule. All that goes into it stays whole, so the cost is one number: that of the ops that torch makes of it.

Torch composes many ops of others (`torch.linalg.multi_dot` of matrix products, `torch.trapezoid` of slices and sums). They are run on
tensors without data, and the matrix products among them are counted as `torch.utils.flop_counter` does. If an op is among them that may
multiply and that the counter has no formula for, the cost is not known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from proxyprune.coupling.rules import einstein, products, recurrent
from proxyprune.coupling.rules.table import TABLE
from proxyprune.coupling.rules.walk import in_place, ops
from proxyprune.tracing.nodes import op_name

_MOVING = frozenset(in_place(ops("as_strided put resize renorm random cumprod"))) | frozenset(
    ops("as_strided_scatter slice_scatter select_scatter diagonal_scatter diag_embed rot90 take isin fill block_diag copy trace")
    + ops("nonzero_static index_reduce fractional_max_pool2d fractional_max_pool3d poisson binomial normal_functional randint_like")
)
"""Ops that move, select or draw entries, or multiply them one by one."""

_COMPARING = frozenset(
    ops("mse_loss huber_loss smooth_l1_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits dist linalg_cross")
    + ops("nll_loss_forward nll_loss2d_forward multi_margin_loss multilabel_margin_loss_forward _cdist_forward _pdist_forward")
)
"""Losses and other ops that compare entry by entry."""

_TRANSFORMING = frozenset(ops("stft istft _fft_r2c _fft_c2r _fft_c2c fake_quantize_per_tensor_affine fake_quantize_per_channel_affine"))
"""Fourier transforms, which no count of MACs includes, and rounding."""

_BATCHING = frozenset({"_add_batch_dim", "_remove_batch_dim"})
"""Begin and end of torch.vmap. Inside, tensors have one dimension less, so products there would be counted for one entry only."""

_MULTIPLYING = products.RULES.keys() | einstein.RULES.keys() | recurrent.RULES.keys()
_WITHOUT_PRODUCTS = (TABLE.keys() - _MULTIPLYING) | _MOVING | _COMPARING | _TRANSFORMING


def whole_cost(node: Node) -> int | None:
    """Return the multiply-accumulates of an op, or None if they are not known.

    Args:
        node: The op; only those of torch itself are decomposed.
    """
    if op_name(node) in _BATCHING:
        return None if any(map(_multiplies_in_batches, node.graph.nodes)) else 0
    if not op_name(node).startswith("aten.") or not isinstance(node.target, torch._ops.OpOverload):
        return None
    if op_name(node) in _WITHOUT_PRODUCTS:
        return 0
    parts = _Parts()
    try:
        args, kwargs = map_arg((node.args, node.kwargs), _without_data)
        with torch.no_grad(), parts:
            node.target(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):  # an op that needs data, or has no such variant
        return None
    return None if parts.unknown else parts.macs


def _multiplies_in_batches(node: Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not torch._C._functorch.is_batchedtensor(value):
        return False
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return not pointwise and op_name(node) not in _WITHOUT_PRODUCTS and op_name(node) not in _BATCHING


class _Parts(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class is not typed
    """Count the products among the ops that an op is composed of.

    Attributes:
        macs: Multiply-accumulates so far.
        unknown: An op was among them that may multiply and that has no formula.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class is not typed
        self.macs = 0
        self.unknown = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one op."""
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in flop_registry:
            self.macs += flop_registry[packet](*args, **(kwargs or {}), out_val=result) // 2
        elif torch.Tag.pointwise not in func.tags and str(packet) not in _WITHOUT_PRODUCTS:
            self.unknown = True
        return result


def _without_data(node: Node) -> Any:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
