"""LoRA adapters of the unpruned network, cut so that they fit the pruned one: columns of A and rows of B follow the layer's weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from proxyprune.applying.lora_keys import KnownNames, LoraKey, find_prefix, read_key, with_known_roles
from proxyprune.applying.training_state import cuts_by_name, is_removed, names_by_identity
from proxyprune.errors import InputError, PlanMismatchError
from proxyprune.surgery.perform import slice_tensor
from proxyprune.surgery.surgery import Cut, Surgery


@dataclass(frozen=True)
class LoraState:
    """Entries of an adapter for the pruned network.

    Attributes:
        tensors: By the keys that they had.
        modules: Key -> name in the model of the module or parameter that the entry belongs to.
        dropped: Keys of entries that belong to removed blocks.
        untouched: Keys outside the prefix that was asked for; copied.
        prefix: What stands before the model's names in the keys.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    modules: Mapping[str, str] = field(repr=False)
    dropped: tuple[str, ...]
    untouched: tuple[str, ...]
    prefix: str


@dataclass(frozen=True)
class _Kind:
    """Dimensions of a layer's weight.

    Attributes:
        outputs: Along the layer's outputs.
        inputs: Along its inputs.
        magnitudes: Along the magnitudes of DoRA; the norm runs over all others.
    """

    outputs: int
    inputs: int
    magnitudes: int


_KINDS: Mapping[str, _Kind] = {
    "torch.nn.modules.linear.Linear": _Kind(0, 1, 0),
    "torch.nn.modules.conv.Conv1d": _Kind(0, 1, 0),
    "torch.nn.modules.conv.Conv2d": _Kind(0, 1, 0),
    "torch.nn.modules.conv.Conv3d": _Kind(0, 1, 0),
    "torch.nn.modules.sparse.Embedding": _Kind(1, 0, 0),
    "transformers.pytorch_utils.Conv1D": _Kind(1, 0, 1),
}
"""Class -> its weight, for the layers that LoRA is defined on; subclasses count."""


def carry_lora_state(
    state: Mapping[str, Tensor],
    surgery: Surgery,
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    root: str = "",
    prefix: str | None = None,
) -> LoraState:
    """Cut the entries of an adapter.

    Args:
        state: The adapter.
        surgery: What pruning changed.
        model: The pruned model.
        shapes: Shape of every parameter and buffer of the unpruned model.
        root: Name of the network inside the model, if the model is a wrapper.
        prefix: What stands before the model's names in the keys; keys without it are copied. Found by structure if None.

    Raises:
        PlanMismatchError: If the adapter was made for another model.
        InputError: If an entry cannot be cut exactly.
    """
    known = KnownNames.of(shapes, root)
    entries = with_known_roles([read_key(key) for key in state], known)
    start = prefix or find_prefix(entries, known)
    inside = {entry.key: entry for entry in entries if entry.name.startswith(prefix or "")}
    modules = {key: _name_in_model(entry, start, known) for key, entry in inside.items()}
    cutter = _Cutter(surgery, model, shapes, state, _partners(inside, modules))
    tensors, dropped = {}, []
    for key, tensor in state.items():
        if key not in inside:
            tensors[key] = tensor.detach().clone()
        elif is_removed(modules[key], surgery):
            dropped.append(key)
        else:
            tensors[key] = cutter.cut(inside[key], modules[key])
    return LoraState(tensors, modules, tuple(dropped), tuple(key for key in state if key not in inside), start)


def _name_in_model(entry: LoraKey, prefix: str, known: KnownNames) -> str:
    """Return the name in the model of an entry's module or parameter.

    Raises:
        PlanMismatchError: If the model has none there.
        InputError: If it is part of another kind of adapter.
    """
    name = known.full(entry, prefix)
    if name is not None:
        return name
    module = known.full(replace(entry, name=entry.name.rpartition(".")[0], role="up"), prefix)
    raise _unknown(entry, prefix, known) if module is None or entry.role != "parameter" else _no_part(entry, module)


def _partners(entries: Mapping[str, LoraKey], modules: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the keys of each module's entries, by role."""
    partners: dict[str, dict[str, str]] = {}
    for key, entry in entries.items():
        partners.setdefault(modules[key], {})[entry.role] = key
    return partners


def _unknown(entry: LoraKey, prefix: str, known: KnownNames) -> PlanMismatchError:
    names = [name.replace(".", "_") if prefix.endswith("_") else name for name in sorted(known.modules)[:3]]
    wanted = ", ".join(f"'{prefix}{name}'" for name in names)
    return PlanMismatchError(
        f"'{entry.key}' belongs to no layer of the model that was pruned: expected layers such as {wanted}, found '{entry.name}'. "
        "Use an adapter that was made for the unpruned model, in the layout of PEFT, diffusers or kohya, with the names of its modules. If "
        f"the key belongs to another network of a pipeline, pass the prefix of the network that was pruned (prefix={prefix or 'unet.'!r}); "
        "other keys are then copied."
    )


def _no_part(entry: LoraKey, module: str) -> InputError:
    part = entry.name.rpartition(".")[2]
    return InputError(
        f"'{entry.key}' belongs to '{module}': expected a part of a LoRA adapter (A, B, a scale, magnitudes of DoRA) or a parameter of the "
        f"layer, found '{part}'. Only LoRA adapters can be carried; merge this one into the unpruned model before pruning."
    )


class _Cutter:
    """Cuts entries one by one, and checks each against the layer that it belongs to."""

    def __init__(
        self,
        surgery: Surgery,
        model: nn.Module,
        shapes: Mapping[str, tuple[int, ...]],
        state: Mapping[str, Tensor],
        partners: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._partners = partners
        self._model = model
        self._shapes = shapes
        self._state = state
        self._cuts = cuts_by_name(surgery)
        self._groups = {change.module: change.before for change in surgery.attributes if change.path == ("groups",)}
        self._rescaled = {entry.parameter for entry in surgery.rescaled}
        self._tensors = dict(model.named_parameters(remove_duplicate=False))
        self._names = names_by_identity(model)

    def cut(self, entry: LoraKey, name: str) -> Tensor:
        """Return what stays of one entry."""
        tensor = self._state[entry.key].detach()
        if entry.role == "parameter":
            return self._whole(entry, name, tensor)
        module = self._model.get_submodule(name)
        kind = _kind_of(module)
        weight = f"{name}.weight"
        if kind is None or weight not in self._shapes:
            raise InputError(
                f"'{entry.key}' belongs to '{name}': expected a linear layer, a convolution or an embedding with a parameter 'weight', "
                f"found {type(module).__name__}. Its adapter cannot be cut."
            )
        self._check_partner(entry, name)
        if entry.role in ("alpha", "mid"):
            return tensor.clone()
        shape, cuts = self._shapes[weight], self._cuts_of(weight)
        if self._groups.get(name, getattr(module, "groups", 1)) != 1:
            return self._of_group_convolution(entry, name, tensor, cuts)
        along, place = _direction(entry, tensor, kind)
        if "mid" in self._partners[name] and entry.role == "down":
            shape = (*shape[:2], *(1 for _ in shape[2:]))
        _check_shape(entry, tensor, shape, kind, along)
        if entry.role in ("magnitude", "dora_scale") and any(cut.dim != along for cut in cuts):
            lines = "columns" if along == kind.inputs else "rows"
            raise InputError(
                f"'{entry.key}' holds magnitudes of DoRA: expected whole {lines} of '{name}', found that they were cut. Norms of {lines} "
                "change with them, so the magnitudes cannot be carried exactly. Merge the adapter into the unpruned model before pruning."
            )
        return slice_tensor(tensor, [replace(cut, dim=place) for cut in cuts if cut.dim == along]).clone()

    def _whole(self, entry: LoraKey, name: str, tensor: Tensor) -> Tensor:
        """Return what stays of a parameter that was trained with the adapter (`modules_to_save`, biases)."""
        if tuple(tensor.shape) != self._shapes[name]:
            raise _misshapen(entry, tensor, self._shapes[name])
        if name in self._rescaled:
            raise InputError(
                f"'{entry.key}' is a gain of weight normalisation whose norm was cut: it cannot be carried exactly. Use carry_state."
            )
        return slice_tensor(tensor, self._cuts_of(name)).clone()

    def _of_group_convolution(self, entry: LoraKey, name: str, tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
        if cuts:
            raise InputError(
                f"'{entry.key}' belongs to '{name}': expected one group, or no cut, found a convolution in groups whose channels were cut. "
                f"Merge the adapter into the unpruned model before pruning, or keep '{name}' whole (keep=...)."
            )
        return tensor.clone()

    def _cuts_of(self, name: str) -> tuple[Cut, ...]:
        """Return the cuts of a parameter, found by any of its names."""
        names = self._names.get(id(self._tensors.get(name)), ())
        return next((self._cuts[other] for other in (name, *names) if other in self._cuts), ())

    def _check_partner(self, entry: LoraKey, name: str) -> None:
        """Raise unless A and B are there, with one rank."""
        pair = self._partners[name]
        missing = [role for role in ("down", "up") if role not in pair]
        if missing:
            wanted = " and ".join("A (down)" if role == "down" else "B (up)" for role in missing)
            raise InputError(f"The adapter of '{name}' is incomplete: expected {wanted} beside '{entry.key}', found none.")
        down, up = self._state[pair["down"]], self._state[pair["up"]]
        if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
            raise InputError(
                f"The adapter of '{name}' has no single rank: expected the first size of '{pair['down']}' to equal the second of "
                f"'{pair['up']}', found shapes {tuple(down.shape)} and {tuple(up.shape)}."
            )


def _kind_of(module: nn.Module) -> _Kind | None:
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((_KINDS[name] for name in names if name in _KINDS), None)


def _direction(entry: LoraKey, tensor: Tensor, kind: _Kind) -> tuple[int, int]:
    """Return the dimension of the weight that an entry runs along, and the dimension of the entry that does."""
    if entry.role == "down":
        return kind.inputs, 1
    if entry.role in ("up", "bias"):
        return kind.outputs, 0
    place = max(range(tensor.ndim), key=lambda dim: tensor.shape[dim], default=0)
    return (kind.inputs if entry.role == "dora_scale" and place == 1 else kind.magnitudes), place


def _check_shape(entry: LoraKey, tensor: Tensor, weight: tuple[int, ...], kind: _Kind, along: int) -> None:
    """Raise unless an entry has the shape that follows from the weight of the unpruned layer and the dimension that it runs along."""
    found = tuple(tensor.shape)
    if entry.role == "down":
        expected = (found[0], weight[kind.inputs], *weight[2:])
        fits = _without_ones(found) == _without_ones(expected)
    elif entry.role == "up":
        expected = (weight[kind.outputs], found[1], *(1 for _ in weight[2:]))
        fits = _without_ones(found) == _without_ones(expected)
    else:
        expected = (weight[along],)
        fits = math.prod(found) == max(found, default=0) == expected[0]
    if not fits:
        raise _misshapen(entry, tensor, expected)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the sizes 1 at its end, beyond two dimensions."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]


def _misshapen(entry: LoraKey, tensor: Tensor, expected: tuple[int, ...]) -> PlanMismatchError:
    return PlanMismatchError(
        f"'{entry.key}' does not fit the layer of the unpruned model: expected shape {expected}, found {tuple(tensor.shape)}. "
        "Use an adapter that was made for the model that was pruned."
    )
