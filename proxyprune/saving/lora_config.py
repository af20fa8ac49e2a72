"""The config of a PEFT adapter over a cut: what LoRA variants can be carried, and the names in it that follow removed blocks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from proxyprune.applying.lora import LoraState
from proxyprune.errors import InputError
from proxyprune.support.checks import listed
from proxyprune.surgery.surgery import Surgery
from proxyprune.tracing.names import is_inside

_STARTS = ("true", "false", "none", "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the weights of the network as they are."""

_VARIANTS = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
)
"""Fields that, when set, make the adapter more than products of A and B beside layers of the network."""

_NAMES = ("target_modules", "modules_to_save", "exclude_modules")
_PATTERNS = ("rank_pattern", "alpha_pattern")


def check_config(config: Mapping[str, Any]) -> None:
    """Raise unless the config describes an adapter that can be carried.

    Raises:
        InputError: If it does not.
    """
    kind = str(config.get("peft_type") or "missing").rpartition(".")[2]
    if kind.upper() != "LORA":
        raise InputError(f"The adapter's config has peft_type {kind}: expected LORA. Only LoRA adapters can be carried.")
    start = config.get("init_lora_weights", True)
    if str(start).lower() not in _STARTS:
        raise InputError(
            f"The adapter's config has init_lora_weights {start!r}, which changes the weights of the network when the adapter is loaded: "
            f"expected one of {', '.join(_STARTS)}. Convert it to a plain LoRA adapter first (path_initial_model_for_weight_conversion)."
        )
    found = [name for name in _VARIANTS if config.get(name)]
    if found:
        raise InputError(f"The adapter's config sets {listed(found)}: expected a plain LoRA adapter without it. It cannot be carried.")


def without_removed(config: Mapping[str, Any], modules: Collection[str], surgery: Surgery) -> dict[str, Any]:
    """Return a config without the names and patterns that match modules of removed blocks alone.

    Args:
        config: Of the unpruned network's adapter.
        modules: Names of the unpruned network's modules, as the adapter has them.
        surgery: What pruning changed; its names are those of `modules`.
    """

    def stays(pattern: str, *, regex: bool) -> bool:
        matching = [name for name in modules if _matches(pattern, name, regex=regex)]
        return not matching or not all(any(is_inside(name, entry.module) for entry in surgery.removed_blocks) for name in matching)

    changed = dict(config)
    for field in _NAMES:
        if isinstance(config.get(field), list):
            changed[field] = [name for name in config[field] if stays(name, regex=False)]
    for field in _PATTERNS:
        if isinstance(config.get(field), Mapping):
            changed[field] = {key: value for key, value in config[field].items() if stays(key, regex=True)}
    return changed


def with_new_names(config: Mapping[str, Any], state: LoraState, names: Mapping[str, str]) -> dict[str, Any]:
    """Return a config that lists the adapter's layers by their new names, with the rank and scale of each that differ from the default.

    Patterns and layer numbers of the old config refer to old names, so each layer is written out.

    Args:
        config: Of the unpruned network's adapter.
        state: The adapter, with old names.
        names: Old name of a module, as the adapter has it -> new name.
    """
    layers = {state.modules[key] for key in state.tensors if key in state.modules and "lora_" in key}
    changed = dict(config) | {"target_modules": sorted(names[name] for name in layers)}
    for field in _PATTERNS:
        patterns = config.get(field) or {}
        found = {name: next((key for key in patterns if _matches(key, name, regex=True)), None) for name in layers}
        changed[field] = {re.escape(names[name]): patterns[key] for name, key in sorted(found.items()) if key is not None}
    for field in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        changed[field] = None
    return changed


def _matches(pattern: str, name: str, *, regex: bool) -> bool:
    """Return True if a name or pattern of a config means a module, by the rules of PEFT."""
    if not regex:
        return name == pattern or name.endswith(f".{pattern}")
    return re.match(rf"(.*\.)?({pattern})$", name) is not None
