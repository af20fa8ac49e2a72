"""Watch a forward while it runs: every op call of it must be the predicted one.

On a skeleton the run costs no data (`dry_run`). On the pruned model itself it is the run on the example inputs, which has to happen anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxyprune.surgery.comparison import (
    Difference,
    PredictedCall,
    difference_of_arguments,
    difference_of_results,
    is_bookkeeping,
    is_extra_constant,
    named_arguments,
)
from proxyprune.tracing.dispatch import RunAborted, WholeOps
from proxyprune.tracing.module_stack import ModuleStack


class Observer(WholeOps):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Raise `RunAborted` at the first call inside it that differs from the prediction, and keep the difference.

    Args:
        calls: What was predicted.
        modules: Knows which module is running; without it a difference names no module.
        extra: Indices of compared calls that the traced program does not have, found on the unpruned model.
    """

    def __init__(self, calls: Sequence[PredictedCall], modules: ModuleStack | None = None, extra: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.calls = calls
        self.modules = modules or ModuleStack()
        self.extra = extra
        self.made = 0
        self.progress = 0
        self.difference: Difference | None = None

    def op(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compare one call."""
        if is_bookkeeping(func):
            return self.run(func, args, kwargs)
        index = self.made
        self.made += 1
        if index in self.extra:
            return self.run(func, args, kwargs)
        if self.progress == len(self.calls):
            self._abort(None, f"the module calls {func._schema.name.removeprefix('aten::')} after the end of the predicted program")
        call = self.calls[self.progress]
        if is_extra_constant(call, func):
            return self.run(func, args, kwargs)
        self._abort(call, difference_of_arguments(call, func, named_arguments(func, args, kwargs)))
        result = self.run(func, args, kwargs)
        self._abort(call, difference_of_results(call, result))
        self.progress += 1
        return result

    def ended(self) -> Difference | None:
        """Return the difference of a run that is over; a predicted call may not be missing."""
        if self.difference is None and self.progress < len(self.calls):
            self._note(self.modules.innermost, "the module ends before the predicted program does")
        return self.difference

    def failed(self, module: str, error: Exception) -> None:
        """Note that the forward raised."""
        lines = str(error).strip().splitlines()
        self._note(module, f"the module raises {type(error).__name__}: {lines[0] if lines else 'no message'}")

    def _abort(self, call: PredictedCall | None, message: str | None) -> None:
        if message is not None:
            self._note(self.modules.innermost, message)
            raise RunAborted

    def _note(self, module: str, message: str) -> None:
        node = self.calls[self.progress].node if self.progress < len(self.calls) else None
        self.difference = Difference(self.progress, module, node, message)
