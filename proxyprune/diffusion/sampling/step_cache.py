"""Caches of diffusers on experts: blocks whose output hardly changes from one step to the next are not computed again."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from diffusers import CacheMixin
from diffusers.hooks import HookRegistry
from torch import nn

from proxyprune.errors import InputError

_CALL = "expert"  # diffusers keeps a state for each kind of call, such as with and without a prompt; experts are called in one way


def enable_cache(model: nn.Module, config: Any) -> None:
    """Give a network a cache of diffusers.

    Models without `enable_cache` of their own, such as DiTTransformer2DModel, get it in the same way; diffusers looks for blocks of its
    registry.

    Args:
        model: The network.
        config: A configuration from diffusers.hooks, such as `FirstBlockCacheConfig`.

    Raises:
        InputError: If the network has a cache, diffusers has no such cache, or the network has no blocks for it.
    """
    if getattr(model, "is_cache_enabled", False):
        raise InputError(f"A cache is enabled already for {type(model).__name__}; call its disable_cache() first.")
    own = isinstance(model, CacheMixin)
    if not own:
        model.is_cache_enabled = False  # type: ignore[assignment]  # CacheMixin.enable_cache reads it
    try:
        CacheMixin.enable_cache(model, config)
    except (ValueError, IndexError, AttributeError) as error:  # an unknown configuration, no list of blocks, or blocks of another class
        _take_off(model, config)
        raise InputError(
            f"{type(config).__name__} cannot be enabled for {type(model).__name__}: {str(error).rstrip('.')}. Caches of diffusers need a "
            "configuration of diffusers.hooks and a list of transformer blocks of its registry, all of them present: a network that lost "
            "whole blocks has others in their places."
        ) from error
    if not own:
        model.is_cache_enabled = True  # type: ignore[assignment]  # as above


def disable_cache(model: nn.Module) -> None:
    """Remove a network's cache."""
    CacheMixin.disable_cache(model)
    if not isinstance(model, CacheMixin):
        model.is_cache_enabled = False  # type: ignore[assignment]  # CacheMixin.enable_cache reads it


def _take_off(model: nn.Module, config: Any) -> None:
    """Remove what a failed attempt left on the first blocks."""
    model._cache_config = config  # CacheMixin.disable_cache reads what to remove
    with suppress(ValueError):  # of a configuration that diffusers does not know, nothing was enabled
        CacheMixin.disable_cache(model)
    model._cache_config = None  # type: ignore[assignment]  # as CacheMixin leaves it


def forget(model: nn.Module) -> None:
    """Drop what a network's cache holds, before other images."""
    HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks()


def step_of(model: nn.Module, number: int, steps: int) -> AbstractContextManager[None]:
    """Return a context in which a network is called for one step; networks with a cache need one.

    Args:
        model: The network.
        number: Number of the call, from 0.
        steps: Calls for an image.
    """
    if not getattr(model, "is_cache_enabled", False):
        return nullcontext()
    context: AbstractContextManager[None] = CacheMixin.cache_context(model, _CALL, step_index=number, num_inference_steps=steps)
    return context
