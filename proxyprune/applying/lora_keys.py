"""Keys of LoRA adapters: the layer and the part of it that each entry belongs to, in the layouts of PEFT and diffusers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from proxyprune.errors import PlanMismatchError
from proxyprune.support.wrapped_names import unwrapped

Role = Literal["down", "up", "bias", "magnitude", "alpha", "parameter"]
"""Part of an adapter: A, B, the bias of B, the magnitudes of DoRA, a scale, or a whole parameter that was trained with it."""

_ROLES: Mapping[str, Role] = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_embedding_A": "down",
    "lora_embedding_B": "up",
    "lora_magnitude_vector": "magnitude",
    "lora.down": "down",
    "lora.up": "up",
    "lora_linear_layer.down": "down",
    "lora_linear_layer.up": "up",
    "dora_scale": "magnitude",
    "lora.dora_scale": "magnitude",
}

_ENTRY = re.compile(
    rf"(?P<module>.+?)\.(?P<role>{'|'.join(re.escape(role) for role in sorted(_ROLES, key=len, reverse=True))})"
    r"(?:\.(?!weight$|bias$)(?P<adapter>\w+))?(?:\.(?P<what>weight|bias))?"
)
"""`<module>.lora_A.weight`, `<module>.lora_A.default.weight`, `<module>.lora.down.weight` and the like."""

_INSERTED = re.compile(r"\.(base_layer|original_module|modules_to_save(\.default)?)\.")
"""Children that PEFT puts between a module and its parameters."""

_PROCESSOR = re.compile(r"(?P<attention>.+)\.processor\.(?P<layer>\w+)_lora\.(?P<role>down|up)\.weight")
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


def read_key(key: str) -> LoraKey:
    """Return what a key names; keys of no known layout are read as names of whole parameters."""
    plain = _INSERTED.sub(".", unwrapped(key))
    if found := _PROCESSOR.fullmatch(plain):
        layer = "to_out.0" if found["layer"] == "to_out" else found["layer"]
        return LoraKey(key, f"{found['attention']}.{layer}", "down" if found["role"] == "down" else "up")
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

    def full(self, entry: LoraKey, prefix: str) -> str | None:
        """Return the name in the model of an entry's module or parameter; None if the model has none there."""
        if not entry.name.startswith(prefix):
            return None
        inner = entry.name.removeprefix(prefix)
        known = self.parameters if entry.role == "parameter" else self.modules
        return next((name for name in dict.fromkeys((inner, f"{self.root}.{inner}" if self.root else inner)) if name in known), None)


def with_known_roles(entries: Iterable[LoraKey], known: KnownNames) -> list[LoraKey]:
    """Return the entries, with `alpha` as a parameter where layers have a parameter of this name."""
    if not any(name.endswith(".alpha") for name in known.parameters):
        return list(entries)
    changed = []
    for entry in entries:
        whole = LoraKey(entry.key, f"{entry.name}.alpha", "parameter")
        is_parameter = entry.role == "alpha" and any(known.full(whole, prefix) for prefix in _prefixes(whole.name))
        changed.append(whole if is_parameter else entry)
    return changed


def find_prefix(entries: Collection[LoraKey], known: KnownNames) -> str:
    """Return the prefix under which most entries are found, such as `base_model.model.` or `unet.`.

    Raises:
        PlanMismatchError: If no entry is found under any.
    """
    counts = Counter(prefix for entry in entries for prefix in _prefixes(entry.name) if known.full(entry, prefix) is not None)
    if not counts:
        found = ", ".join(f"'{entry.key}'" for entry in list(entries)[:3]) or "none"
        wanted = ", ".join(f"'{name}'" for name in sorted(known.modules)[:3])
        raise PlanMismatchError(
            f"The adapter names no layer of the model that was pruned: expected layers such as {wanted}, found the keys {found}. "
            "Use an adapter that was made for the unpruned model, in the layout of PEFT or diffusers."
        )
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))


def _prefixes(name: str) -> list[str]:
    """Return every beginning of a dotted name, each with its dot; the first is empty."""
    parts = name.split(".")
    return ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts))]
