"""Every error that proxyprune raises on purpose.

    ProxyPruneError
    ├── InputError                what the caller handed in              (also ValueError)
    │   ├── ModelFileError        a model file cannot be used
    │   ├── ExampleInputsError    the model does not run on the example inputs
    │   ├── TargetError           a budget is out of range, or no plan reaches it
    │   ├── KeepPatternError      a keep, floor or ceiling pattern matches nothing
    │   ├── ResultFileError       a file is no result of proxyprune, or is damaged
    │   ├── WeightsError          weights are missing, misshapen, NaN or infinite
    │   └── UnknownNameError      no scorer, block or group has this name  (also LookupError)
    ├── TraceError                torch.export cannot read the model
    ├── ScoringError              a scorer could not do its work
    │   ├── MissingNeedError      it needs weights, gradients or batches that were not given
    │   ├── InvalidScoreError     it returned too few, unknown or non-finite scores
    │   └── ScorerLoadError       a plug-in cannot be imported
    ├── PlanError                 a plan cannot be used
    │   ├── PlanMismatchError     it belongs to another structure
    │   └── PlanFormatError       its file is truncated, tampered with, or from another schema
    ├── VerificationError         the pruned network does not do what was planned
    └── StorageError              a folder cannot be written or read       (also OSError)

A message says what was expected, what was found, where, and what to do.
"""

from __future__ import annotations


class ProxyPruneError(Exception):
    """Base of every error raised on purpose; catch this one to catch them all."""


class InputError(ProxyPruneError, ValueError):
    """Something that the caller handed in cannot be used."""


class ModelFileError(InputError):
    """A model file is missing, broken, or lacks what a model file must define."""


class ExampleInputsError(InputError):
    """The model raises when it is run on the example inputs."""


class TargetError(InputError):
    """A budget is out of range, or lower than any plan can reach."""


class KeepPatternError(InputError):
    """A keep, floor or ceiling pattern matches no block and no parameter."""


class ResultFileError(InputError):
    """A file or folder is no result that proxyprune writes, or a damaged one."""


class WeightsError(InputError):
    """Weights are missing, have other shapes than the model, or are not finite."""


class UnknownNameError(InputError, LookupError):
    """A name was given that nothing here has; the message lists the closest ones."""


class TraceError(ProxyPruneError):
    """torch.export could not turn the model into a graph."""


class ScoringError(ProxyPruneError):
    """A scorer could not do its work."""


class MissingNeedError(ScoringError):
    """A scorer needs weights, gradients or batches that were not given."""


class InvalidScoreError(ScoringError):
    """A scorer returned too few, unknown, out-of-range or non-finite scores."""


class ScorerLoadError(ScoringError):
    """A scorer plug-in is installed but cannot be imported or does not fit the contract."""


class PlanError(ProxyPruneError):
    """A plan cannot be used."""


class PlanMismatchError(PlanError):
    """A plan was made for a model of another structure."""


class PlanFormatError(PlanError):
    """A plan file is truncated, was changed by hand, or has an unknown schema."""


class VerificationError(ProxyPruneError):
    """The pruned network does not run, or does not do what the plan predicted.

    Attributes:
        module: Qualified name of the module in which the difference shows, or "".
        groups: Ids of the channel groups that are cut there.
    """

    def __init__(self, message: str, *, module: str = "", groups: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.module = module
        self.groups = groups


class StorageError(ProxyPruneError, OSError):
    """A folder or file cannot be written or read."""
