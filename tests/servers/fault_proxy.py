"""An HTTP proxy in front of an S3 server that breaks a share of the requests, as networks and busy servers do."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter, deque
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("reset_before", "reset_after", "slow_down", "slow", "truncated")
"""Connection cut before or after the server did its work, 503, a delay, an answer cut in the middle."""
SLOW_S = 0.2
SILENT_S = 60.0
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultProxy:
    """Passes requests on to `target`, failing `rate` of them at random and those in `script` as it says, in order."""

    def __init__(self, target: str, rate: float = 0.0, faults: tuple[str, ...] = FAULTS, seed: int = 0) -> None:
        self.target = target.removeprefix("http://")
        self.rate, self.faults = rate, faults
        self.script: deque[str] = deque()
        self.down = False
        self.delay_s = 0.0
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

        def relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.draw()
            time.sleep(proxy.delay_s + (SLOW_S if fault == "slow" else 0.0))
            if fault == "silent":
                self.connection.settimeout(SILENT_S)
                self.rfile.read(1)  # until the client gives up
                return self.cut()
            if fault == "reset_before":
                return self.cut()
            if fault == "slow_down":
                return self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN, len(SLOW_DOWN))
            status, headers, data = self.forward(body)
            if fault == "reset_after" or (fault == "truncated" and not data):
                return self.cut()
            length = int(headers.pop("Content-Length", len(data)))  # of a HEAD: the object's
            self.answer(status, headers, data[: len(data) // 2] if fault == "truncated" else data, length)
            if fault == "truncated":
                self.cut()
            return None

        def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            upstream = HTTPConnection(proxy.target, timeout=60)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() != "expect":  # answered here already
                        upstream.putheader(name, value)
                upstream.endheaders(body)
                answer = upstream.getresponse()
                headers = {n: v for n, v in answer.getheaders() if n.lower() not in HOP_BY_HOP}
                if length := answer.getheader("Content-Length"):
                    headers["Content-Length"] = length
                return answer.status, headers, answer.read()
            finally:
                upstream.close()

        def answer(self, status: int, headers: dict[str, str], data: bytes, length: int) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        def cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay

    return Handler
