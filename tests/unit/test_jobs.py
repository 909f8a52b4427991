"""The job interface of a cluster: who answers there, which token is used, and a log that comes in pieces."""

import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

from ray_jobs.cli.main import main
from ray_jobs.jobs import Job, _Log, check_head, check_url
from ray_jobs.ray_token import find_token

VERSION = json.dumps({"ray_version": version("ray")})
BLOCKS = "blocks:\n  - {name: base, role: baseline, optimizer: muon}\n"


@contextmanager
def dashboard(status: int = 200, body: str = VERSION, token: str | None = None) -> Iterator[str]:
    """A server that answers as Ray's dashboard does, on loopback; yields its address."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            code = status if token is None else 401 if given is None else 200 if given == f"Bearer {token}" else 403
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME, and no token."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_token_is_found_where_ray_looks_for_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_token() == (None, "~/.ray/auth_token")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("of the file\n")
    assert find_token() == ("of the file", "~/.ray/auth_token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "other"))
    assert find_token() == (None, f"RAY_AUTH_TOKEN_PATH={home}/other")
    (home / "other").write_text("of the other")
    assert find_token() == ("of the other", f"RAY_AUTH_TOKEN_PATH={home}/other")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert find_token() == ("of the environment", "RAY_AUTH_TOKEN")


def test_a_token_is_sent_and_one_that_is_refused_is_told_with_where_it_is_from(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dashboard(token="right") as address:
        with pytest.raises(ConnectionError, match=r"asks for a token, and there is none in ~/\.ray/auth_token; copy"):
            check_head(address)
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text("old")
        with pytest.raises(ConnectionError, match=r"does not take the token of ~/\.ray/auth_token; copy the head's"):
            check_head(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(ConnectionError, match=r"of RAY_AUTH_TOKEN; correct that, or unset it and copy the head's"):
            check_head(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
        check_head(address)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, "", "is no dashboard of Ray"),
        (502, "", "is no dashboard of Ray"),
        (200, "<html>", "is no dashboard of Ray"),
        (200, "[]", "is no dashboard of Ray"),
        (200, '{"ray_version": "2.9.0"}', f"runs Ray 2.9.0, this machine has {version('ray')}; install the same"),
    ],
)
def test_what_is_no_ray_or_another_is_told(status: int, body: str, said: str) -> None:
    with dashboard(status, body) as address, pytest.raises(ConnectionError, match=said):
        check_head(address)


def test_nobody_at_the_address_is_told() -> None:
    with dashboard() as address:
        check_head(address)
    with pytest.raises(ConnectionError, match=r"nothing answers at .* \(Connection refused\); is the head up"):
        check_head(address)


def test_an_address_is_that_of_a_dashboard() -> None:
    assert check_url("http://127.0.0.1:8265/") == "http://127.0.0.1:8265"
    for wrong in (
        "auto",
        "127.0.0.1:6379",
        "ray://head:10001",
        "http://",
        "http://user:word@head:8265",
        "http://head/a",
    ):
        with pytest.raises(ValueError, match="give the address of Ray's dashboard"):
            check_url(wrong)


@pytest.mark.parametrize(
    ("status", "exit_code", "outcome"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 7), ("STOPPED", None, 130)],
)
def test_who_waits_for_a_job_ends_as_it_did(status: str, exit_code: int | None, outcome: int) -> None:
    job = Job("a", status, {}, exit_code, "")
    assert (job.is_over, job.outcome) == (True, outcome)
    assert not Job("a", "RUNNING", {}, None, "").is_over


def test_a_log_is_shown_once_from_where_the_job_began_however_often_it_is_sent() -> None:
    shown: list[str] = []
    text = "old\nold: run.py aa\nearlier\nRunning: run.py bb\none\ntwo\nthree"
    log = _Log("run.py bb", shown.append)
    for pieces in ([text[:20], text[20:52]], [text[:40], text[40:]]):
        log.rewind()
        for piece in pieces:
            log.add(piece)
    assert shown == ["one", "two"]
    log.finish()
    assert shown == ["one", "two", "three"]


@pytest.fixture
def submit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`muon sweep submit` of a file with the given text, and more arguments; returns exit code and stderr."""

    def call(text: str, *arguments: str) -> tuple[int, str]:
        (tmp_path / "sweep.yaml").write_text(text)
        with pytest.raises(SystemExit) as stop:
            main(["sweep", "submit", str(tmp_path / "sweep.yaml"), "--store", str(tmp_path / "store"), *arguments])
        out, err = capsys.readouterr()
        assert out == ""
        return int(stop.value.code or 0), err

    return call


def test_an_invalid_sweep_is_told_before_anyone_is_contacted(submit: Callable[..., tuple[int, str]]) -> None:
    code, err = submit(
        f"version: 1\nname: a\nseeds: [1]\nconstants: {{stepz: 3}}\n{BLOCKS}", "--address", "http://[::1]:1"
    )
    assert (code, "unknown parameter 'stepz'" in err) == (2, True)


def test_nothing_is_sent_unless_confirmed_and_a_folder_is_no_store_of_another_machine(
    submit: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    valid = f"version: 1\nname: a\nseeds: [1]\n{BLOCKS}"
    code, err = submit(valid, "--address", "http://127.0.0.1:1")
    assert (code, "not confirmed, nothing was done" in err) == (2, True)
    for far in (["--address", "http://10.0.0.5:8265"], ["--tunnel", str(tmp_path / "cluster.yaml")]):
        code, err = submit(valid, "--yes", *far)
        assert (code, "each to a disk of its own" in err) == (2, True)
    code, err = submit(valid, "--yes", "--shared-folder", "--tunnel", str(tmp_path / "cluster.yaml"))
    assert (code, "cluster.yaml: cannot be read: No such file" in err) == (2, True)
    code, err = submit(valid, "--yes", "--address", "http://127.0.0.1:1")
    assert (code, err.splitlines()[-1][:55]) == (7, "muon: cannot reach Ray: nothing answers at http://127.0")
    assert not list((tmp_path / "store").glob("sweeps/*"))
