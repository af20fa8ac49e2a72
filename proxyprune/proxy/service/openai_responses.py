"""The OpenAI Responses API, with the answer bound to a JSON schema."""

from __future__ import annotations

from typing import Any

from proxyprune.proxy.service.endpoint import Endpoint
from proxyprune.proxy.service.exchange import Reply, Request, Usage
from proxyprune.proxy.service.failures import FailedStatus, Service
from proxyprune.proxy.service.openai_sdk import exchange, make_client


class OpenAIResponses:
    """Provider for the Responses API. The service is asked not to store the exchange."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._client = make_client(endpoint)

    def send(self, request: Request, timeout_seconds: float) -> Reply:
        """Ask once."""
        service = Service(self._endpoint, request.model)
        body = _body(request)
        found = exchange(service, timeout_seconds, lambda: self._client.with_options(timeout=timeout_seconds).responses.create(**body))
        if isinstance(found, FailedStatus):
            raise service.refused_status(found)
        return _reply(service, request, found)

    def close(self) -> None:
        """Close connections."""
        self._client.close()


def _body(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        "instructions": request.system,
        "input": [{"role": turn.role, "content": turn.text} for turn in request.turns],
        "max_output_tokens": request.max_output_tokens,
        "store": False,
        "text": {"format": {"type": "json_schema", "name": "importance", "strict": True, "schema": dict(request.schema)}},
    }
    if request.temperature is not None:
        body["temperature"] = request.temperature
    return body


def _reply(service: Service, request: Request, found: Any) -> Reply:
    output = getattr(found, "output", None)
    if isinstance(found, str) or not isinstance(output, list):
        raise service.foreign_reply(found)
    contents = [part for item in output if getattr(item, "type", "") == "message" for part in (getattr(item, "content", None) or [])]
    refusals = [part for part in contents if getattr(part, "type", "") == "refusal"]
    if refusals:
        raise service.refusal(None, getattr(refusals[0], "refusal", None))
    if getattr(found, "status", None) == "incomplete":
        reason = getattr(getattr(found, "incomplete_details", None), "reason", None)
        raise service.refusal("content_filter", None) if reason == "content_filter" else service.truncated(request.max_output_tokens)
    if getattr(found, "status", None) == "failed":
        raise service.unreachable(getattr(getattr(found, "error", None), "message", None) or "the service reports that it failed")
    texts = [part.text for part in contents if getattr(part, "type", "") == "output_text" and isinstance(getattr(part, "text", None), str)]
    if not texts:
        raise service.foreign_reply(found)
    return Reply("".join(texts), _usage(found), str(getattr(found, "model", None) or ""), str(getattr(found, "_request_id", None) or ""))


def _usage(found: Any) -> Usage:
    usage = getattr(found, "usage", None)
    return Usage.from_dict(
        {
            "input_tokens": getattr(usage, "input_tokens", None),
            "output_tokens": getattr(usage, "output_tokens", None),
            "cached_tokens": getattr(getattr(usage, "input_tokens_details", None), "cached_tokens", None),
            "reasoning_tokens": getattr(getattr(usage, "output_tokens_details", None), "reasoning_tokens", None),
        }
    )
