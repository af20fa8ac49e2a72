"""Names of the modules whose forward is running."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass
class ModuleStack:
    """The running modules of one forward.

    Attributes:
        names: Qualified names, outermost first; the first entry, "", is the model itself.
        calls: Qualified name -> number of calls so far.
    """

    names: list[str] = field(default_factory=lambda: [""])
    calls: Counter[str] = field(default_factory=Counter)

    def restart(self) -> None:
        """Clear the names and counts of the last run; an aborted run leaves its modules on the stack."""
        self.names[:] = [""]
        self.calls.clear()

    @property
    def innermost(self) -> str:
        """Name of the module whose forward issues the next op."""
        return self.names[-1]


@contextlib.contextmanager
def module_stack(model: nn.Module) -> Iterator[ModuleStack]:
    """Track which module's forward is running, with hooks that are removed afterwards."""
    stack = ModuleStack()

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            stack.names.append(name)
            stack.calls[name] += 1

        return hook

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        stack.names.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
