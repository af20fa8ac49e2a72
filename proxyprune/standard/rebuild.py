"""A pruned network in its plain form: built by its class from a config, with the pruned weights in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.errors import ConfigError
from proxyprune.standard.blueprint import Blueprint
from proxyprune.standard.reactions import Family, family_of
from proxyprune.standard.solve import StandardConfig, configs_of
from proxyprune.support.nested import tensors_of


@dataclass(frozen=True)
class InnerCall:
    """One call of the network inside a model.

    Attributes:
        args: Positional arguments.
        kwargs: Named arguments.
        outputs: Tensors that it returned.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...] = field(repr=False)


@dataclass(frozen=True)
class Standard:
    """A pruned network that its class builds from a config.

    Attributes:
        network: The plain network, with the pruned weights.
        config: Its config, and how names changed.
    """

    network: nn.Module = field(repr=False)
    config: StandardConfig


def family_in(blueprint: Blueprint | None, shapes: Mapping[str, tuple[int, ...]], model_class: str) -> Family:
    """Return the family of an unpruned network.

    Args:
        blueprint: Its class and config, if it has any.
        shapes: Shape of every parameter and buffer of the traced model.
        model_class: Name of the traced model's class.

    Raises:
        ConfigError: If the model has no config, or is not the network that its config describes.
    """
    if blueprint is None:
        raise ConfigError(f"{model_class} has no config that its class is built from (as in transformers and diffusers).")
    family = family_of(blueprint)
    if family is None:
        raise ConfigError(f"{blueprint.kind.__name__} cannot be built from the config that this network has.")
    prefix = blueprint.prefix
    if any(name.startswith(prefix) and family.shapes.get(name[len(prefix) :]) != shape for name, shape in shapes.items()):
        raise ConfigError(
            f"The unpruned network is not the {blueprint.kind.__name__} that its config describes: it was changed after it was built."
        )
    return family


def inner_call(model: nn.Module, module: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> InnerCall:
    """Run a model, and return the first call of the network inside, with its outputs."""
    calls: list[InnerCall] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(InnerCall(args, dict(kwargs), tuple(tensor.detach().clone() for tensor in tensors_of(output))))

    handle = model.get_submodule(module).register_forward_hook(note, with_kwargs=True)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            model(*args, **kwargs)
    finally:
        handle.remove()
    return calls[0]


def rebuilt(family: Family, pruned: nn.Module, call: InnerCall) -> Standard:
    """Build the plain form of a pruned network, and prove that it computes the same.

    Args:
        family: Of the unpruned network.
        pruned: The pruned network, in eval mode (without a wrapper around it).
        call: One call of it.

    Raises:
        ConfigError: If no config gives the shapes of the network, or none gives its outputs.
    """
    configs = configs_of(family, pruned)
    for config in configs:
        network = _filled(config, pruned)
        if network is not None and _gives(network, call):
            return Standard(network, config)
    raise ConfigError(
        f"{family.blueprint.kind.__name__} builds networks of the pruned one's shapes from {len(configs)} configs, and none of them gives "
        "its outputs: the layers that were removed, or a size that no shape shows, cannot be expressed in the config."
    )


def _filled(config: StandardConfig, pruned: nn.Module) -> nn.Module | None:
    """Return the class's network with the pruned weights; None if it has other state."""
    settings = config.blueprint.make_config()
    attention = getattr(getattr(pruned, "config", None), "_attn_implementation", None)
    if attention is not None:
        settings._attn_implementation = attention
    try:
        network: Any = config.blueprint.build("cpu", settings)
    except Exception:  # noqa: BLE001  a class may reject a config with any exception
        return None
    state = {str(config.name_of(name)): tensor for name, tensor in pruned.state_dict().items()}
    if {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} != {n: tuple(t.shape) for n, t in state.items()}:
        return None
    network.load_state_dict(state, assign=True)
    if hasattr(network, "tie_weights"):
        network.tie_weights()
    generation = getattr(pruned, "generation_config", None)
    if generation is not None:
        network.generation_config = copy.deepcopy(generation)
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    return network.to(device).eval()  # type: ignore[no-any-return]  # the class is known at run time only


def _gives(network: nn.Module, call: InnerCall) -> bool:
    """Return True if a network gives the same outputs, bit for bit."""
    try:
        found = inner_call(network, "", call.args, call.kwargs).outputs
    except Exception:  # noqa: BLE001  a config that the network does not run with is not the one that is looked for
        return False
    return len(found) == len(call.outputs) and all(same_values(one, other) for one, other in zip(found, call.outputs, strict=True))


def same_values(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors are equal bit for bit; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
