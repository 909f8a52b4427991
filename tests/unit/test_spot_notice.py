"""A spot instance's notice, asked of a server that answers as the metadata service of AWS does."""

import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from ray_jobs.spot_notice import USUAL_S, seconds_left, watch

TOKEN = "AQAEA-token"


class Metadata(http.server.BaseHTTPRequestHandler):
    """Gives a token, and to who brings it the notice, once there is one."""

    notice: str | None = None
    asked = 0

    def do_PUT(self) -> None:
        found = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(200 if found else 400, TOKEN)

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self._answer(401, "")
        elif self.path != "/latest/meta-data/spot/instance-action" or self.notice is None:
            self._answer(404, "")
        else:
            self._answer(200, self.notice)

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Metadata, "notice", None)
    monkeypatch.setattr(Metadata, "asked", 0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/latest"
        server.shutdown()


def test_there_is_none_until_the_instance_is_taken_back(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seconds_left(metadata) is None
    at = (datetime.now(UTC) + timedelta(seconds=100)).strftime("%Y-%m-%dT%H:%M:%SZ")
    monkeypatch.setattr(Metadata, "notice", f'{{"action": "terminate", "time": "{at}"}}')
    left = seconds_left(metadata)
    assert left is not None
    assert 0 < left <= 100
    monkeypatch.setattr(Metadata, "notice", '{"action": "terminate", "time": "2020-01-01T00:00:00Z"}')
    assert seconds_left(metadata) == 1
    monkeypatch.setattr(Metadata, "notice", '{"action": "terminate"}')
    assert seconds_left(metadata) == USUAL_S


def test_whoever_watches_drains_the_node_once_whatever_the_service_answered_before(
    metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained: list[int] = []
    monkeypatch.setattr(Metadata, "notice", "no JSON")
    watching = threading.Thread(target=watch, args=(drained.append, metadata, 0.01), daemon=True)
    watching.start()
    while Metadata.asked < 3:
        assert watching.is_alive()
    assert not drained
    monkeypatch.setattr(Metadata, "notice", '{"action": "terminate"}')
    watching.join(timeout=60)
    assert drained == [USUAL_S]
