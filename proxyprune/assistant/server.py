"""The tools over the Model Context Protocol. This file alone uses the SDK."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proxyprune import __version__
from proxyprune.assistant.answer import Answer, Caller, bounded, cleaned
from proxyprune.assistant.bounds import Bounds
from proxyprune.assistant.session import error_content
from proxyprune.assistant.tool_table import INSTRUCTIONS, TOOLS
from proxyprune.errors import ProxyPruneError
from proxyprune.support.extras import explained

if TYPE_CHECKING:
    from mcp.server import Server

NAME = "proxyprune"


def make_server(open_caller: Callable[[], Caller]) -> Server[Any]:
    """Return a server for one client.

    Args:
        open_caller: Opens the session or the replay, at the first call, so the tools are listed before the network is read. If it fails,
            the call is answered with the error, and the next call tries again.

    Raises:
        MissingExtraError: If the SDK is not installed.
    """
    with explained("The tool server"):
        from anyio import CapacityLimiter, to_thread
        from mcp import types
        from mcp.server import Server

    caller = _OpenedOnce(open_caller)
    one_at_a_time = CapacityLimiter(1)

    async def list_tools(_context: Any, _params: Any) -> types.ListToolsResult:
        listed = [types.Tool(name=tool.name, description=tool.description, input_schema=tool.schema) for tool in TOOLS.values()]
        return types.ListToolsResult(tools=listed)

    async def call_tool(_context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        answer = await to_thread.run_sync(caller.call, params.name, params.arguments, limiter=one_at_a_time)
        return types.CallToolResult(content=[types.TextContent(type="text", text=answer.text)], is_error=answer.is_error)

    return Server(NAME, version=__version__, instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool)


def serve(open_caller: Callable[[], Caller]) -> None:
    """Serve one client over stdin and stdout until it closes them. Whatever else is printed meanwhile goes to stderr.

    Args:
        open_caller: As for `make_server`.

    Raises:
        MissingExtraError: If the SDK is not installed.
    """
    server = make_server(open_caller)
    with explained("The tool server"):
        import anyio
        from mcp.server.stdio import stdio_server

    async def run() -> None:
        async with stdio_server() as (read, write):
            with contextlib.redirect_stdout(sys.stderr):
                await server.run(read, write, server.create_initialization_options())

    anyio.run(run)


class _OpenedOnce:
    """Opens a caller at the first call and answers whatever happens, so that one failure does not end the server."""

    def __init__(self, open_caller: Callable[[], Caller]) -> None:
        self._open = open_caller
        self._caller: Caller | None = None
        self._lock = threading.Lock()

    def call(self, tool: str, arguments: Any) -> Answer:
        with self._lock:
            try:
                if self._caller is None:
                    self._caller = self._open()
                return self._caller.call(tool, arguments)
            except ProxyPruneError as error:
                return _failed(error)
            except Exception as error:  # noqa: BLE001  a defect; the client learns its kind, stderr has the whole
                traceback.print_exc(file=sys.stderr)
                return _failed(error)


def _failed(error: Exception) -> Answer:
    return Answer(bounded(cleaned(error_content(error)), Bounds.answer_chars), is_error=True)
