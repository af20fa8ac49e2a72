"""Completions of options for the shell. They run at every press of the tab key, so nothing is loaded: names come from metadata alone."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

PROPOSERS = ("evolution", "coordinate", "formula", "random")
PRESETS = ("digits", "digits-small", "digits-class", "digits-dit", "fashion16", "fashion28", "fashion32", "ddpm-cifar10")
SAMPLERS = ("ddim", "ddpm", "dpm++", "euler", "heun", "unipc", "flow")


def scorer_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return registered scorers, working or not."""
    return _matching(_registered(), incomplete)


def scorer_list(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the last name of a list with commas; names that are in it already are not offered again."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _matching(_registered(), last) if name not in before.split(",")]


def proposer_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Proposers of their own, then scorers."""
    return _matching(tuple(dict.fromkeys((*PROPOSERS, *_registered()))), incomplete)


def preset_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return configurations that have a name."""
    return _matching(PRESETS, incomplete)


def sampler_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Samplers with short names."""
    return _matching(SAMPLERS, incomplete)


def setting_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return settings of a diffusion run, ready for a value."""
    from proxyprune.diffusion.config.run_config import settings

    return [f"{name}=" for name in _matching(tuple(settings()), incomplete)]


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Leave it to the shell, which knows the files."""
    return [CompletionItem(incomplete, type="file")]


def _registered() -> tuple[str, ...]:
    from importlib import metadata

    from proxyprune.scoring.registry import BUILT_IN, GROUP

    plugins = sorted({entry.name for entry in metadata.entry_points(group=GROUP)} - set(BUILT_IN))
    return (*BUILT_IN, *plugins)


def _matching(names: tuple[str, ...], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
