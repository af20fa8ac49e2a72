"""A stand-in for the Hugging Face hub on 127.0.0.1: repositories are folders, one for each revision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


class LocalHub(ThreadingHTTPServer):
    """Serves the calls of `huggingface_hub` that a download makes.

    Args:
        repositories: Folder by id and revision.
    """

    def __init__(self, repositories: Mapping[tuple[str, str], Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories = repositories
        self.downloaded: list[str] = []

    @property
    def url(self) -> str:
        """Address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, repository: str, revision: str) -> str:
        """Return the commit of a revision."""
        return hashlib.sha1(f"{repository}@{revision}".encode(), usedforsecurity=False).hexdigest()

    def folder(self, repository: str, revision: str) -> tuple[Path, str] | None:
        """Return the folder and the commit of a revision or commit; None if there is none."""
        for (name, known), folder in self.repositories.items():
            if name == repository and revision in (known, self.sha(name, known)):
                return folder, self.sha(name, known)
        return None


@contextmanager
def local_hub(repositories: Mapping[tuple[str, str], Path]) -> Iterator[LocalHub]:
    """Yield a hub that answers while the block runs."""
    hub = LocalHub(repositories)
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    server: LocalHub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _answer(self, *, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
            return
        found = self.server.folder("/".join(parts[:2]), parts[3]) if parts[2:3] == ["resolve"] else None
        file = None if found is None else found[0].joinpath(*parts[4:])
        if found is None or file is None or not file.is_file():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound" if found is None else "EntryNotFound"}, body=body)
            return
        content = file.read_bytes()
        if body:
            self.server.downloaded.append("/".join(parts[4:]))
        self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": found[1]}, body=body)

    def _describe(self, repository: str, rest: list[str]) -> None:
        found = self.server.folder(repository, rest[1] if rest[1:] else "main")
        if found is None:
            known = any(name == repository for name, _ in self.server.repositories)
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
            return
        folder, sha = found
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if rest[:1] == ["tree"]:
            sizes = (path.stat().st_size for path in files)
            listed = [{"type": "file", "oid": sha, "size": size, "path": name} for size, name in zip(sizes, names, strict=True)]
            self._send(200, json.dumps(listed).encode())
            return
        described = {"id": repository, "sha": sha, "private": False, "tags": [], "siblings": [{"rfilename": name} for name in names]}
        self._send(200, json.dumps(described).encode())

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
