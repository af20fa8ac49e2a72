"""Names of channel groups for a reader: the block and the role, such as `layers.3 feed-forward`.

A name is a label. Plans, files and options use the id of a group, which stays the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from proxyprune.coupling.groups import ChannelGroup
from proxyprune.graph.structure import Structure

_ATTENTION = re.compile(
    r"attn|attention|^(to_)?(q|k|v|qkv|kv)(_proj|_lin|_linear|_a_proj|_b_proj)?$|^(query|key|value|queries|keys|values)$|^in_proj"
)
_FEED_FORWARD = re.compile(
    r"mlp|^ffn?$|feed_?forward|^intermediate$|^(dense|gated).*dense$|^(gate|up)_proj$|^c_fc$|^fc1$|^linear1$|^wi(_\d)?$"
)
_EXPERTS = re.compile(r"^experts?$")
_EMBEDDING = re.compile(r"emb|time")
_ROLES = (
    (re.compile(r"lora|adapter"), "adapter rank"),
    (_EXPERTS, "experts"),
    (_ATTENTION, "attention"),
    (_FEED_FORWARD, "feed-forward"),
)
_MOST = 2 / 3
"""Share of the places under one outer module from which its name is left out."""


def group_names(graph: Structure) -> dict[str, str]:
    """Return a name for each channel group, by id: block and role.

    Args:
        graph: The traced network.

    Returns:
        Different names for different groups, in the order of `graph.groups`.
    """
    blocks = [block.id for block in graph.blocks]
    places = {group.id: _place(group) for group in graph.groups}
    short = _without_outer([*blocks, *places.values()])
    kinds = {block.id: block.kind for block in graph.blocks}
    named = {
        group.id: f"{short[place]} {_role(group, graph.parameter_shapes, place, kinds.get(place, ''))}"
        for group, place in ((group, places[group.id]) for group in graph.groups)
    }
    return _told_apart(named, places)


def names_of_ids(ids: Iterable[str]) -> dict[str, str]:
    """Return names from the ids alone, for a plan without its graph.

    An id holds the first parameter of its group only, so a residual stream is called after the module that begins it.
    """
    ids = list(ids)
    split = {group: _split(group) for group in ids}
    short = _without_outer([place for place, _ in split.values()])
    named = {group: f"{short[place]} {role}" for group, (place, role) in split.items()}
    return _told_apart(named, {group: place for group, (place, _) in split.items()})


def families(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return ids by the name with `*` in place of each number, so that repeated layers are one family."""
    found: dict[str, list[str]] = {}
    for group, name in names.items():
        place, _, rest = name.partition(" ")
        found.setdefault(f"{re.sub(r'(?<![^.])[0-9]+(?![^.])', '*', place)} {rest}".strip(), []).append(group)
    return {names[ids[0]] if len(ids) == 1 else family: ids for family, ids in found.items()}


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _place(group: ChannelGroup) -> str:
    """Return the block of a group: the only one, the module around several inner ones, or the first of many."""
    owner = _owner(group.id.partition(":")[0]) or group.id.partition(":")[0]
    if not group.blocks:
        return owner
    if len(group.blocks) > 1:
        common = _common(group.blocks)
        if common and any(part.isdigit() for part in common.split(".")):
            return common
    return next((block for block in group.blocks if f"{owner}.".startswith(f"{block}.")), group.blocks[0])


def _common(names: Sequence[str]) -> str:
    """Return the module that all of them lie in; "" if there is none."""
    parts = [name.split(".") for name in names]
    found: list[str] = []
    for position in zip(*parts, strict=False):
        if len(set(position)) > 1:
            break
        found.append(position[0])
    return ".".join(found)


def _role(group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]], place: str, kind: str) -> str:
    """Return the role of a group within its block."""
    first = next(iter(group.members), None)
    if group.pinned is not None:
        if "looked up by number" in group.pinned:
            return "entries"
        if "output of the model" in group.pinned and len(group.blocks) <= 1:
            return "outputs"
        if first is not None and first.dim and len(group.members) == 1:
            return "inputs"
    inner = [member.parameter.removeprefix(f"{place}.") for member in group.members] or [_owner(group.id)]
    if len(group.blocks) > 1 and group.atom_channels == 1 and "time" not in inner[0] and _passes_through(group, shapes):
        return "residual stream"
    found = next(filter(None, map(_role_of_words, inner)), "")
    if found == "attention":
        found = "" if _ATTENTION.search(place.rpartition(".")[2].lower()) else "attention "
        return found + ("heads" if group.atom_channels > 1 else "channels")
    if found == "experts":
        whole = first is not None and first.dim == 0 and len(shapes.get(first.parameter, ())) == 3
        return "experts" if whole else "expert feed-forward"
    if found:
        return found
    if any(_EMBEDDING.search(part.lower()) for part in [*inner[:1], *place.split(".")[-1:]]):
        return "channels"
    if _between_linear_layers(group, shapes) and kind in ("transformer", "feedforward", "attention", "residual"):
        return "feed-forward"
    return "channels"


def _passes_through(group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return True if a block reads the group and writes it, or several blocks write it."""
    matrices = [member for member in group.members if len(shapes.get(member.parameter, ())) > 1]
    sides: dict[str, set[int]] = {}
    for member in matrices:
        for block in group.blocks:
            if member.parameter.startswith(f"{block}."):
                sides.setdefault(block, set()).add(member.dim)
    return any(len(found) > 1 for found in sides.values()) or sum(0 in found for found in sides.values()) > 2


def _role_of_words(parameter: str) -> str:
    """Return a role from the words of a parameter's name; "" if no word says it."""
    parts = parameter.lower().split(".")
    for pattern, role in _ROLES:
        if any(pattern.search(part) for part in parts):
            return role
    return ""


def _between_linear_layers(group: ChannelGroup, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    ranks = [len(shapes.get(member.parameter, ())) for member in group.members]
    dims = {member.dim for member, rank in zip(group.members, ranks, strict=True) if rank == 2}
    return max(ranks, default=0) == 2 and len(dims) == 2


def _split(group: str) -> tuple[str, str]:
    """Place and role from an id: the innermost word that says a role, and what lies around it."""
    parts = (_owner(group.partition(":")[0]) or group).split(".")
    for pattern, role in _ROLES:
        for index in range(len(parts) - 1, 0, -1):
            if pattern.search(parts[index].lower()) and not "".join(parts[index + 1 : index + 2]).isdigit():
                while index > 1 and pattern.search(parts[index - 1].lower()):
                    index -= 1
                return ".".join(parts[:index]), role
    last = max((index for index, part in enumerate(parts[:-1]) if part.isdigit()), default=len(parts) - 1)
    return ".".join(parts[: last + 1]), "channels"


def _without_outer(places: Sequence[str]) -> dict[str, str]:
    """Leave out the names of outer modules that hold most of the places, as long as all places still differ."""
    current = {place: place for place in places}
    while True:
        first = Counter(place.split(".")[0] for place in current.values() if place.count("."))
        if not first:
            return current
        outer, count = first.most_common(1)[0]
        inner = {place: name.removeprefix(f"{outer}.") for place, name in current.items()}
        starts_with_number = any(name[:1].isdigit() for place, name in inner.items() if name != current[place])
        if count < _MOST * len(current) or starts_with_number or len(set(inner.values())) < len(inner):
            return current
        current = inner


def _told_apart(named: dict[str, str], places: Mapping[str, str]) -> dict[str, str]:
    """Add the module, and then the whole id, to names that several groups share."""
    for addition in (lambda group: _within(group, places[group]), lambda group: group):
        counts = Counter(named.values())
        named = {group: f"{name} ({addition(group)})" if counts[name] > 1 and addition(group) else name for group, name in named.items()}
    return named


def _within(group: str, place: str) -> str:
    """Return the module of a group's first parameter, seen from its block."""
    owner = _owner(group.partition(":")[0])
    return owner.removeprefix(f"{place}.") if owner != place else ""
