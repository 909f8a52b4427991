"""An HTTP proxy in front of an S3 server that breaks a share of the requests, as networks and busy servers do.

It passes bodies on piece by piece while they come in, so the server really has a part of an upload that breaks off.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("reset_before", "half_sent", "reset_after", "slow_down", "slow", "truncated")
"""Connection cut before the server hears of it, amid the body, or after the work; 503, a delay, half an answer.

Not among them: `silent`, which takes the request and never answers.
"""
SLOW_S = 0.2
SILENT_S = 60.0
NOTICE_S = 0.02  # a server has surely read by then what it was sent
PIECES = 8  # of each body
LARGEST_PIECE = 256 << 10
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(slots=True)
class Upload:
    """A request with a body that is under way: of its `size` bytes the server has `sent`."""

    path: str
    size: int
    sent: int = 0

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a large object."""
        return "partNumber=" in self.path


class Cut(Exception):
    """The connections to client and server break here."""


class FaultProxy:
    """Passes requests on to `target`, failing `rate` of them at random and those in `script` as it says, in order."""

    def __init__(self, target: str, rate: float = 0.0, faults: tuple[str, ...] = FAULTS, seed: int = 0) -> None:
        self.target = target.removeprefix("http://")
        self.rate, self.faults = rate, faults
        self.script: deque[str] = deque()
        self.down = False
        self.watch: Callable[[Upload], None] = lambda upload: None
        """Called before each piece of a body and once the server has it whole; may block, or raise Cut."""
        self.counts: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self) -> str:
        """What happens to the next request; `ok` if nothing."""
        with self._lock:
            if self.down:
                fault = "reset_before"
            elif self.script:
                fault = self.script.popleft()
            else:
                fault = self._random.choice(self.faults) if self._random.random() < self.rate else "ok"
            self.counts[fault] += 1
            return fault


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # a client that was killed between two requests
                super().handle()

        def relay(self) -> None:
            try:
                self.fail_or_pass_on(proxy.draw())
            except (Cut, ConnectionError):
                self.close_connection = True
                with suppress(OSError):  # the client went first
                    self.connection.shutdown(socket.SHUT_RDWR)

        def fail_or_pass_on(self, fault: str) -> None:
            if fault in ("silent", "reset_before", "slow_down"):
                for _ in self.pieces():
                    pass
            if fault == "silent":
                self.connection.settimeout(SILENT_S)
                self.rfile.read(1)  # until the client gives up
            if fault in ("silent", "reset_before"):
                raise Cut
            if fault == "slow_down":
                return self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN, len(SLOW_DOWN))
            if fault == "slow":
                time.sleep(SLOW_S)
            status, headers, data = self.pass_on(half=fault == "half_sent")
            if fault == "reset_after" or (fault == "truncated" and not data):
                raise Cut
            length = int(headers.pop("Content-Length", len(data)))  # of a HEAD: the object's
            self.answer(status, headers, data[: len(data) // 2] if fault == "truncated" else data, length)
            if fault == "truncated":
                raise Cut
            return None

        def pass_on(self, *, half: bool) -> tuple[int, dict[str, str], bytes]:
            """The server's answer. With `half`, it gets no more than that of the body, and Cut is raised."""
            upstream = HTTPConnection(proxy.target, timeout=60)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() != "expect":  # answered here already
                        upstream.putheader(name, value)
                upstream.endheaders()
                upload = Upload(self.path, int(self.headers.get("Content-Length", 0)))
                for piece in self.pieces():
                    if half and upload.sent >= upload.size // 2:
                        break
                    proxy.watch(upload)
                    upstream.send(piece)
                    upload.sent += len(piece)
                if half:
                    raise Cut
                if upload.size:
                    proxy.watch(upload)
                answer = upstream.getresponse()
                headers = {n: v for n, v in answer.getheaders() if n.lower() not in HOP_BY_HOP}
                if length := answer.getheader("Content-Length"):
                    headers["Content-Length"] = length
                return answer.status, headers, answer.read()
            except Cut:
                time.sleep(NOTICE_S)
                raise
            finally:
                upstream.close()

        def pieces(self) -> Iterator[bytes]:
            """The body as it comes in. Raises Cut if the client breaks off."""
            left = int(self.headers.get("Content-Length", 0))
            longest = min(-(-left // PIECES), LARGEST_PIECE)
            while left:
                piece = self.rfile.read(min(left, longest))
                if not piece:
                    raise Cut
                left -= len(piece)
                yield piece

        def answer(self, status: int, headers: dict[str, str], data: bytes, length: int) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay

    return Handler
