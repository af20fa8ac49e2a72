"""Calls of an assistant's tools, for the answer or for the error."""

from __future__ import annotations

from typing import Any

from proxyprune.assistant.session import Session


def answered(session: Session, tool: str, **arguments: Any) -> Any:
    """Return the content of an answer that is no error."""
    answer = session.call(tool, arguments)
    assert not answer.is_error, answer.text
    return answer.content


def failed(session: Session, tool: str, **arguments: Any) -> str:
    """Return the message of an answer that is an error."""
    answer = session.call(tool, arguments)
    assert answer.is_error, answer.text
    return str(answer.content["message"])
