"""A stand-in for the Hugging Face Hub on loopback: datasets and model repositories that lie in folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = hashlib.sha1(b"commit").hexdigest()
GATED = "gated/data"


@dataclass
class Hub:
    """Repositories below `root`, `datasets/OWNER/NAME` or `OWNER/NAME`; `requests` has what was asked for."""

    root: Path
    endpoint: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    failures: int = 0
    """So many of the next requests for a file answer 503."""


@contextmanager
def running_hub(root: Path) -> Iterator[Hub]:
    """The hub of the folder `root` until the block ends."""
    hub = Hub(root)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def point_at(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT and HF_HUB_CACHE do, which the library reads when it is imported."""
    import huggingface_hub.hf_api
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(huggingface_hub.hf_api, "api", huggingface_hub.HfApi(endpoint=endpoint))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        is_api = path.startswith("api/")
        parts = path.removeprefix("api/").split("/")
        kind = "datasets/" if parts[0] == "datasets" else ""
        repository = "/".join(parts[1:3] if kind else parts[1:3] if parts[0] == "models" else parts[:2])
        rest = parts[3:] if kind or parts[0] == "models" else parts[2:]
        folder = self.hub.root / kind / repository
        if repository == GATED:
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif not folder.is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif rest[1:2] and rest[1] not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif is_api:
            self._send(200, json.dumps(_info(folder, repository)).encode(), {"Content-Type": "application/json"})
        elif self.hub.failures and self.command == "GET":
            self.hub.failures -= 1
            self._send(503, b"")
        else:
            self._file(folder.joinpath(*rest[2:]), head=head)

    def _file(self, file: Path, *, head: bool) -> None:
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content, wanted = file.read_bytes(), self.headers.get("Range")
        told = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            self._send(206, content[int(first) : int(last) + 1], told)
        else:
            self._send(200, content, told, head=head)

    def _send(self, status: int, content: bytes, told: dict[str, str] | None = None, *, head: bool = False) -> None:
        self.send_response(status)
        for name, value in (told or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not head and self.command != "HEAD":
            self.wfile.write(content)


def _info(folder: Path, repository: str) -> dict[str, object]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "id": repository,
        "sha": COMMIT,
        "siblings": [{"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size} for file in files],
        "private": False, "gated": False, "downloads": 0, "likes": 0, "tags": [], "disabled": False,
    }  # fmt: skip
