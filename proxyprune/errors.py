"""Every error that proxyprune raises on purpose.

    ProxyPruneError
    ├── InputError                what the caller handed in              (also ValueError)
    │   ├── ModelFileError        a model file cannot be used
    │   ├── ExampleInputsError    the model does not run on the example inputs
    │   ├── TargetError           a budget is out of range, or no plan reaches it
    │   ├── KeepPatternError      a keep, floor or ceiling pattern matches nothing
    │   ├── ResultFileError       a file is no result of proxyprune, or is damaged
    │   ├── WeightsError          weights are missing, misshapen, NaN or infinite
    │   ├── UnreliableRankingError  a ranking says of itself that it should decide nothing
    │   ├── RuleError             a rule for an op cannot be registered, fails, or is missing
    │   ├── DataError             a data set is missing, or holds something that is no image
    │   ├── FormulaError          a text is no formula for scores, or its values are not finite
    │   └── UnknownNameError      no scorer, block or group has this name  (also LookupError)
    ├── TraceError                the forward cannot be followed
    ├── ScoringError              a scorer could not do its work
    │   ├── MissingNeedError      it needs weights, gradients or batches that were not given
    │   ├── InvalidScoreError     it returned too few, unknown or non-finite scores
    │   ├── ScorerLoadError       a plug-in cannot be imported
    │   └── LLMError              a language model gave no usable ranking
    │       ├── LLMUnavailableError   no connection, or the service cannot serve the request  (also ConnectionError)
    │       ├── LLMAuthError          the key is missing or refused          (also PermissionError)
    │       ├── LLMRateLimitError     too many requests, or the quota is used up
    │       ├── LLMTimeoutError       no answer in time                      (also TimeoutError)
    │       ├── LLMRefusalError       the model declined
    │       ├── LLMTruncatedError     the answer stops in the middle
    │       ├── LLMInvalidAnswerError the answer is no valid score map, even after it was asked again
    │       ├── LLMBudgetError        the money or prompt budget does not suffice
    │       └── LLMReplayMissError    a replay needs an answer that is not recorded (also LookupError)
    ├── ConfigError               the config of a network cannot express how it was pruned
    ├── PlanError                 a plan cannot be used
    │   ├── PlanMismatchError     it belongs to another structure
    │   └── PlanFormatError       its file is truncated, tampered with, or from another schema
    ├── VerificationError         the pruned network does not do what was planned
    ├── TrainingError             a training run cannot start or go on
    │   ├── DivergedError         the loss is not finite
    │   └── ComputeError          the next step would cost more than the ledger allows
    ├── AssistantError            a tool call of an assistant cannot be answered
    │   ├── CallLimitError        it would exceed a limit of time, size or number
    │   └── ReplayMismatchError   a replay is called differently from its recording  (also LookupError)
    ├── MissingExtraError         a package is not installed that an extra brings  (also ImportError)
    └── StorageError              a folder cannot be written or read       (also OSError)
        └── JournalError          a journal of measurements belongs to something else, or is damaged

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


class RuleError(InputError):
    """A rule for an op cannot be registered, fails on the traced model, or is missing where a plan needs it."""


class DataError(InputError):
    """A data set is missing, cannot be read, or holds something that is no image."""


class FormulaError(InputError):
    """A text is no formula for channel scores, exceeds a limit, or gives values that are not finite."""


class UnknownNameError(InputError, LookupError):
    """A name was given that nothing here has; the message lists the closest ones."""


class UnreliableRankingError(InputError):
    """A ranking says of itself that it should decide nothing, and the caller did not accept that."""


class TraceError(ProxyPruneError):
    """The forward could not be turned into a graph, neither without data nor by a run on the example inputs."""


class ScoringError(ProxyPruneError):
    """A scorer could not do its work."""


class MissingNeedError(ScoringError):
    """A scorer needs weights, gradients or batches that were not given."""


class InvalidScoreError(ScoringError):
    """A scorer returned too few, unknown, out-of-range or non-finite scores."""


class ScorerLoadError(ScoringError):
    """A scorer plug-in is installed but cannot be imported or does not fit the contract."""


class LLMError(ScoringError):
    """A language model gave no usable ranking.

    Attributes:
        retryable: Whether the same request may succeed a moment later.
        retry_after: Seconds that the service asked to wait, or None.
        status: HTTP status, or None.
    """

    def __init__(self, message: str, *, retryable: bool = False, retry_after: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after
        self.status = status


class LLMUnavailableError(LLMError, ConnectionError):
    """The service cannot be reached, or does not serve the request."""


class LLMAuthError(LLMError, PermissionError):
    """The key is missing, or the service refuses it."""


class LLMRateLimitError(LLMError):
    """The service asks for fewer requests, or the quota of the account is used up."""


class LLMTimeoutError(LLMError, TimeoutError):
    """No answer came in time."""


class LLMRefusalError(LLMError):
    """The model declined to answer. Asking again the same way does not help."""


class LLMTruncatedError(LLMError):
    """The answer stops in the middle, because it reached its limit of tokens."""


class LLMInvalidAnswerError(LLMError):
    """The answer is no valid score map, even after the model was shown what is wrong with it.

    Attributes:
        problems: What is wrong, a sentence each.
        is_json: Whether the answer is JSON at all.
    """

    def __init__(self, message: str, *, problems: tuple[str, ...] = (), is_json: bool = True) -> None:
        super().__init__(message)
        self.problems = problems
        self.is_json = is_json


class LLMBudgetError(LLMError):
    """The limit of money or of prompt length is too low for what was asked."""


class LLMReplayMissError(LLMError, LookupError):
    """A replay needs an answer that the cache does not hold, or holds damaged."""


class ConfigError(ProxyPruneError):
    """The config of a network's class cannot express a pruned network; the message names the numbers that stand in the way."""


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


class TrainingError(ProxyPruneError):
    """A training run cannot start, or cannot go on."""


class DivergedError(TrainingError):
    """The loss is not finite; the message names the last good checkpoint."""


class ComputeError(TrainingError):
    """The next step would cost more training compute than the ledger allows."""


class AssistantError(ProxyPruneError):
    """A tool call of an assistant cannot be answered."""


class CallLimitError(AssistantError):
    """A tool call would exceed a limit of time, size or number."""


class ReplayMismatchError(AssistantError, LookupError):
    """A replay is called with another tool or other arguments than the recording."""


class MissingExtraError(ProxyPruneError, ImportError):
    """A package is not installed that one of proxyprune's extras brings."""


class StorageError(ProxyPruneError, OSError):
    """A folder or file cannot be written or read."""


class JournalError(StorageError):
    """A journal of measurements is damaged, or belongs to another model, target or way of measuring."""
