"""Networks under torch.compile: what fails is said in a sentence, and no network of many is left uncompiled in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from proxyprune.errors import InputError

_SHAPES = 4  # that one network may be compiled for: two sizes of batches, each with fixed and with changing sizes


class Compiled:
    """A network that is compiled when it is first called.

    Args:
        model: The network.
        options: For torch.compile.
        networks: How many share the code of its forward. torch stops compiling code that it has compiled too often, so its limit is raised.
    """

    def __init__(self, model: nn.Module, options: Mapping[str, Any], networks: int = 1) -> None:
        self._call = torch.compile(model, **dict(options))
        self._limit = _SHAPES * networks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it.

        Raises:
            InputError: If it cannot be compiled here.
        """
        from torch._dynamo import config

        most = max(self._limit, int(config.recompile_limit))
        try:
            with config.patch(recompile_limit=most):
                return self._call(*args, **kwargs)
        except Exception as error:  # the compiler's errors have no common class but their module
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"torch.compile cannot compile the networks on this machine: {type(error).__name__}: {reason}. It needs a C++ compiler "
                "(g++ or clang++, on the path or named by CXX); install one, or sample without compiling."
            ) from error
