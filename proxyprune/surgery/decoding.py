"""Detect how a model decodes with a cache, and check that a cached step equals a pass over the whole sequence.

The detection is a test of the unpruned model, not a table of names: an argument of the forward is its cache if a pass over all but the last
tokens, followed by single steps with the cache that this pass filled, gives what one pass over all tokens gives.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.errors import InputError
from proxyprune.support.nested import tensors_of
from proxyprune.tracing.model_call import Call, TrainingCall, call_arguments, evaluation, on_device_of
from proxyprune.tracing.module_state import unchanged

_CACHE_NAME = re.compile(r"cache|past|state|memor|kv|mems", re.IGNORECASE)
_OTHER_NAME = re.compile(r"mask|hidden_states|^output_|^return_", re.IGNORECASE)
_SWITCH_NAME = re.compile(r"^(use|return|with|keep)_?(kv)?_?(cache|past|states?|mems)$", re.IGNORECASE)
_LENGTH = 8
_SHORTEST = 4
_STEPS = 2
_MOST = 1e-2
"""Largest relative difference of cached steps that an unpruned model may have; scans over chunks round differently from steps."""

_CLEAR = 3.0
"""The content of the cache must be that many times larger than the difference that is allowed."""

_NOISE_FACTOR = 30.0
"""A pruned model may differ that many times more than the unpruned one, whose difference is rounding only."""


@dataclass(frozen=True)
class CachedPass:
    """One pass that filled a cache."""

    result: Tensor
    cache: Any


@dataclass(frozen=True)
class Decoding:
    """A way of decoding that gives the whole pass's result on the unpruned model.

    Attributes:
        arguments: Arguments of the forward by name, tokens and cache left out.
        tokens: Argument that holds the sequence, [batch, length, ...].
        cache: Argument that takes the cache.
        output: Name or position of the cache in the output; None if the forward fills the cache that it is given.
        sequence: Values of the tokens argument, a few positions.
        aligned: Arguments that run along the sequence as the tokens do.
        allowed: Relative difference that is rounding.
    """

    arguments: Mapping[str, Any] = field(repr=False)
    tokens: str
    cache: str
    output: str | int | None
    sequence: Tensor = field(repr=False)
    aligned: frozenset[str] = frozenset()
    allowed: float = 0.0

    def difference(self, model: nn.Module) -> str | None:
        """Return how cached steps of a model differ from whole passes, in words, or None.

        Two sequences are tried, and only a difference in both counts: a rounding error may choose another expert in one of them.
        """
        found = [self._difference(model, sequence) for sequence in (self.sequence, self.sequence.flip(1))]
        return found[0] if all(found) else None

    def _difference(self, model: nn.Module, sequence: Tensor) -> str | None:
        try:
            with _undisturbed(model):
                share = replace(self, sequence=sequence).relative_difference(model)
        except Exception as error:  # noqa: BLE001  any exception of a forward that the unpruned model completes is a difference
            return f"a step with a cache raises {type(error).__name__}: {_first_line(error)}"
        if share <= self.allowed:
            return None
        return f"a step with a cache differs from a pass over the whole sequence by {share:.1e} of the largest value"

    def relative_difference(self, model: nn.Module) -> float:
        """Return the largest difference of the cached steps from the whole pass, divided by the largest value; NaN counts as infinite."""
        length = self.sequence.shape[1]
        whole = self._pass(model, 0, length, None).result
        last = self._pass(model, 0, length - _STEPS, self._fresh())
        shares = []
        for position in range(length - _STEPS, length):
            last = self._pass(model, position, position + 1, last.cache)
            found, wanted = _at(last.result, -1), _at(whole, position - length) if whole.dim() > 2 else None
            if wanted is None and position == length - 1:
                wanted = whole
            if wanted is not None:
                shares.append(_share(found, wanted))
        return max(share if share == share else float("inf") for share in shares)

    def filled(self, model: nn.Module) -> CachedPass:
        """Run the pass that fills the cache; the model keeps nothing of it."""
        with _undisturbed(model):
            return self._pass(model, 0, self.sequence.shape[1] - _STEPS, self._fresh())

    def weight_of_cache(self, model: nn.Module) -> float:
        """Return the relative difference of the last step without a cache: what the cache carries."""
        length = self.sequence.shape[1]
        whole = _at(self._pass(model, 0, length, None).result, -1)
        alone = _at(self._pass(model, length - 1, length, None).result, -1)
        return _share(alone, whole)

    def _fresh(self) -> Any:
        return copy.deepcopy(self.arguments.get(self.cache)) if self.output is None else None

    def _pass(self, model: nn.Module, start: int, end: int, cache: Any) -> CachedPass:
        arguments = dict(self.arguments)
        arguments.pop(self.cache, None)
        for name in self.aligned:
            first = 0 if "mask" in name else start  # a mask covers what is in the cache, too
            arguments[name] = arguments[name][:, first:end]
        arguments[self.tokens] = self.sequence[:, start:end]
        if cache is not None:
            arguments[self.cache] = cache
        output = model(**arguments)
        result = next(tensor for tensor in tensors_of(output) if tensor.dim() >= 2 and tensor.is_floating_point())
        return CachedPass(result, cache if self.output is None else _entry(output, self.output))


def find_decoding(model: nn.Module, example_inputs: Call) -> Decoding | None:
    """Return the way in which a model decodes with a cache, or None if none of those tried gives the whole pass's result.

    Args:
        model: The unpruned model; a few short passes are run, and it is left as it was.
        example_inputs: What it was traced on.
    """
    if isinstance(example_inputs, TrainingCall):
        return None
    try:
        args, kwargs = call_arguments(on_device_of(model, example_inputs))
        signature = inspect.signature(model.forward)
        given = dict(signature.bind(*args, **kwargs).arguments)
    except (InputError, TypeError, ValueError):
        return None
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            extra = given.pop(parameter.name, None)
            given |= extra if isinstance(extra, dict) else {}
    caches = [name for name, parameter in signature.parameters.items() if _may_be_cache(name, parameter, given)]
    if not caches:
        return None
    switches = {name: True for name in signature.parameters if _SWITCH_NAME.match(name)}
    arguments = given | switches
    for tokens, cache in itertools.product(_sequences(given), caches):
        for candidate in _candidates(model, arguments, tokens, cache):
            if (found := _confirmed(model, candidate)) is not None:
                return found
    return None


def _may_be_cache(name: str, parameter: inspect.Parameter, given: Mapping[str, Any]) -> bool:
    if not _CACHE_NAME.search(name) or _OTHER_NAME.search(name) or _SWITCH_NAME.match(name):
        return False
    if isinstance(given.get(name), Tensor | bool | int):
        return False
    return parameter.default is None or name in given


def _sequences(given: Mapping[str, Any]) -> list[str]:
    """Return the arguments that may hold a sequence: integers first, a decoder's before an encoder's, then features."""
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor) and "mask" not in name}
    integers = [name for name, value in tensors.items() if value.dim() == 2 and not value.is_floating_point()]
    features = [name for name, value in tensors.items() if value.dim() == 3 and value.is_floating_point()]
    return sorted(integers, key=lambda name: "decoder" not in name) + features


def _candidates(model: nn.Module, arguments: Mapping[str, Any], tokens: str, cache: str) -> Iterator[Decoding]:
    """Yield ways of decoding that may work: with all arguments, then with the sequence alone."""
    sequence = arguments[tokens]
    extent = sequence.shape[:2]
    along = {
        name
        for name, value in arguments.items()
        if name != tokens and isinstance(value, Tensor) and value.shape[:2] == extent and extent[1] > 1
    }
    short = sequence.shape[1] < _SHORTEST
    cut = (sequence.repeat(1, _SHORTEST, *[1] * (sequence.dim() - 2)) if short else sequence)[:, :_LENGTH]
    rest = {name: value for name, value in arguments.items() if name not in (tokens, *along)}
    for kept in (along, set()) if along and not short else (set(),):
        base = Decoding(rest | {name: arguments[name] for name in kept}, tokens, cache, cache, cut, frozenset(kept))
        if arguments.get(cache) is not None:
            yield replace(base, output=None)
        try:
            with _undisturbed(model):
                output = model(**{key: value for key, value in base.arguments.items() if key != cache and key not in kept}, **{tokens: cut})
        except Exception:  # noqa: BLE001  a forward that does not run on a part of its inputs is not decoded with
            continue
        for place in _places(output, cache):
            yield replace(base, output=place)


def _places(output: Any, cache: str) -> Iterator[str | int]:
    """Yield the places in an output where its cache may be: under the argument's name, or behind the first entry."""
    if isinstance(output, Mapping) or not isinstance(output, list | tuple):
        names = list(output) if isinstance(output, Mapping) else list(getattr(output, "__dict__", {}))
        yield from sorted((name for name in names if _CACHE_NAME.search(str(name))), key=lambda name: name != cache)
    else:
        yield from range(1, len(output))


def _entry(output: Any, place: str | int) -> Any:
    found = output[place] if isinstance(place, int) or isinstance(output, Mapping) else getattr(output, place)
    if found is None:
        raise LookupError(f"The output holds no cache at {place!r}.")
    return found


def _confirmed(model: nn.Module, candidate: Decoding) -> Decoding | None:
    try:
        with _undisturbed(model):
            share = candidate.relative_difference(model)
            if share > _MOST:
                return None
            weight = candidate.weight_of_cache(model)
    except Exception:  # noqa: BLE001  this is not how the model decodes
        return None
    rounding = _rounding(model)
    if not weight > _CLEAR * max(share, rounding):  # the cache carries nothing, or it cannot be seen
        return None
    return replace(candidate, allowed=min(max(_NOISE_FACTOR * share, rounding), weight / _CLEAR))


def _share(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, divided by the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny))


def _rounding(model: nn.Module) -> float:
    """Return the relative difference that rounding explains, in the precision of the weights."""
    kinds = [tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()] or [torch.float32]
    epsilon = max(torch.finfo(kind).eps for kind in kinds)
    return 2 * epsilon if epsilon > 1e-5 else 200 * epsilon


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode; what the forward stores, the random state and warnings leave no trace."""
    generators = torch.random.get_rng_state()
    try:
        with unchanged(model), evaluation(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.random.set_rng_state(generators)


def _at(result: Tensor, position: int) -> Tensor:
    """Return the entries of a result at a position of the sequence; a result without one stands for the last position."""
    return result[:, position] if result.dim() > 2 else result


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
