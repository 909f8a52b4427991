"""What a listing says, whichever way a server spells it, and what is none."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from servers.fixtures import clear_aws

from muon_core.store.open import open_storage
from muon_core.store.storage import Listed, StoreError, StoreUnavailable

AWS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
NOON = 1_767_268_800.0
"""2026-01-01, 12:00 UTC."""
Server = Callable[..., None]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Lets the server answer each request with the next of some bodies."""
    clear_aws(monkeypatch)
    bodies: list[tuple[int, bytes]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = bodies.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def answer(*texts: str, status: int = 200) -> None:
        bodies.extend((status, text.encode()) for text in texts)

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.server_port}")
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield answer
        http.shutdown()


def page(*objects: tuple[str, str], namespace: str = AWS, more: str = "") -> str:
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>e</ETag><Size>7</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key, time in objects
    )
    return f"<?xml version='1.0'?><ListBucketResult {namespace}>{more}{contents}</ListBucketResult>"


@pytest.mark.parametrize("namespace", [AWS, ""])
@pytest.mark.parametrize(
    "time", ["2026-01-01T12:00:00.000Z", "2026-01-01T12:00:00Z", "Thu, 01 Jan 2026 12:00:00 GMT", "1767268800"]
)
def test_a_page_is_read_with_each_spelling_of_a_time(server: Server, namespace: str, time: str) -> None:
    server(page(("x/b", time), ("x/a", time), namespace=namespace))
    assert open_storage("s3://data/x").stat("") == [Listed("a", 7, NOON), Listed("b", 7, NOON)]


@pytest.mark.parametrize(("encoding", "key"), [("<EncodingType>url</EncodingType>", "a b"), ("", "a+b%20")])
def test_keys_are_decoded_where_the_server_has_encoded_them(server: Server, encoding: str, key: str) -> None:
    sent = "x/a+b" if encoding else "x/a+b%20"
    server(page((sent, "2026-01-01T12:00:00Z"), more=encoding))
    assert open_storage("s3://data/x").keys("") == [key]


def test_pages_follow_each_other_until_there_is_no_more(server: Server) -> None:
    time = "2026-01-01T12:00:00Z"
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>n</NextContinuationToken>"
    server(page(("x/a", time), more=more), page(("x/b", time)), page())
    storage = open_storage("s3://data/x")
    assert storage.list("") == [("a", 7), ("b", 7)]
    assert storage.list("") == []


@pytest.mark.parametrize(
    "body", ["", "no XML", page(("x/a", "2026-01-01T12:00:00Z")).replace("<Size>7</Size>", ""), page()[:-5]]
)
def test_what_is_no_listing_is_an_error_and_never_an_empty_store(server: Server, body: str) -> None:
    server(body)
    with pytest.raises(StoreError, match=r"^store s3://data/x: [^\n]+$"):
        open_storage("s3://data/x").keys("")


def test_an_error_in_place_of_a_listing_is_told_as_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muon_core.store.s3.connection.TRIES", 1)
    server("<Error><Code>SlowDown</Code><Message>later</Message></Error>", status=503)
    with pytest.raises(StoreUnavailable, match="overloaded or failing"):
        open_storage("s3://data/x").keys("")
