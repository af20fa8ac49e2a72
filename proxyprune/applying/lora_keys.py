"""Keys of LoRA adapters: the layer and the part of it that each entry belongs to, in the layouts of PEFT, diffusers and kohya."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from proxyprune.errors import PlanMismatchError
from proxyprune.support.wrapped_names import unwrapped

Role = Literal["down", "up", "mid", "bias", "magnitude", "dora_scale", "alpha", "parameter"]
"""Part of an adapter: A, B, a kernel between them, the bias of B, magnitudes of DoRA (of rows, or of rows or columns by their shape), a
scale, or a whole parameter that was trained with it."""

_ROLES: Mapping[str, Role] = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_embedding_A": "down",
    "lora_embedding_B": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_down": "down",
    "lora_mid": "mid",
    "lora_up": "up",
    "lora.down": "down",
    "lora.up": "up",
    "lora_linear_layer.down": "down",
    "lora_linear_layer.up": "up",
    "dora_scale": "dora_scale",
    "lora.dora_scale": "dora_scale",
}

_ENTRY = re.compile(
    rf"(?P<module>.+?)\.(?P<role>{'|'.join(re.escape(role) for role in sorted(_ROLES, key=len, reverse=True))})"
    r"(?:\.(?!weight$|bias$)(?P<adapter>\w+))?(?:\.(?P<what>weight|bias))?"
)
"""`<module>.lora_A.weight`, `<module>.lora_A.default.weight`, `<module>.lora.down.weight` and the like."""

_INSERTED = re.compile(r"\.(base_layer|original_module|modules_to_save(\.default)?)\.")
"""Children that PEFT puts between a module and its parameters."""

_PROCESSOR = re.compile(r"(?P<attention>.+?)(\.processor)?\.(?P<layer>\w+)_lora\.(?P<role>down|up)\.weight(?P<alpha>\.alpha)?")
"""Older diffusers: `attn1.processor.to_q_lora.down.weight`."""


@dataclass(frozen=True)
class LoraKey:
    """One entry of an adapter.

    Attributes:
        key: Its key in the state dict.
        name: Name of its module, or of its parameter if the role is "parameter"; with the prefix that the adapter's names have.
        role: Part of the adapter.
    """

    key: str
    name: str
    role: Role

    @property
    def is_underscored(self) -> bool:
        """Return True if the name may be a module's with `_` in place of each dot."""
        return "." not in self.name


def read_key(key: str) -> LoraKey:
    """Return what a key names; keys of no known layout are read as names of whole parameters."""
    plain = _INSERTED.sub(".", unwrapped(key))
    if found := _PROCESSOR.fullmatch(plain):
        layer = "to_out.0" if found["layer"] == "to_out" else found["layer"]
        role: Role = "alpha" if found["alpha"] else "down" if found["role"] == "down" else "up"
        return LoraKey(key, f"{found['attention']}.{layer}", role)
    if found := _ENTRY.fullmatch(plain):
        role = _ROLES[found["role"]]
        if found["what"] != "bias":
            return LoraKey(key, found["module"], role)
        if role == "up":
            return LoraKey(key, found["module"], "bias")
    if plain.endswith(".alpha"):
        return LoraKey(key, plain.removesuffix(".alpha"), "alpha")
    return LoraKey(key, plain, "parameter")


@dataclass(frozen=True)
class KnownNames:
    """Names of the unpruned network.

    Attributes:
        modules: Modules that hold parameters.
        parameters: Parameters and buffers.
        root: Name of the network inside the model that was pruned, if that is a wrapper around it; otherwise "".
    """

    modules: frozenset[str]
    parameters: frozenset[str]
    root: str = ""

    @classmethod
    def of(cls, parameters: Iterable[str], root: str = "") -> KnownNames:
        """Return the names, from those of all parameters and buffers."""
        names = frozenset(parameters)
        return cls(frozenset(name.rpartition(".")[0] for name in names), names, root)

    @cached_property
    def underscored(self) -> Mapping[str, tuple[str, ...]]:
        """Names of modules by their name with `_` in place of each dot, as kohya's adapters have them; with and without the root."""
        found: dict[str, tuple[str, ...]] = {}
        for name in sorted(self.modules):
            for short in dict.fromkeys((name, name.removeprefix(f"{self.root}.") if self.root else name)):
                found[short.replace(".", "_")] = (*found.get(short.replace(".", "_"), ()), name)
        return found

    def candidates(self, entry: LoraKey, prefix: str) -> tuple[str, ...]:
        """Return the names in the model that an entry may mean; several only if names differ in `_` and dot alone."""
        if not entry.name.startswith(prefix):
            return ()
        inner = entry.name.removeprefix(prefix)
        known = self.parameters if entry.role == "parameter" else self.modules
        exact = [name for name in (inner, f"{self.root}.{inner}" if self.root else inner) if name in known]
        if entry.role != "parameter" and entry.is_underscored and (prefix or not exact):
            return self.underscored.get(inner, ())
        return tuple(exact[:1])

    def full(self, entry: LoraKey, prefix: str) -> str | None:
        """Return the name in the model of an entry's module or parameter; None if the model has none there.

        Raises:
            PlanMismatchError: If the model has several.
        """
        found = self.candidates(entry, prefix)
        if len(found) > 1:
            raise PlanMismatchError(
                f"'{entry.key}' can belong to {' or '.join(map(repr, found))}: expected a name that one layer of the model has. "
                "Convert the adapter to the layout of PEFT or diffusers, whose names have dots."
            )
        return found[0] if found else None


def with_known_roles(entries: Iterable[LoraKey], known: KnownNames) -> list[LoraKey]:
    """Return the entries, with `alpha` as a parameter where layers have a parameter of this name."""
    if not any(name.endswith(".alpha") for name in known.parameters):
        return list(entries)
    changed = []
    for entry in entries:
        whole = LoraKey(entry.key, f"{entry.name}.alpha", "parameter")
        is_parameter = entry.role == "alpha" and any(known.candidates(whole, prefix) for prefix in _prefixes(whole.name))
        changed.append(whole if is_parameter else entry)
    return changed


def find_prefix(entries: Collection[LoraKey], known: KnownNames) -> str:
    """Return the prefix under which most entries are found, such as `base_model.model.` or `unet.`.

    Raises:
        PlanMismatchError: If no entry is found under any.
    """
    counts = Counter(prefix for entry in entries for prefix in _prefixes(entry.name) if known.candidates(entry, prefix))
    if not counts:
        found = ", ".join(f"'{entry.key}'" for entry in list(entries)[:3]) or "none"
        wanted = ", ".join(f"'{name}'" for name in sorted(known.modules)[:3])
        raise PlanMismatchError(
            f"The adapter names no layer of the model that was pruned: expected layers such as {wanted}, found the keys {found}. "
            "Use an adapter that was made for the unpruned model, in the layout of PEFT, diffusers or kohya, with the names of its modules."
        )
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))


def _prefixes(name: str) -> list[str]:
    """Return every beginning of a dotted name, or of a name with underscores alone, each with its separator; the first is empty."""
    separator = "." if "." in name else "_"
    parts = name.split(separator)
    return ["".join(f"{part}{separator}" for part in parts[:count]) for count in range(len(parts))]
