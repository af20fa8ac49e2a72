"""Carry out a surgery: slices of parameters, new attribute values, removed blocks.

`perform` replays a `Surgery` on any module of the same structure: on the caller's copy, on a meta-device skeleton while verifying, and on a
freshly built model when a saved folder is loaded. Every tensor is sliced by one indexed copy that keeps dtype, device, requires_grad
and sharing; docs/design/verification.md says why torch-pruning's layer functions are not used here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.errors import PlanMismatchError
from proxyprune.surgery.feature_sizes import mark_pruned
from proxyprune.surgery.surgery import Cut, Surgery
from proxyprune.tracing.module_state import copied


class PassThrough(nn.Module):
    """Replacement of a removed block: returns arguments of the call, in the container that the block returned.

    Plain attributes of the block (integers, floats, strings, flags) are kept, because loops over layers often read them.
    """

    def __init__(self, replaced: nn.Module, arguments: tuple[int | str, ...], template: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.template = template
        self.replaced_class = type(replaced).__name__
        for name, value in vars(replaced).items():
            if not name.startswith("_") and isinstance(value, bool | int | float | str | None) and name not in ("training",):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the passed-on arguments inside the block's output container."""
        return _filled(self.template, [args[key] if isinstance(key, int) else kwargs[key] for key in self.arguments])

    def extra_repr(self) -> str:
        """Return what stood here, for `print(model)`."""
        return f"removed {self.replaced_class}"


def _filled(template: Any, tensors: list[Any]) -> Any:
    if isinstance(template, dict):
        ((kind, content),) = template.items()
        if kind == "hole":
            return tensors[content]
        if kind == "tuple":
            return tuple(_filled(item, tensors) for item in content)
        return {key: _filled(item, tensors) for key, item in content.items()}
    if isinstance(template, list):
        return [_filled(item, tensors) for item in template]
    return template


def perform(model: nn.Module, surgery: Surgery) -> None:
    """Carry out a surgery on `model`, in place.

    Raises:
        PlanMismatchError: If a parameter, size or module is not what the surgery was made for; nothing has been changed then.
    """
    replacements = _replacements(model, surgery)
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in tables:
            for name, tensor in list(tensors.items()):
                if tensor is not None and id(tensor) in replacements:
                    tensors[name] = replacements[id(tensor)]
    rewire(model, surgery)


def pruned_copy(model: nn.Module, surgery: Surgery) -> nn.Module:
    """Return a copy of `model` after the surgery; the original is not touched, and what is cut away is never copied.

    Raises:
        PlanMismatchError: If a parameter, size or module is not what the surgery was made for.
    """
    memo: dict[int, Any] = dict(_replacements(model, surgery))
    pruned = copied(model, memo)
    rewire(pruned, surgery)
    return pruned


def _replacements(model: nn.Module, surgery: Surgery) -> dict[int, Tensor]:
    """Sliced tensors by the id of the tensor that they replace; shared tensors thus stay shared."""
    tensors = dict(_named_tensors(model))
    _check(model, tensors, surgery)
    cuts: dict[str, list[Cut]] = {}
    for cut in surgery.cuts:
        cuts.setdefault(cut.parameter, []).append(cut)
    for entry in surgery.rescaled:
        cuts.setdefault(entry.parameter, [])
    replacements = {id(tensors[name]): _sliced(tensors[name], own) for name, own in cuts.items()}
    for entry in surgery.rescaled:
        gain = replacements[id(tensors[entry.parameter])]
        scaled = scaled_gain(gain.data, tensors[entry.direction], cuts.get(entry.direction, ()), entry.dim)
        gain.data = gain.data if scaled is None else scaled  # not in place: a gain that is not cut shares its storage with the original
    return replacements


def scaled_gain(gain: Tensor, direction: Tensor, cuts: Sequence[Cut], dim: int) -> Tensor | None:
    """Return a gain times the share of its direction's norm that stays.

    Args:
        gain: One entry for each entry along `dim` that stays, in any shape, or one number.
        direction: The whole parameter that is normalised.
        cuts: Cuts of the direction.
        dim: Dimension that the gain runs along; -1 for a norm over everything.

    Returns:
        None if the gain has another number of entries.
    """
    whole = direction.detach()
    along = [cut for cut in cuts if cut.dim == dim]
    norms = [
        torch.norm_except_dim(tensor, 2, dim) for tensor in (slice_tensor(whole, cuts), slice_tensor(whole, along) if dim >= 0 else whole)
    ]
    share = norms[0] / norms[1].clamp_min(torch.finfo(norms[1].dtype).tiny)
    return gain * share.reshape(gain.shape) if share.numel() == gain.numel() else gain * share if share.dim() == 0 else None


def rewire(model: nn.Module, surgery: Surgery) -> None:
    """Set the attributes and replace the removed blocks of a surgery; tensors are left alone."""
    for change in surgery.attributes:
        set_attribute(model.get_submodule(change.module), change.path, change.after)
    if surgery.cuts or surgery.removed_blocks:
        mark_pruned(model)
    for entry in surgery.removed_blocks:
        parent, _, child = entry.module.rpartition(".")
        block = model.get_submodule(entry.module)
        replacement = PassThrough(block, entry.arguments, entry.template)
        replacement.training = block.training
        model.get_submodule(parent)._modules[child] = replacement


def _check(model: nn.Module, tensors: Mapping[str, Tensor], surgery: Surgery) -> None:
    for cut in surgery.cuts:
        tensor = tensors.get(cut.parameter)
        found = None if tensor is None else tuple(tensor.shape)
        if found is None or cut.dim >= len(found) or found[cut.dim] != cut.size:
            raise PlanMismatchError(
                f"The plan cuts dimension {cut.dim} of '{cut.parameter}' from {cut.size}; "
                f"this model has {'no such parameter' if found is None else f'shape {list(found)} there'}. "
                "Use the model that the plan was made for, unpruned."
            )
    names = {name for name, _ in model.named_modules()}
    for module in [change.module for change in surgery.attributes] + [entry.module for entry in surgery.removed_blocks]:
        if module not in names:
            raise PlanMismatchError(
                f"The plan changes module '{module}', which this model does not have. Use the model that it was made for."
            )


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _sliced(tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
    result = slice_tensor(tensor.detach(), cuts)
    if isinstance(tensor, nn.Parameter):
        parameter = nn.Parameter(result, requires_grad=tensor.requires_grad)
        if tensor.grad is not None:
            parameter.grad = slice_tensor(tensor.grad, cuts)
        return parameter
    return result


def slice_tensor(tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """Return the kept part of a tensor, along every cut dimension."""
    for cut in cuts:
        tensor = tensor.index_select(cut.dim, torch.tensor(cut.kept, dtype=torch.long, device=tensor.device))
    return tensor


def set_attribute(module: nn.Module, path: tuple[str, ...], value: int | tuple[int, ...]) -> None:
    """Set an attribute; objects on the way (a config shared by many modules) are copied for this module alone."""
    holder: Any = module
    for part in path[:-1]:
        own = copy.copy(holder[_key(holder, part)] if isinstance(holder, dict | list) else stored_value(holder, part))
        if isinstance(holder, dict | list):
            holder[_key(holder, part)] = own
        else:
            object.__setattr__(holder, part, own) if not isinstance(holder, nn.Module) else setattr(holder, part, own)
        holder = own
    if isinstance(holder, dict | list):
        holder[_key(holder, path[-1])] = value
        return
    current = stored_value(holder, path[-1])
    after: Any = list(value) if isinstance(current, list) and isinstance(value, tuple) else value
    setattr(holder, path[-1], after)


def _key(holder: dict[str, Any] | list[Any], part: str) -> Any:
    return int(part) if isinstance(holder, list) else part


def stored_value(holder: Any, name: str) -> Any:
    """Return an attribute as it is stored, where it is: the code of a property or of `__getattribute__` may raise, or compute."""
    stored = object.__getattribute__(holder, "__dict__")
    return stored[name] if name in stored else getattr(holder, name)
