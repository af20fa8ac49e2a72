"""See a forward's ops as a trace sees them: whole, before torch takes any of them apart.

Linear layers, norms and attention are composites, which ordinary dispatch modes only see in pieces. Export looks at them from the
PreDispatch key, and so do the modes here. torch lets only a few classes stand there; SchemaCheckMode is the one that nothing else asks for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.overrides import TorchFunctionMode

from proxyprune.tracing.empty_ops import EmptyOps, run_once
from proxyprune.tracing.values import Decisions, makes_view


class RunAborted(BaseException):
    """Ends a forward early. It is no `Exception`, so that no `except Exception` inside the forward swallows it."""


class SizesFromValues(RunAborted):
    """Ends a run without data at the first size that only values decide."""


class WholeOps(SchemaCheckMode):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """A dispatch mode at the PreDispatch key; subclasses may override `op`, and call `run` in it.

    Attributes:
        decisions: Results that a run without data receives instead of computing them.
        known_ops: Ops of earlier runs on the meta device; their results need not be computed again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decisions: Decisions | None = None
        self.known_ops: EmptyOps | None = None
        self._dispatch_key = torch._C.DispatchKey.PreDispatch
        self._dispatcher = enable_python_dispatcher()

    def __enter__(self) -> WholeOps:
        self._dispatcher.__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        super().__enter__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._dispatcher.__exit__(*error)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled; the wrapper that this would add is paid for every op

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass an op on; what it calls in turn is not seen, and takes the kernels that it always takes."""
        with no_python_dispatcher():
            return self.op(func, types, args, kwargs or {})

    def op(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Look at one op, run it, and return its result."""
        return self.run(func, args, kwargs)

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one op, or return the result that was decided for it."""
        if self.decisions is not None:
            return self.decisions.run(func, args, kwargs)
        return run_once(func, args, kwargs) if self.known_ops is None else self.known_ops.repeat(func, args, kwargs)


class NumbersWritten(TorchFunctionMode):
    """Let a number that is written into a part of a tensor on the meta device (`mask[1:3] = 2`) take the ops that it takes on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Fill the part, for a number and an index without tensors; run everything else unchanged."""
        if func is Tensor.__setitem__ and args[0].is_meta and type(args[2]) in (bool, int, float) and makes_view(args[1]):
            tensor, index, number = args
            tensor[index].fill_(torch.tensor(number, dtype=tensor.dtype, device="cpu"))
            return None
        return func(*args, **(kwargs or {}))


class ReportedDevice(TorchFunctionMode):
    """Make tensors on the meta device report `device`, so that a forward that branches on it takes the branch for that device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        reported: dict[str, Any] = {"device": device, **{f"is_{kind}": device.type == kind for kind in ("cpu", "cuda", "meta")}}
        self._values = {getattr(Tensor, name).__get__: value for name, value in reported.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the reported value for a read of the device; run everything else unchanged."""
        if func in self._values:
            return self._values[func]
        return func(*args, **(kwargs or {}))
