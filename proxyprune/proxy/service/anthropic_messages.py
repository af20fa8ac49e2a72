"""The Anthropic Messages API, with the answer bound to a JSON schema."""

from __future__ import annotations

import json
from typing import Any

from proxyprune.errors import LLMError
from proxyprune.proxy.service.connection import http_client
from proxyprune.proxy.service.endpoint import Endpoint
from proxyprune.proxy.service.exchange import Reply, Request, Usage
from proxyprune.proxy.service.failures import FailedStatus, Service


class AnthropicMessages:
    """Provider for the Messages API.

    The SDK's own retries are off: they sleep for as long as the service says, be it an hour.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        from anthropic import Anthropic

        self._endpoint = endpoint
        self._client = Anthropic(api_key=endpoint.key(), base_url=endpoint.url, max_retries=0, http_client=http_client(endpoint))

    def send(self, request: Request, timeout_seconds: float) -> Reply:
        """Ask once."""
        service = Service(self._endpoint, request.model)
        body = _body(request)
        failure: LLMError
        try:
            found: Any = self._client.with_options(timeout=timeout_seconds).messages.create(**body)
            return _reply(service, request, found)
        except Exception as error:  # noqa: BLE001  the SDK lets errors of the JSON and HTTP libraries through
            failure = _meaning(service, timeout_seconds, error)
        raise failure

    def close(self) -> None:
        """Close connections."""
        self._client.close()


def _body(request: Request) -> dict[str, Any]:
    return {
        "model": request.model,
        "system": request.system,
        "messages": [{"role": turn.role, "content": turn.text} for turn in request.turns],
        "max_tokens": request.max_output_tokens,
        "output_config": {"format": {"type": "json_schema", "schema": dict(request.schema)}},
    }


def _meaning(service: Service, timeout_seconds: float, error: Exception) -> LLMError:
    import anthropic

    if isinstance(error, LLMError):
        return error
    if isinstance(error, anthropic.APITimeoutError):
        return service.timed_out(timeout_seconds)
    if isinstance(error, anthropic.APIConnectionError):
        return service.unreachable(error.__cause__ or error)
    if isinstance(error, anthropic.APIStatusError):
        return service.refused_status(FailedStatus.of(error.status_code, error.response.headers, error.body, error.message))
    if isinstance(error, anthropic.APIResponseValidationError | json.JSONDecodeError | UnicodeDecodeError):
        return service.half_reply(error)
    return service.unexpected(error)


def _reply(service: Service, request: Request, found: Any) -> Reply:
    content = getattr(found, "content", None)
    reason = getattr(found, "stop_reason", None)
    if isinstance(found, str):
        raise service.foreign_reply(found)
    if reason == "refusal":
        details = getattr(found, "stop_details", None)
        raise service.refusal(getattr(details, "category", None), getattr(details, "explanation", None))
    if reason in ("max_tokens", "model_context_window_exceeded"):
        raise service.truncated(request.max_output_tokens)
    if not isinstance(content, list):
        raise service.foreign_reply(found)
    texts = [block.text for block in content if getattr(block, "type", "") == "text" and isinstance(getattr(block, "text", None), str)]
    if not texts:
        raise service.foreign_reply(found)
    return Reply("".join(texts), _usage(found), str(getattr(found, "model", None) or ""), str(getattr(found, "_request_id", None) or ""))


def _usage(found: Any) -> Usage:
    """Tokens; this service counts those from and into its cache apart from the others."""
    usage = getattr(found, "usage", None)
    counted = Usage.from_dict(
        {
            "input_tokens": getattr(usage, "input_tokens", None),
            "output_tokens": getattr(usage, "output_tokens", None),
            "cached_tokens": getattr(usage, "cache_read_input_tokens", None),
            "reasoning_tokens": getattr(getattr(usage, "output_tokens_details", None), "thinking_tokens", None),
        }
    )
    written = Usage.from_dict({"input_tokens": getattr(usage, "cache_creation_input_tokens", None)})
    return counted + written + Usage(input_tokens=counted.cached_tokens)
