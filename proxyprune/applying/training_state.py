"""Optimizer state and shadow weights over a cut: training goes on where it was, on what is left."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from proxyprune.errors import InputError, PlanMismatchError
from proxyprune.support.wrapped_names import unwrapped
from proxyprune.surgery.perform import scaled_gain, slice_tensor
from proxyprune.surgery.surgery import Cut, Surgery
from proxyprune.tracing.names import is_inside

Memory = tuple[int, tuple[int, ...], tuple[int, ...], str]
Named = nn.Module | Mapping[str, Tensor]
_Shadow = TypeVar("_Shadow")


def carry_optimizer(optimizer: Optimizer, old_model: Named, new_model: nn.Module, surgery: Surgery) -> Optimizer:
    """Return the same optimizer for a pruned model: same class, hyper-parameters and progress, state cut like the parameters.

    Every parameter that the old optimizer updated and that still lives is in the new one. State of the parameter's shape (moments,
    momentum) is cut like the parameter, factored state (rows, columns) along the dimensions that it has, counters are copied. A cut
    parameter with state of any other shape starts over, with a warning.

    Args:
        optimizer: Optimizer of the unpruned model; not changed.
        old_model: The unpruned model. When it was pruned in place: `dict(model.named_parameters())`, taken before.
        new_model: The pruned model.
        surgery: What pruning changed (`PruneResult.surgery`).

    Returns:
        A new optimizer over the parameters of `new_model`. Learning-rate schedulers have to be made anew.

    Raises:
        InputError: If the optimizer holds parameters that the old model does not have, or keeps one state for all parameters (L-BFGS).
        PlanMismatchError: If the surgery belongs to another model.
    """
    heirs = _Heirs(type(optimizer).__name__, names_by_identity(old_model), new_model, surgery)
    groups: list[dict[str, Any]] = []
    state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    taken: set[int] = set()
    for group in optimizer.param_groups:
        survivors: list[Tensor] = []
        for parameter in group["params"]:
            heir = heirs.of(parameter)
            if heir is None or id(heir) in taken:
                continue
            taken.add(id(heir))
            survivors.append(heir)
            if parameter in optimizer.state:
                state[heir] = heirs.inherit(parameter, optimizer.state[parameter])
        rest = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
        if "param_names" in group:
            names = {id(parameter): name for name, parameter in new_model.named_parameters()}
            rest["param_names"] = [names[id(parameter)] for parameter in survivors]
        groups.append({"params": survivors} | rest)
    return _same_kind(optimizer, groups, state)


@overload
def carry_state(state: Mapping[str, Tensor], surgery: Surgery, model: nn.Module | None = None) -> dict[str, Tensor]: ...


@overload
def carry_state(state: _Shadow, surgery: Surgery, model: nn.Module | None = None) -> _Shadow: ...


def carry_state(state: Any, surgery: Surgery, model: nn.Module | None = None) -> Any:
    """Cut a state dict of the unpruned model, such as the shadow weights of an exponential moving average.

    Names may carry the prefix of a wrapper (`module.` of AveragedModel and DataParallel, `_orig_mod.` of a compiled model): it is found by
    structure and kept. An object with a list `shadow_params` in the order of the model's parameters (diffusers' EMAModel), or its state
    dict, is carried over as a whole.

    Args:
        state: Tensors by the names that the model uses; names that are unknown to the surgery are copied. Or an object or mapping with
            `shadow_params`.
        surgery: What pruning changed (`PruneResult.surgery`).
        model: The pruned model; when given, every name and shape is checked against it, and other names of shared parameters are cut too.

    Returns:
        A new state dict, without what lay in removed blocks. Tensors that were shared in `state` stay shared. For an object with
        `shadow_params`, a copy of it with these cut.

    Raises:
        InputError: If `shadow_params` come without the model, or from a model that lost blocks: then the order of names is not known.
        PlanMismatchError: If no name fits the surgery, shapes do not fit it, or the result does not fit `model`.
    """
    if not isinstance(state, Mapping):
        return _carry_shadow_object(state, surgery, model)
    if isinstance(state.get("shadow_params"), list | tuple):
        return {**state, "shadow_params": _carry_list(state["shadow_params"], surgery, model)}
    names = _model_names(state, surgery)
    inside = {inner: state[name] for name, inner in names.items() if inner is not None}
    carried = _carry_named(inside, surgery, model)
    rest = {name: copy.deepcopy(value) for name, value in state.items() if names[name] is None}
    return rest | {name: carried[inner] for name, inner in names.items() if inner in carried}


def _model_names(state: Mapping[str, Tensor], surgery: Surgery) -> dict[str, str | None]:
    """Names in a state -> names in the model; None for what lies beside the model in a wrapper (a counter).

    Raises:
        PlanMismatchError: If no name fits.
    """
    plain = {name: unwrapped(name) for name in state}
    cut = {change.parameter for change in surgery.cuts}
    found = set(plain.values())
    removed = [entry.module for entry in surgery.removed_blocks]
    if not cut and not removed:
        return dict(plain)
    prefix = _likely_prefix(found, cut) if cut else _block_prefix(found, removed)
    if prefix is not None:
        return {name: inner.removeprefix(prefix) if inner.startswith(prefix) else None for name, inner in plain.items()}
    shown = ", ".join(f"'{name}'" for name in sorted(found)[:3])
    wanted = ", ".join(f"'{name}'" for name in sorted(cut or removed)[:3])
    raise PlanMismatchError(
        f"The state does not use the names of the model that was pruned: expected names such as {wanted}, found {shown or 'none'}. "
        "Pass the state dict of the unpruned model, with its own names."
    )


def _likely_prefix(names: Collection[str], cut: Collection[str]) -> str | None:
    """Return the prefix under which most cut parameters are found, "" included; a state may lack some of them (buffers, frozen parts)."""
    counts = Counter({"": sum(name in names for name in cut)})
    by_last_part: dict[str, list[str]] = {}
    for name in cut:
        by_last_part.setdefault(name.rpartition(".")[2], []).append(name)
    for name in names:
        for wanted in by_last_part.get(name.rpartition(".")[2], ()):
            if name.endswith(f".{wanted}"):
                counts[name.removesuffix(wanted)] += 1
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))
    return best if counts[best] else None


def _block_prefix(names: Collection[str], blocks: Sequence[str]) -> str | None:
    """Return the prefix before the parameters of removed blocks, where nothing was cut."""
    if any(name.startswith(f"{block}.") for block in blocks for name in names):
        return ""
    found = {name[: name.index(f".{block}.") + 1] for block in blocks for name in names if f".{block}." in name}
    return min(found, key=len) if found else None


def _carry_shadow_object(state: Any, surgery: Surgery, model: nn.Module | None) -> Any:
    shadow = getattr(state, "shadow_params", None)
    if not isinstance(shadow, list | tuple):
        raise InputError(
            f"Expected a state dict, or an object with a list shadow_params, found {type(state).__name__}. Pass its state_dict()."
        )
    carried = copy.copy(state)
    carried.shadow_params = _carry_list(shadow, surgery, model)
    return carried


def _carry_list(shadow: Sequence[Tensor], surgery: Surgery, model: nn.Module | None) -> list[Tensor]:
    """Shadow weights in the order of the model's parameters."""
    advice = "Pass a state dict instead: dict(zip(names, shadow_params)), with the names of the unpruned model's parameters."
    if model is None:
        raise InputError(f"shadow_params carry no names, so the pruned model is needed: carry_state(state, surgery, model). {advice}")
    names = [name for name, _ in model.named_parameters()]
    if surgery.removed_blocks or len(names) != len(shadow):
        why = (
            "blocks were removed"
            if surgery.removed_blocks
            else f"there are {len(shadow)}, and the pruned model has {len(names)} parameters"
        )
        raise InputError(f"shadow_params carry no names, and their order is not known: {why}. {advice}")
    return list(_carry_named(dict(zip(names, shadow, strict=True)), surgery, model).values())


def _carry_named(state: Mapping[str, Tensor], surgery: Surgery, model: nn.Module | None) -> dict[str, Tensor]:
    cuts = cuts_by_name(surgery)
    gains = {entry.parameter: entry for entry in surgery.rescaled}
    successors = {} if model is None else {**model.state_dict(keep_vars=True), **dict(model.named_parameters(remove_duplicate=False))}
    names = names_by_identity(successors)
    shared = {_memory(tensor): name for name, tensor in state.items() if name in cuts}
    done: dict[Memory, Tensor] = {}
    carried = {}
    for name, tensor in state.items():
        if is_removed(name, surgery):
            continue
        place = _memory(tensor)
        if place not in done:
            others = names.get(id(successors.get(name)), ())
            source = next((other for other in (name, shared.get(place, name), *others) if other in cuts), name)
            done[place] = _sliced(tensor, cuts.get(source, ()), name)
            if source in gains and gains[source].direction in state:
                direction = gains[source].direction
                scaled = scaled_gain(done[place], state[direction], cuts.get(direction, ()), gains[source].dim)
                done[place] = done[place] if scaled is None else scaled
        carried[name] = done[place]
        if model is not None:
            if name not in successors:
                raise PlanMismatchError(
                    f"The pruned model has no parameter or buffer '{name}'. Use the state of the model that was pruned."
                )
            _must_fit(name, carried[name], successors[name])
    return carried


def _memory(tensor: Tensor) -> Memory:
    """Equal for tensors that are the same values in memory: each call of state_dict() makes new tensor objects."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), str(tensor.device)) if tensor.numel() else (id(tensor), (), (), "")


def names_by_identity(model: Named) -> dict[int, tuple[str, ...]]:
    """Return all names of each parameter, by the id of its tensor."""
    named = model.named_parameters(remove_duplicate=False) if isinstance(model, nn.Module) else model.items()
    names: dict[int, tuple[str, ...]] = {}
    for name, tensor in named:
        names[id(tensor)] = (*names.get(id(tensor), ()), name)
    return names


def cuts_by_name(surgery: Surgery) -> dict[str, tuple[Cut, ...]]:
    """Return the cuts of each parameter or buffer that a surgery cuts."""
    cuts: dict[str, tuple[Cut, ...]] = {}
    for cut in surgery.cuts:
        cuts[cut.parameter] = (*cuts.get(cut.parameter, ()), cut)
    return cuts


def is_removed(name: str, surgery: Surgery) -> bool:
    """Return True if a module, parameter or buffer lies in a removed block."""
    return any(is_inside(name, entry.module) for entry in surgery.removed_blocks)


def _must_fit(name: str, found: Tensor, successor: Tensor) -> None:
    if found.shape != successor.shape:
        raise PlanMismatchError(
            f"'{name}' would become {tuple(found.shape)}, but is {tuple(successor.shape)} in the pruned model. "
            "Use the surgery that made this pruned model."
        )


def _sliced(tensor: Tensor, cuts: Sequence[Cut], name: str) -> Tensor:
    """Return a copy of a tensor with what stays of it.

    Raises:
        PlanMismatchError: If the tensor does not have the sizes that the cuts expect.
    """
    for cut in cuts:
        if cut.dim >= tensor.ndim or tensor.shape[cut.dim] != cut.size:
            raise PlanMismatchError(
                f"'{name}' has shape {tuple(tensor.shape)}, but the surgery cuts dimension {cut.dim} from {cut.size}. "
                "Use the state of the model that was pruned."
            )
    return slice_tensor(tensor.detach(), cuts) if cuts else tensor.detach().clone()


class _Heirs:
    """Parameters of the pruned model, found from those of the unpruned one."""

    def __init__(self, optimizer: str, names: Mapping[int, tuple[str, ...]], model: nn.Module, surgery: Surgery) -> None:
        self._optimizer = optimizer
        self._names = names
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._surgery = surgery
        self._cuts = cuts_by_name(surgery)

    def of(self, parameter: Tensor) -> Tensor | None:
        """Return the parameter that took this one's place; None when it left with a removed block."""
        names = self._names.get(id(parameter))
        if names is None:
            raise InputError(
                f"{self._optimizer} holds a parameter of shape {tuple(parameter.shape)} that the old model does not have. Pass the model "
                "(or its named parameters) that the optimizer was made for, as it was before pruning."
            )
        name = next((name for name in names if name in self._parameters), None)
        if name is not None:
            _must_fit(name, _sliced(torch.empty_like(parameter, device="meta"), self._cuts_of(parameter), name), self._parameters[name])
            return self._parameters[name]
        if all(is_removed(name, self._surgery) for name in names):
            return None
        raise PlanMismatchError(
            f"The pruned model has no parameter '{names[0]}', and no removed block held it. Use the surgery that made this pruned model."
        )

    def inherit(self, parameter: Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the optimizer's state of one parameter, cut like it."""
        carried = {}
        cuts, name = self._cuts_of(parameter), self._names[id(parameter)][0]
        for key, value in entry.items():
            if _holds_tensors(value):
                raise InputError(
                    f"{self._optimizer} keeps lists of tensors ('{key}') instead of one state for each parameter; it cannot be carried "
                    "over. Make a new optimizer for the pruned model."
                )
            if not isinstance(value, Tensor):
                carried[key] = copy.deepcopy(value)
                continue
            dims = _dims_of(key, tuple(value.shape), tuple(parameter.shape)) if cuts and value.numel() > 1 else {}
            if dims is None:
                warnings.warn(
                    f"The state '{key}' of '{name}' has shape {tuple(value.shape)}, which does not follow from the parameter's "
                    f"{tuple(parameter.shape)}; {self._optimizer} starts over for this parameter.",
                    stacklevel=3,
                )
                return {}
            carried[key] = _sliced(value, [replace(cut, dim=dims[cut.dim]) for cut in cuts if cut.dim in dims], name)
        return carried

    def _cuts_of(self, parameter: Tensor) -> tuple[Cut, ...]:
        return next((self._cuts[name] for name in self._names[id(parameter)] if name in self._cuts), ())


def _holds_tensors(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(isinstance(item, Tensor) or _holds_tensors(item) for item in value.values())
    return isinstance(value, list | tuple) and any(isinstance(item, Tensor) or _holds_tensors(item) for item in value)


def _dims_of(key: str, shape: tuple[int, ...], full: tuple[int, ...]) -> dict[int, int] | None:
    """Dimension of the parameter -> dimension of the state that runs along it; None when there is no such relation."""
    if shape == full:
        return {dim: dim for dim in range(len(full))}
    if len(shape) == len(full) and all(size in (1, whole) for size, whole in zip(shape, full, strict=True)):
        return {dim: dim for dim, size in enumerate(shape) if size == full[dim]}
    if len(shape) == len(full) - 1 >= 1:
        rows, columns = tuple(range(len(full) - 1)), (*range(len(full) - 2), len(full) - 1)
        for word, dims in (("row", rows), ("col", columns)):
            if word in key and shape == tuple(full[dim] for dim in dims):
                return {dim: position for position, dim in enumerate(dims)}
    return None


def _same_kind(optimizer: Optimizer, groups: list[dict[str, Any]], state: defaultdict[Tensor, dict[str, Any]]) -> Optimizer:
    """Return an optimizer of the same class, made the way unpickling makes one: constructors differ too much to be called."""
    fresh = type(optimizer).__new__(type(optimizer))
    plain = {key: value for key, value in vars(optimizer).items() if isinstance(value, bool | int | float | str | tuple | type(None))}
    fresh.__setstate__(plain | {"defaults": copy.deepcopy(optimizer.defaults), "state": state, "param_groups": groups})
    return fresh
