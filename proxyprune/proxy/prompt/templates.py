"""The fixed wording of the prompts: versioned text files beside this module."""

from __future__ import annotations

from importlib import resources
from string import Template

VERSION = "v1"
"""Changes whenever a template does, so that recorded answers are never mistaken for answers to another wording."""


def template(name: str) -> str:
    """Return the text of one template, as it is written."""
    return (resources.files("proxyprune.proxy") / "templates" / VERSION / f"{name}.txt").read_text(encoding="utf-8")


def filled(name: str, **values: object) -> str:
    """Return a template with its $names replaced; what is inserted is not read again, so a value cannot bring placeholders of its own."""
    return Template(template(name)).substitute({key: str(value) for key, value in values.items()})
