"""The source code of a module's class."""

from __future__ import annotations

import inspect

from torch import nn


def class_source(module: nn.Module) -> str | None:
    """Return the source code of a module's class, or None if it cannot be read: a class made at run time, or one of compiled code."""
    try:
        return inspect.getsource(type(module))
    except (OSError, TypeError):
        return None


def class_name(module: nn.Module) -> str:
    """Return the class with its module."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
