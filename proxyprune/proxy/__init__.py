"""The proxy: a language model that stands in for measuring, asked so that its answers can be trusted, or are refused."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxyprune.proxy.cost import Estimate
    from proxyprune.proxy.events import Asked, Finished, Planned
    from proxyprune.proxy.exchange import Provider, Reply, Request, Turn, Usage
    from proxyprune.proxy.scorer import AnthropicScorer, LLMScorer, LocalScorer, OpenAIScorer, Preview
    from proxyprune.proxy.settings import LLMSettings

_HOMES = {
    "AnthropicScorer": "scorer",
    "Asked": "events",
    "Estimate": "cost",
    "Finished": "events",
    "LLMScorer": "scorer",
    "LLMSettings": "settings",
    "LocalScorer": "scorer",
    "OpenAIScorer": "scorer",
    "Planned": "events",
    "Preview": "scorer",
    "Provider": "exchange",
    "Reply": "exchange",
    "Request": "exchange",
    "Turn": "exchange",
    "Usage": "exchange",
}
"""Public name -> module; imported on first use."""

__all__ = [
    "AnthropicScorer",
    "Asked",
    "Estimate",
    "Finished",
    "LLMScorer",
    "LLMSettings",
    "LocalScorer",
    "OpenAIScorer",
    "Planned",
    "Preview",
    "Provider",
    "Reply",
    "Request",
    "Turn",
    "Usage",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"proxyprune.proxy.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'proxyprune.proxy' has no attribute {name!r}")
