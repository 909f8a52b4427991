"""Which ports the processes of Ray listen on beyond loopback: who reaches one that wants no token may run code."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ray_jobs.checks import Wrong

PROC = Path("/proc")
LISTENING = "0A"  # the kernel's TCP_LISTEN
WORKER = b"ray::"
RAY = re.compile(rb"ray::|/ray/")


def ports(proc: Path = PROC) -> str:
    """Raises Wrong if one is open to all who reach it."""
    open_ports: list[int] = []
    guarded: list[int] = []
    for process, port in sorted(_beyond_loopback(proc)):
        (guarded if _wants_token(proc / process) else open_ports).append(port)
    if open_ports:
        raise Wrong(
            f"Ray listens beyond loopback without a token ({_told(open_ports)}): who reaches it may run code here; "
            "start it with RAY_AUTH_MODE=token, after `ray get-auth-token --generate`, and keep others out"
        )
    return f"behind a token: {_told(guarded)}" if guarded else "Ray listens on none beyond loopback"


def _told(numbers: list[int]) -> str:
    unique = sorted(set(numbers))
    shown = ", ".join(map(str, unique[:6]))
    return f"port {shown}" if len(unique) == 1 else f"ports {shown}{', ...' if len(unique) > 6 else ''}"


def _beyond_loopback(proc: Path) -> Iterator[tuple[str, int]]:
    """(process, port) of each socket that a process of Ray listens on, and others than this machine reach."""
    sockets = {inode: port for name in ("tcp", "tcp6") for inode, port in _listeners(proc / "net" / name)}
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is another user's, or ends meanwhile
            if not RAY.search((process / "cmdline").read_bytes()):
                continue
            for file in (process / "fd").iterdir():
                if (target := os.readlink(file)) in sockets:
                    yield process.name, sockets[target]


def _listeners(table: Path) -> Iterator[tuple[str, int]]:
    """(socket:[inode], port) of those beyond loopback in a table of the kernel's sockets."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:  # no IPv6
        return
    for fields in map(str.split, lines):
        address, port = fields[1].split(":")
        if fields[3] == LISTENING and not _is_loopback(address):
            yield f"socket:[{fields[9]}]", int(port, 16)


def _is_loopback(address: str) -> bool:
    """Of an address as the kernel writes it: words of four bytes, each in the machine's order."""
    words = [bytes.fromhex(address[start : start + 8])[::-1] for start in range(0, len(address), 8)]
    found = ipaddress.ip_address(b"".join(words))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _wants_token(process: Path) -> bool:
    """Whether a process began with Ray's token mode on; what cannot be read is taken for a no.

    Workers write their titles over their environment, so the server that started them is asked.
    """
    try:
        if (process / "cmdline").read_bytes().startswith(WORKER):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            process = process.with_name(parent)
        return b"RAY_AUTH_MODE=token" in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
