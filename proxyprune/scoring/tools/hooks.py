"""The modules of blocks, and hooks on them that come off again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from proxyprune.errors import WeightsError

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
"""Called with module, arguments, named arguments and output after a forward; what it returns, unless None, is the output instead."""


def module_of(model: nn.Module, block: str) -> nn.Module:
    """Return the module that a block names.

    Raises:
        WeightsError: If the model has none, so that it is not the one that was traced.
    """
    try:
        return model.get_submodule(block)
    except AttributeError as error:
        raise WeightsError(
            f"The model {type(model).__name__} has no module '{block}', which the graph has. Pass the model that was traced."
        ) from error


@contextlib.contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Forward hooks inside the `with`."""
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
