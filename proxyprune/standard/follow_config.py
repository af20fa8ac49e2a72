"""The config object of a pruned model: it gets the pruned sizes, or saving the model with it raises."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from proxyprune.errors import ConfigError
from proxyprune.standard.blueprint import Blueprint, shapes_of
from proxyprune.standard.reactions import Family
from proxyprune.standard.rebuild import InnerCall, family_in, rebuilt
from proxyprune.standard.solve import StandardConfig, configs_of

_WAY_OUT = "Save it with proxyprune.save(result, folder)"
_OTHER_PLAN = ", or prune with uniform=True for a plan that the config can express"


@dataclass(frozen=True)
class SavingRaises:
    """Stands in for `save_pretrained` of a pruned model whose config would be wrong.

    Attributes:
        reason: Why it would be wrong, and what to do.
    """

    reason: str

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise in place of saving.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(self.reason)


def follow_config(
    model: nn.Module,
    blueprint: Blueprint,
    shapes: Mapping[str, tuple[int, ...]],
    call: Callable[[], InnerCall],
    *,
    uniform: bool,
) -> str | None:
    """Give a pruned model the config that describes it; without one, let `save_pretrained` raise.

    Args:
        model: The pruned model; changed in place.
        blueprint: Class and config of the unpruned network.
        shapes: Shapes of the unpruned model.
        call: Runs the pruned model, and returns the call of the network inside.
        uniform: Whether the plan keeps widths equal. If not, widths that differ between layers end the search at once.

    Returns:
        Why the config cannot express the network; None if it does.
    """
    network = model.get_submodule(blueprint.module)
    try:
        if not uniform:
            _check_alike(blueprint, shapes, network)
        family = family_in(blueprint, shapes, type(model).__name__)
        config = rebuilt(family, network, call()).config
    except ConfigError as error:
        return _refuse(network, blueprint, error, uniform=uniform)
    _adopt(network, family, config)
    return None


def follow_config_unrun(model: nn.Module, blueprint: Blueprint, shapes: Mapping[str, tuple[int, ...]], *, uniform: bool) -> None:
    """Do the same for a pruned model that is not run, such as a loaded one: its shapes and attributes have to name one config.

    Args:
        model: The pruned model; changed in place.
        blueprint: Class and config of the unpruned network.
        shapes: Shapes of the unpruned model.
        uniform: Whether the plan keeps widths equal.
    """
    network = model.get_submodule(blueprint.module)
    try:
        _check_alike(blueprint, shapes, network)
        family = family_in(blueprint, shapes, type(model).__name__)
        first, *others = configs_of(family, network)
        if others and others[0].unlike == first.unlike:
            raise ConfigError("several configs give its shapes, and only outputs tell them apart")
    except ConfigError as error:
        _refuse(network, blueprint, error, uniform=uniform)
        return
    _adopt(network, family, first)


def _refuse(network: nn.Module, blueprint: Blueprint, error: ConfigError, *, uniform: bool) -> str:
    way_out = f"{_WAY_OUT}{'' if uniform else _OTHER_PLAN}."
    reason = f"The config of {blueprint.kind.__name__} cannot express this pruned network: {str(error).rstrip('.')}. {way_out}"
    _mark(network, reason)
    return reason


def _adopt(network: nn.Module, family: Family, config: StandardConfig) -> None:
    """Give every module of a pruned network the config that describes it."""
    # Removed layers leave a module behind in their list, so here the config keeps the counts of layers: the forward may read them.
    widths = {path: value for path, value in config.numbers.items() if path not in config.counts}
    configured = dict(_like(network, family.blueprint.with_values(widths)).named_modules())
    for name, own in list(network.named_modules()):
        module = configured.get(name)
        if module is not None and getattr(own, "config", None) is not None and getattr(module, "config", None) is not None:
            _set_config(own, module)
    if config.renumbered:
        _mark(
            network,
            f"Layers were removed from this {family.blueprint.kind.__name__}, and the others keep their old numbers here, which "
            "from_pretrained does not expect. Save it with proxyprune.save_pretrained(result, folder).",
        )


def _like(network: nn.Module, blueprint: Blueprint) -> nn.Module:
    """Return a network without data, whose config has the private settings of another network's."""
    settings = blueprint.make_config()
    attention = getattr(getattr(network, "config", None), "_attn_implementation", None)
    if attention is not None:
        settings._attn_implementation = attention
    return blueprint.build(config=settings)


def _set_config(own: nn.Module, module: nn.Module) -> None:
    """Give a module the config of its counterpart; diffusers keeps it in a private attribute."""
    held = "_internal_dict" if "_internal_dict" in vars(own) else "config"
    setattr(own, held, getattr(module, held))


def _mark(network: nn.Module, reason: str) -> None:
    for module in network.modules():
        if hasattr(type(module), "save_pretrained"):
            vars(module)["save_pretrained"] = SavingRaises(reason)


def _check_alike(blueprint: Blueprint, shapes: Mapping[str, tuple[int, ...]], network: nn.Module) -> None:
    """Raise early for widths that differ between repeated layers, before any other config is tried.

    Raises:
        ConfigError: If two layers of a list had one width and now have two.
    """
    prefix = blueprint.prefix
    now = shapes_of(network)
    first: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {}
    for name, shape in now.items():
        before = shapes.get(prefix + name)
        if before is None:
            continue
        place = re.sub(r"\d+", "#", name)
        other, other_before, other_now = first.setdefault(place, (name, before, shape))
        if other_before == before and other_now != shape:
            raise ConfigError(f"'{other}' is now {list(other_now)} and '{name}' is {list(shape)}, and both were {list(before)}")
