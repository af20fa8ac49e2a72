"""Functions on example inputs and batches that scorers need: they may be nested in tuples, dicts and dataclasses."""

from __future__ import annotations

from proxyprune.support.nested import mapped, tensors_of
from proxyprune.tracing.model_call import call_arguments

__all__ = ["call_arguments", "mapped", "tensors_of"]
