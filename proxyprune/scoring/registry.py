"""Scorers by name: the ones proxyprune brings, and the ones other distributions register.

Both come through the entry-point group `proxyprune.scorers`. Nothing is imported until it is asked for by name, or until all are listed;
nothing is remembered between calls. A distribution that is broken in any way is listed with its error and changes nothing for the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeGuard

from proxyprune.errors import InputError, ProxyPruneError, ScorerLoadError, UnknownNameError
from proxyprune.scoring.contract import Scorer, check_contract

GROUP = "proxyprune.scorers"
OWN_DISTRIBUTION = "proxyprune"

BUILT_IN: Mapping[str, str] = {
    "magnitude": "proxyprune.scoring.builtin.magnitude:MagnitudeScorer",
    "magnitude_l1": "proxyprune.scoring.builtin.magnitude:magnitude_l1",
    "magnitude_l2": "proxyprune.scoring.builtin.magnitude:magnitude_l2",
    "taylor": "proxyprune.scoring.builtin.taylor:TaylorScorer",
    "ablation": "proxyprune.scoring.builtin.ablation:AblationScorer",
    "obs": "proxyprune.scoring.builtin.obs:ObsScorer",
    "formula": "proxyprune.scoring.builtin.formula:FormulaScorer",
    "random": "proxyprune.scoring.builtin.random:RandomScorer",
    "tp_magnitude": "proxyprune.scoring.builtin.torch_pruning:tp_magnitude",
    "tp_lamp": "proxyprune.scoring.builtin.torch_pruning:tp_lamp",
    "tp_fpgm": "proxyprune.scoring.builtin.torch_pruning:tp_fpgm",
    "tp_bn_scale": "proxyprune.scoring.builtin.torch_pruning:tp_bn_scale",
    "tp_random": "proxyprune.scoring.builtin.torch_pruning:tp_random",
    "tp_taylor": "proxyprune.scoring.builtin.torch_pruning:tp_taylor",
    "tp_hessian": "proxyprune.scoring.builtin.torch_pruning:tp_hessian",
    "tp_activation": "proxyprune.scoring.builtin.torch_pruning:tp_activation",
    "openai": "proxyprune.proxy.scorer:OpenAIScorer",
    "anthropic": "proxyprune.proxy.scorer:AnthropicScorer",
    "local": "proxyprune.proxy.scorer:LocalScorer",
}
"""The scorers of pyproject.toml (a test holds the two equal). Only read for names that the metadata of the distribution proxyprune lacks:
a source tree on the path has no metadata at all, and an editable install keeps that of the day it was made."""


@dataclass(frozen=True)
class ScorerInfo:
    """One registered scorer, as `scorers()` lists it.

    Attributes:
        name: What to pass as `scorer=`.
        origin: Distribution and version that registered it.
        target: Import path, "module:attribute".
        needs: What it needs (see `NEEDS`), sorted; None when it cannot be loaded.
        error: Why it cannot be used, or None.
        summary: First line of its docstring.
    """

    name: str
    origin: str
    target: str
    needs: tuple[str, ...] | None
    error: str | None = None
    summary: str = ""


@dataclass(frozen=True)
class _Entry:
    """One line of an entry_points.txt."""

    point: metadata.EntryPoint
    distribution: str
    version: str
    unreadable: str | None = None
    shadowed_by: str | None = None

    @property
    def name(self) -> str:
        return self.point.name

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    @property
    def qualified(self) -> str:
        return f"{self.distribution}:{self.name}"

    @property
    def own(self) -> bool:
        return _normalised(self.distribution) == OWN_DISTRIBUTION

    @property
    def error(self) -> str | None:
        if self.unreadable is not None:
            return f"The entry_points.txt of {self.origin} cannot be read ({self.unreadable}); expected lines 'name = module:attribute'."
        if self.shadowed_by is not None:
            return f"Shadowed: the name '{self.name}' belongs to {self.shadowed_by}. Use the name '{self.qualified}' for this one."
        return None


def scorers() -> tuple[ScorerInfo, ...]:
    """Every registered scorer: built-in ones first, then plug-ins by name; the ones that cannot be used carry an error.

    Loads all of them, because whether a plug-in works is only known after its import.
    """
    return tuple(_info(entry) for entry in _entries())


def find(name: str, options: Mapping[str, Any]) -> Scorer:
    """Load the scorer registered as `name` (or as "distribution:name") and make it with `options`.

    A scorer with an attribute `argument`, the name of one of its options, also takes that option after "=": "formula=wg * norm(w)".

    Raises:
        UnknownNameError: If nothing is registered under that name; the message names the closest match.
        ScorerLoadError: If it is registered and cannot be loaded.
        InputError: If it does not take these options.
    """
    name, sign, text = name.partition("=")
    entries = _entries()
    for entry in entries:
        if entry.qualified == name or (entry.name == name and entry.shadowed_by is None):
            loaded = _load(entry)
            return _make(entry, loaded, _with_argument(name, loaded, options, text) if sign else options)
    names = list(dict.fromkeys(entry.name for entry in entries))
    closest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean '{closest[0]}'? " if closest else ""
    raise UnknownNameError(
        f"No scorer is named '{name}'. {hint}Registered: {', '.join(names)}. Plug-ins register under the entry-point group '{GROUP}'."
    )


def _entries() -> tuple[_Entry, ...]:
    found = [entry for distribution in _distributions() for entry in _entries_of(distribution)]
    own = {entry.name: entry for entry in found if entry.own}
    for name, target in BUILT_IN.items():
        own.setdefault(name, _Entry(metadata.EntryPoint(name, target, GROUP), OWN_DISTRIBUTION, "(source tree)"))
    order = list(BUILT_IN)
    built_in = sorted(own.values(), key=lambda entry: order.index(entry.name) if entry.name in order else len(order))
    plugins = sorted((entry for entry in found if not entry.own), key=lambda entry: (entry.name, _normalised(entry.distribution)))
    holders: dict[str, _Entry] = {}
    return tuple(_shadow(entry, holders.setdefault(entry.name, entry)) for entry in (*built_in, *plugins))


def _shadow(entry: _Entry, holder: _Entry) -> _Entry:
    return entry if entry is holder else dataclasses.replace(entry, shadowed_by=holder.origin)


def _distributions() -> Iterator[metadata.Distribution]:
    """Distributions that mention the group; of several with one name, the first on the path, as for imports."""
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt")
            if text is None or GROUP not in text:
                continue
            name = _normalised(_name(distribution))
        except Exception:  # noqa: BLE001  a distribution whose files cannot be read is none of ours
            continue
        if name not in seen:
            seen.add(name)
            yield distribution


def _entries_of(distribution: metadata.Distribution) -> Iterator[_Entry]:
    name = _name(distribution)
    version = str(distribution.metadata["Version"] or "")
    try:
        points = [point for point in distribution.entry_points if point.group == GROUP]
    except Exception as error:  # noqa: BLE001  whatever a malformed entry_points.txt raises
        yield _Entry(metadata.EntryPoint(name, "", GROUP), name, version, unreadable=str(error))
        return
    for point in points:
        yield _Entry(point, name, version)


def _name(distribution: metadata.Distribution) -> str:
    return str(distribution.metadata["Name"] or "unnamed")


def _normalised(name: str) -> str:
    """Distribution names compare like this (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _load(entry: _Entry) -> object:
    """Import what an entry names. Whatever it prints goes to standard error, where it cannot spoil machine-readable output."""
    if entry.unreadable is not None:
        raise ScorerLoadError(entry.error)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return entry.point.load()
    except (Exception, SystemExit) as error:
        raise ScorerLoadError(
            f"Scorer '{entry.name}' of {entry.origin} cannot be imported from '{entry.point.value}': {type(error).__name__}: {error}. "
            f"Repair or uninstall {entry.distribution}."
        ) from error


def _with_argument(name: str, loaded: object, options: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the options with the text that stands after "="."""
    argument = getattr(loaded, "argument", None)
    if not isinstance(argument, str):
        raise InputError(f"Scorer '{name}' takes nothing after '=', found {text[:80]!r}. Write the name alone.")
    if argument in options:
        raise InputError(f"The option '{argument}' of scorer '{name}' is given twice: after '=', and among the options. Give it once.")
    return {**options, argument: text}


def _make(entry: _Entry, loaded: object, options: Mapping[str, Any]) -> Scorer:
    """Turn what was imported (a class, a function that makes a scorer, or a scorer) into a scorer."""
    if not _is_factory(loaded):
        if options:
            raise InputError(f"Scorer '{entry.name}' takes no options, found {sorted(options)}.")
        return _checked(entry, loaded)
    try:
        inspect.signature(loaded).bind(**options)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(loaded).parameters) or "none"
        raise InputError(
            f"Scorer '{entry.name}' cannot be made with the options {dict(options)!r}: {error}. It takes: {accepted}."
        ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):
            made = loaded(**options)
    except ProxyPruneError:
        raise
    except Exception as error:
        raise ScorerLoadError(
            f"Scorer '{entry.name}' of {entry.origin} cannot be made: {type(error).__name__}: {error}. Report it to {entry.distribution}."
        ) from error
    return _checked(entry, made)


def _checked(entry: _Entry, candidate: object) -> Scorer:
    scorer = check_contract(candidate, f"Scorer '{entry.name}' ({entry.point.value} of {entry.origin})")
    if scorer.name != entry.name:
        raise ScorerLoadError(
            f"'{entry.point.value}' of {entry.origin} is registered as '{entry.name}' but its name is '{scorer.name}'. A plan "
            "records the name, so both must be the same."
        )
    return scorer


def _info(entry: _Entry) -> ScorerInfo:
    needs: tuple[str, ...] | None = None
    error, summary = entry.error, ""
    if error is None:
        try:
            loaded = _load(entry)
            # A class that cannot be made without options (a language model has no default) is judged by its class attributes.
            subject = _checked(entry, loaded) if _requires_options(loaded) else _make(entry, loaded, {})
            needs = tuple(sorted(subject.needs))
            summary = (inspect.getdoc(loaded) or "").partition("\n")[0]
        except ProxyPruneError as problem:
            error = str(problem)
    return ScorerInfo(entry.name, entry.origin, entry.point.value, needs, error, summary)


def _is_factory(loaded: object) -> TypeGuard[Callable[..., object]]:
    return isinstance(loaded, type) or (callable(loaded) and not hasattr(loaded, "score"))


def _requires_options(loaded: object) -> bool:
    if not isinstance(loaded, type):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(loaded).parameters.values()
    return any(parameter.default is parameter.empty and parameter.kind not in variadic for parameter in parameters)
