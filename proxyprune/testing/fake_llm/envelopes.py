"""The form of the replies of the three protocols, for the fake server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

CHARACTERS_PER_TOKEN = 3


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """Return about as many tokens as a tokenizer finds in the text of a request."""
    turns = body.get("input") or body.get("messages") or []
    texts = [str(body.get("system") or ""), str(body.get("instructions") or ""), *(str(turn["content"]) for turn in turns)]
    return sum(map(len, texts)) // CHARACTERS_PER_TOKEN


class Envelope(Protocol):
    """Puts text into a protocol's reply."""

    @property
    def protocol(self) -> str:
        """Short name."""
        ...

    def complete(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Return a complete answer."""
        ...

    def truncated(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Return an answer that reached its limit."""
        ...

    def refused(self, body: Mapping[str, Any], explanation: str) -> dict[str, Any]:
        """Return a model that declines."""
        ...


class Responses:
    """OpenAI Responses."""

    protocol = "responses"

    def complete(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Return a message with one text."""
        return self._reply(body, [{"type": "output_text", "text": text, "annotations": []}], "completed")

    def truncated(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Status incomplete."""
        whole = self._reply(body, [{"type": "output_text", "text": text, "annotations": []}], "incomplete")
        return whole | {"incomplete_details": {"reason": "max_output_tokens"}}

    def refused(self, body: Mapping[str, Any], explanation: str) -> dict[str, Any]:
        """Return a content part of its own."""
        return self._reply(body, [{"type": "refusal", "refusal": explanation}], "completed")

    def _reply(self, body: Mapping[str, Any], content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {
            "id": "resp_fake",
            "object": "response",
            "created_at": 0,
            "model": body.get("model"),
            "status": status,
            "output": [{"type": "message", "id": "msg_fake", "role": "assistant", "status": status, "content": content}],
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "usage": {
                "input_tokens": prompt_tokens(body),
                "output_tokens": 20,
                "total_tokens": prompt_tokens(body) + 20,
                "input_tokens_details": {"cached_tokens": 40},
                "output_tokens_details": {"reasoning_tokens": 5},
            },
        }


class Chat:
    """OpenAI chat completions."""

    protocol = "chat"

    def complete(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        """finish_reason stop."""
        return self._reply(body, {"content": text}, "stop")

    def truncated(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        """finish_reason length."""
        return self._reply(body, {"content": text}, "length")

    def refused(self, body: Mapping[str, Any], explanation: str) -> dict[str, Any]:
        """finish_reason stop, no content."""
        return self._reply(body, {"content": None, "refusal": explanation}, "stop")

    def _reply(self, body: Mapping[str, Any], message: dict[str, Any], reason: str) -> dict[str, Any]:
        return {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model"),
            "choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", **message}}],
            "usage": {"prompt_tokens": prompt_tokens(body), "completion_tokens": 20, "total_tokens": prompt_tokens(body) + 20},
        }


class Messages:
    """Anthropic messages."""

    protocol = "messages"

    def complete(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        """stop_reason end_turn."""
        return self._reply(body, [{"type": "text", "text": text}], "end_turn")

    def truncated(self, body: Mapping[str, Any], text: str) -> dict[str, Any]:
        """stop_reason max_tokens."""
        return self._reply(body, [{"type": "text", "text": text}], "max_tokens")

    def refused(self, body: Mapping[str, Any], explanation: str) -> dict[str, Any]:
        """stop_reason refusal, with details."""
        whole = self._reply(body, [], "refusal")
        return whole | {"stop_details": {"type": "refusal", "category": "frontier_llm", "explanation": explanation}}

    def _reply(self, body: Mapping[str, Any], content: list[dict[str, Any]], reason: str) -> dict[str, Any]:
        return {
            "id": "msg_fake",
            "type": "message",
            "role": "assistant",
            "model": body.get("model"),
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": {
                "input_tokens": prompt_tokens(body) - 50,
                "output_tokens": 20,
                "cache_read_input_tokens": 40,
                "cache_creation_input_tokens": 10,
            },
        }


PROTOCOLS: Mapping[str, Envelope] = {"/responses": Responses(), "/chat/completions": Chat(), "/messages": Messages()}
"""End of the path -> protocol."""
