"""The address of a Ray, looked at before anything starts: what it means, who answers, whether the store suits it."""

from __future__ import annotations

import socket

from muon_core.store.storage import Storage

PROBE_S = 5.0


def check_address(address: str) -> None:
    """Raises ValueError unless `address` is `auto` or host:port."""
    host, port = _parts(address)
    if address.startswith("ray://"):
        raise ValueError(
            f"Ray address {address!r}: sweeps do not run through Ray Client; run `muon` on a node of the cluster with "
            "--address host:6379 or auto"
        )
    if address != "auto" and not (host and "/" not in host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"Ray address {address!r}: give host:port, such as 10.0.0.5:6379, or auto on a node of it")


def check_store(storage: Storage, address: str) -> None:
    """Raises ValueError for a folder if `address` is of another machine, which writes to a disk of its own."""
    if storage.is_local and _parts(address)[0] not in ("auto", "localhost", "127.0.0.1", "::1"):
        raise unshared(storage)


def unshared(storage: Storage) -> ValueError:
    """The error for a folder as the store of a cluster."""
    return ValueError(
        f"the runs would write to {storage.url} on several machines, each to a disk of its own; give --store "
        "s3://bucket/prefix, or --shared-folder if all nodes share this folder"
    )


def probe(address: str) -> None:
    """Raises ConnectionError if nobody listens at `address`, which Ray would try for minutes; `auto` is left to it."""
    host, port = _parts(address)
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers at {address} ({error.strerror or error}); is the head up?") from error


def check_loopback() -> None:
    """Raises ConnectionError where the interface is down, as in a new network namespace; Ray would try for minutes."""
    with socket.socket() as server, socket.socket() as client:
        try:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())
        except OSError as error:
            raise ConnectionError(
                f"127.0.0.1 does not answer ({error.strerror or error}); `ip link set lo up` as root"
            ) from error


def _parts(address: str) -> tuple[str, str]:
    """(host, port); `auto` is a host."""
    if address == "auto":
        return address, ""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port
