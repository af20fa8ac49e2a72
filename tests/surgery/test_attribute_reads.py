"""Reads of a shared object are recorded under every name, and its class is restored."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
from transformers import GPT2Config

from proxyprune.surgery.attribute_reads import reads_of


class Settings:
    """Plain attributes, and a property that reads one of them."""

    def __init__(self) -> None:
        self.width, self.heads, self.depth = 8, 2, 3

    @property
    def head_width(self) -> int:
        """Read two attributes."""
        return self.width // self.heads


class Elsewhere(Settings):
    """Look up another name than the requested one."""

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__("width" if name == "size" else name)


def test_only_what_is_read_counts() -> None:
    """A property counts with what it reads; the class is restored."""
    settings = Settings()
    with reads_of(settings) as reads:
        assert settings.head_width == 4
    assert [name for name in ("width", "heads", "depth") if reads.may_read(name)] == ["width", "heads"]
    assert type(settings) is Settings


@pytest.mark.parametrize(("make", "requested", "stored"), [(Elsewhere, "size", "width"), (GPT2Config, "hidden_size", "n_embd")])
def test_the_name_that_is_looked_up_counts(make: type[Any], requested: str, stored: str) -> None:
    """A read through a mapped name counts for the name under which the value is stored."""
    settings = make()
    with reads_of(settings) as reads:
        getattr(settings, requested)
    assert reads.may_read(stored)
    assert not reads.may_read("n_layer")


def test_a_look_at_all_attributes_counts_for_each() -> None:
    """A look at the whole dictionary and a copy both read every attribute; the copy has all values."""
    for look in (vars, copy.copy, copy.deepcopy, pickled):
        settings = Settings()
        with reads_of(settings) as reads:
            look(settings)
        assert reads.may_read("depth"), look


def pickled(settings: Settings) -> tuple[Any, ...] | str:
    """Return what a pickle would hold."""
    return settings.__reduce_ex__(4)


def test_an_object_whose_reads_cannot_be_noted_may_read_everything() -> None:
    """A namespace keeps its class, so every attribute may be read."""
    settings = types.SimpleNamespace(width=8)
    with reads_of(settings) as reads:
        pass
    assert reads.may_read("width")
