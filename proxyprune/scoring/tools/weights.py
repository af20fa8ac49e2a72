"""The parameter values that a scorer reads, and the check that they are real numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from proxyprune.errors import WeightsError


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by every name that they have in the state dict, detached, without copies."""
    return {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}


def is_fake(tensor: Tensor) -> bool:
    """Return True if a tensor has a shape but no values."""
    return tensor.device.type == "meta" or isinstance(tensor, FakeTensor)


def all_finite(tensor: Tensor) -> bool:
    """Return True if no element is NaN or infinite.

    A NaN or infinity always makes the sum non-finite, and a sum reads the tensor once without a copy; only a non-finite sum, which may also
    be an overflow, needs the slower look at every element.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def check_weights(model: nn.Module, *, values_needed: bool = True) -> None:
    """Refuse weights that no honest score can be computed from.

    Buffers may hold infinities (attention masks do), but never NaN.

    Args:
        model: The model whose parameters and buffers are checked.
        values_needed: Whether parameters without values (meta device, fake tensors) are an error; otherwise they are passed over.

    Raises:
        WeightsError: Naming the first parameter or buffer that is not finite, or has no values.
    """
    for name, parameter in model.named_parameters():
        if is_fake(parameter):
            if values_needed:
                raise WeightsError(
                    f"Parameter '{name}' {tuple(parameter.shape)} has no values (device {parameter.device}). Load the weights, "
                    "or use a scorer that reads only the structure."
                )
        elif not all_finite(parameter.detach()):
            raise WeightsError(_not_finite("Parameter", name, parameter.detach()))
    for name, buffer in model.named_buffers():
        if not is_fake(buffer) and buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            raise WeightsError(_not_finite("Buffer", name, buffer))


def _not_finite(what: str, name: str, tensor: Tensor) -> str:
    nan, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    return (
        f"{what} '{name}' {tuple(tensor.shape)} holds {nan} NaN and {infinite} infinite values of {tensor.numel()}. "
        "Expected finite numbers; load a checkpoint from before training diverged."
    )


def parameters_by_block(blocks: Iterable[str], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Names of the parameters inside each block; a parameter of a nested block belongs to the outer one too.

    Args:
        blocks: Block ids, which are module names.
        names: Parameter names.
    """
    inside: dict[str, list[str]] = {block: [] for block in blocks}
    for name in names:
        owner = name
        while owner:
            if owner in inside:
                inside[owner].append(name)
            owner = owner.rpartition(".")[0]
    return {block: tuple(found) for block, found in inside.items()}
