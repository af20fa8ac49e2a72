"""OpenAI-compatible servers (llama.cpp, Ollama, vLLM, LM Studio, ...): chat completions, with the best response format that they know."""

from __future__ import annotations

import dataclasses
from typing import Any

from proxyprune.proxy.service.endpoint import Endpoint
from proxyprune.proxy.service.exchange import Reply, Request, Usage
from proxyprune.proxy.service.failures import FailedStatus, Service
from proxyprune.proxy.service.openai_sdk import exchange, make_client
from proxyprune.proxy.service.response_formats import ResponseFormat, ResponseFormats, not_understood


class OpenAIChat:
    """Provider for chat completions.

    The request is the plainest there is: role system, `max_tokens`, no reasoning parameters, because compatible servers reject or ignore
    the newer ones. The response format is found by trying, and remembered in `ResponseFormats`.
    """

    def __init__(self, endpoint: Endpoint, formats: ResponseFormats) -> None:
        self._endpoint = endpoint
        self._client = make_client(endpoint)
        self._formats = formats

    def send(self, request: Request, timeout_seconds: float) -> Reply:
        """Send the request, and again with the next looser format as long as the server does not understand the response format."""
        service = Service(self._endpoint, request.model)
        with self._formats.negotiate(self._endpoint.url) as negotiation:
            while True:
                found = self._ask(service, request, negotiation.format, timeout_seconds)
                if not isinstance(found, FailedStatus):
                    negotiation.settle()
                    return _reply(service, request, found, free_form=negotiation.format.free_form)
                if not not_understood(found) or not negotiation.fall_back():
                    raise service.refused_status(found)

    def _ask(self, service: Service, request: Request, response_format: ResponseFormat, timeout_seconds: float) -> Any:
        body = _body(request) | response_format.arguments(request.schema)
        client = self._client.with_options(timeout=timeout_seconds)
        return exchange(service, timeout_seconds, lambda: client.chat.completions.create(**body))

    def close(self) -> None:
        """Close connections."""
        self._client.close()


def _body(request: Request) -> dict[str, Any]:
    messages = [{"role": "system", "content": request.system}]
    messages += [{"role": turn.role, "content": turn.text} for turn in request.turns]
    body: dict[str, Any] = {"model": request.model, "messages": messages, "max_tokens": request.max_output_tokens}
    if request.temperature is not None:
        body["temperature"] = request.temperature
    return body


def _reply(service: Service, request: Request, found: Any, *, free_form: bool) -> Reply:
    choices = getattr(found, "choices", None)
    if isinstance(found, str) or not isinstance(choices, list) or not choices:
        raise service.foreign_reply(found)
    message = getattr(choices[0], "message", None)
    reason = getattr(choices[0], "finish_reason", None)
    if refusal := getattr(message, "refusal", None):
        raise service.refusal(None, str(refusal))
    if reason == "content_filter":
        raise service.refusal("content_filter", None)
    if reason == "length":
        raise service.truncated(request.max_output_tokens)
    text = getattr(message, "content", None)
    if not isinstance(text, str):
        raise service.foreign_reply(found)
    reply = Reply(text, _usage(found), str(getattr(found, "model", None) or ""), str(getattr(found, "_request_id", None) or ""))
    return dataclasses.replace(reply, free_form=free_form)


def _usage(found: Any) -> Usage:
    usage = getattr(found, "usage", None)
    return Usage.from_dict(
        {
            "input_tokens": getattr(usage, "prompt_tokens", None),
            "output_tokens": getattr(usage, "completion_tokens", None),
            "cached_tokens": getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None),
            "reasoning_tokens": getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", None),
        }
    )
