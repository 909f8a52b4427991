"""Pytest fixtures: S3 servers on loopback that all processes of the session share, and clean places for objects."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers.fault_proxy import FaultProxy
from servers.s3_servers import BUCKET, NAMES, S3Server
from servers.shared import shared

from muon_core.store.folder import Folder
from muon_core.store.open import open_storage
from muon_core.store.storage import Storage

ON_SERVERS = [
    pytest.param(name, marks=[pytest.mark.s3, *([pytest.mark.ceph] if name == "ceph" else [])]) for name in NAMES
]
CHECKING_SIGNATURES = [param for param in ON_SERVERS if param.values != ("ministack",)]


class Servers:
    """Goes to each server when it is first asked for; whichever process of the session is first starts it."""

    def __init__(self, root: Path) -> None:
        self._root, self._stack, self._started = root, ExitStack(), dict[str, S3Server]()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def get(self, name: str) -> S3Server:
        """The running server `name`."""
        if name not in self._started:
            self._started[name] = self._stack.enter_context(shared(name, self._root / name))
        return self._started[name]


@pytest.fixture(scope="session")
def s3_servers(session_folder: Path) -> Iterator[Servers]:
    """The servers, none of them started yet by this process."""
    with Servers(session_folder / "s3") as servers:
        yield servers


@pytest.fixture(params=ON_SERVERS)
def s3_server(request: pytest.FixtureRequest, s3_servers: Servers, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Each server in turn, with the environment of a client that uses it."""
    return enter(s3_servers.get(request.param), monkeypatch)


@pytest.fixture
def s3_url(s3_server: S3Server) -> str:
    """An empty prefix on `s3_server`."""
    return fresh_url()


@pytest.fixture
def faults(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of `s3_server` which the environment names instead of it; it passes everything on at first."""
    with FaultProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture(params=["folder", *ON_SERVERS])
def storage(
    request: pytest.FixtureRequest, s3_servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Storage:
    """An empty folder, and an empty prefix on each server."""
    if request.param == "folder":
        return Folder(tmp_path / "store")
    enter(s3_servers.get(request.param), monkeypatch)
    return open_storage(fresh_url())


def enter(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Set the environment of a client of `server`, free of anybody's own AWS settings."""
    clear_aws(monkeypatch)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


def clear_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget credentials, profiles and endpoints, and never ask a cloud machine's metadata service."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
                 "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def fresh_url() -> str:
    """A prefix nobody has used."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
