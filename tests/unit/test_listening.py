"""Ports of Ray beyond loopback, read from a tree like the one the kernel shows."""

from pathlib import Path

import pytest

from ray_jobs.checks import Wrong
from ray_jobs.listening import ports

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100 0\n"
LISTENS, CONNECTED = "0A", "01"
ANY, LOOPBACK, OF_THE_NODE = "00000000", "0100007F", "0500000A"
ANY_6, LOOPBACK_6, MAPPED_LOOPBACK = "0" * 32, "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F"
GCS, WORKER = b"/venv/ray/core/src/ray/gcs/gcs_server\0--port=6379\0", b"ray::IDLE\0"
TOKEN = b"HOME=/root\0RAY_AUTH_MODE=token\0"


def machine(root: Path, tcp: list[tuple[str, str, int]], tcp6: list[tuple[str, str, int]] | None = None) -> Path:
    """A tree with these sockets: (address and port, state, inode)."""
    (root / "net").mkdir()
    for name, sockets in (("tcp", tcp), ("tcp6", tcp6)):
        if sockets is not None:
            lines = "".join(LINE.format(address=a, state=s, inode=i) for a, s, i in sockets)
            (root / "net" / name).write_text(HEAD + lines)
    return root


def process(root: Path, number: int, command: bytes, environment: bytes, inodes: list[int], parent: int = 1) -> None:
    folder = root / str(number)
    (folder / "fd").mkdir(parents=True)
    (folder / "cmdline").write_bytes(command)
    (folder / "environ").write_bytes(environment)
    (folder / "stat").write_text(f"{number} (a name (of two)) S {parent} 7 7\n")
    for inode in inodes:
        (folder / "fd" / str(inode)).symlink_to(f"socket:[{inode}]")


@pytest.mark.parametrize("address", [f"{ANY}:18EB", f"{OF_THE_NODE}:18EB"])
def test_a_port_that_others_reach_without_a_token_is_wrong(address: str, tmp_path: Path) -> None:
    process(machine(tmp_path, [(address, LISTENS, 11)]), 7, GCS, b"HOME=/root\0", [11])
    with pytest.raises(Wrong, match=r"^Ray listens beyond loopback without a token \(port 6379\): .*=token"):
        ports(tmp_path)


def test_so_is_one_of_ipv6(tmp_path: Path) -> None:
    process(machine(tmp_path, [], [(f"{ANY_6}:18EB", LISTENS, 11)]), 7, GCS, b"", [11])
    with pytest.raises(Wrong, match=r"port 6379"):
        ports(tmp_path)


def test_a_port_behind_a_token_is_told(tmp_path: Path) -> None:
    """A worker writes its title over its environment: its raylet knows."""
    process(machine(tmp_path, [(f"{ANY}:18EB", LISTENS, 11), (f"{ANY}:2712", LISTENS, 12)]), 7, GCS, TOKEN, [11])
    process(tmp_path, 8, WORKER, b"\0\0", [12], parent=7)
    assert ports(tmp_path) == "behind a token: ports 6379, 10002"


@pytest.mark.parametrize(
    ("tcp", "tcp6", "command"),
    [
        ([(f"{LOOPBACK}:18EB", LISTENS, 11)], None, GCS),
        ([], [(f"{LOOPBACK_6}:18EB", LISTENS, 11)], GCS),
        ([], [(f"{MAPPED_LOOPBACK}:18EB", LISTENS, 11)], GCS),
        ([(f"{OF_THE_NODE}:18EB", CONNECTED, 11)], None, GCS),
        ([(f"{ANY}:18EB", LISTENS, 11)], None, b"/usr/sbin/sshd\0-D\0"),
        ([(f"{ANY}:18EB", LISTENS, 12)], None, GCS),
    ],
    ids=["loopback", "loopback of IPv6", "loopback mapped", "a connection", "not of Ray", "of a process unknown"],
)
def test_what_nobody_else_reaches_or_is_not_rays_is_well(
    tcp: list[tuple[str, str, int]], tcp6: list[tuple[str, str, int]] | None, command: bytes, tmp_path: Path
) -> None:
    process(machine(tmp_path, tcp, tcp6), 7, command, b"", [11])
    assert ports(tmp_path) == "Ray listens on none beyond loopback"
