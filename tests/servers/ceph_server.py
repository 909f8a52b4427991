"""A Ceph cluster of one disk with its S3 interface, radosgw, on loopback; everything it keeps is below a folder.

Usage: python ceph_server.py FOLDER PORT ACCESS_KEY SECRET   (until it is terminated; then its daemons end)
The daemons lie below MUON_CEPH_ROOT, by default /; their packages may be unpacked there without being installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(os.environ.get("MUON_CEPH_ROOT") or "/").absolute()
BIN = ROOT / "usr/bin"
DAEMONS = ("ceph-mon", "ceph-osd", "radosgw")
INSTALL = "apt-get install radosgw ceph-mon ceph-osd, or set MUON_CEPH_ROOT to a folder their packages are unpacked in"
STOP_TIMEOUT_S = 20
DISK_BYTES = 4 << 30  # of a sparse file
SETTINGS = """\
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{monitor_port}
ms bind msgr2 = false
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}/run
crash dir = {folder}/run
log file = {folder}/log/$name.log
mon cluster log file = {folder}/log/cluster.log
admin socket = {folder}/run/$name.asok
plugin dir = {libraries}/ceph
erasure code dir = {libraries}/ceph/erasure-code
osd class dir = {libraries}/rados-classes
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block path = {folder}/disk
bluestore block size = {disk_bytes}
osd memory target = 939524096
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
osd crush update on start = false
osd class update on start = false
mon allow pool size one = true
mon max pg per osd = 2000
"""


class Cluster:
    """Monitor, disk and gateway below `folder`, which are new unless an earlier start created them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.created = folder, folder / "created"
        self.is_new = not self.created.exists()
        if self.is_new:
            shutil.rmtree(folder, ignore_errors=True)  # what a creation that was killed left
            for name in ("run", "log", "mon", "osd"):
                (folder / name).mkdir(parents=True)
        self.fsid = str(uuid.uuid4()) if self.is_new else self.created.read_text()
        self.monitor_port = free_port()
        libraries = next(ROOT.glob("usr/lib/*-linux-gnu/ceph")).parent
        paths = [libraries, libraries / "ceph", libraries / "nss", ROOT / "lib" / libraries.name]
        self.environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(map(str, paths)),
            "PYTHONPATH": str(ROOT / "usr/lib/python3/dist-packages"),
            "CEPH_CONF": f"{folder}/ceph.conf",
        }
        settings = {"fsid": self.fsid, "monitor_port": self.monitor_port, "disk_bytes": DISK_BYTES}
        (folder / "ceph.conf").write_text(SETTINGS.format(folder=folder, libraries=libraries, **settings))

    def serve(self, port: int, access_key: str, secret: str) -> None:
        """Start the daemons and wait until one ends. Raises SystemExit then, and CalledProcessError before."""
        listen = f"--rgw-frontends=beast endpoint=127.0.0.1:{port} tcp_nodelay=1"
        with ExitStack() as stack:
            self.make_monitor()
            daemons = [stack.enter_context(self.daemon("ceph-mon", "--id=a"))]
            if self.is_new:
                self.make_disk()
            daemons.append(stack.enter_context(self.daemon("ceph-osd", "--id=0")))
            if self.is_new:
                self.make_user(access_key, secret)
                self.created.write_text(self.fsid)
            daemons.append(stack.enter_context(self.daemon("radosgw", "--name=client.rgw.a", listen)))
            while all(process.poll() is None for process in daemons):
                time.sleep(0.2)
            raise SystemExit(f"a daemon ended; see {self.folder}/log")

    def make_monitor(self) -> None:
        """The monitor's data; if they are there, only its port of this time."""
        monmap, address = str(self.folder / "monmap"), f"[v1:127.0.0.1:{self.monitor_port}]"
        self.call("monmaptool", "--create", "--clobber", f"--fsid={self.fsid}", "--addv", "a", address, monmap)
        action = ["--mkfs", f"--monmap={monmap}", "--keyring=/dev/null"] if self.is_new else ["--inject-monmap", monmap]
        self.call("ceph-mon", "--id=a", *action)

    def make_disk(self) -> None:
        disk = str(uuid.uuid4())
        self.call("/usr/bin/python3", f"{BIN}/ceph", "osd", "new", disk, "0")
        self.call("/usr/bin/python3", f"{BIN}/ceph", "osd", "crush", "add", "osd.0", "1.0", "host=a", "root=default")
        self.call("ceph-osd", "--id=0", "--mkfs", f"--osd-uuid={disk}")

    def make_user(self, access_key: str, secret: str) -> None:
        keys = [f"--access-key={access_key}", f"--secret-key={secret}"]
        self.call("radosgw-admin", "--name=client.rgw.a", "user", "create", "--uid=u", "--display-name=u", *keys)

    def call(self, *command: str) -> None:
        """Run a command, again if it fails. Raises CalledProcessError.

        Without authentication, Ceph's clients may send the first request before they know the cluster's id, which the
        monitor refuses as "wrong fsid".
        """
        for pause_s in (0.5, 1, 2, 4, 8, None):
            done = subprocess.run(command, env=self.environment, stdout=subprocess.DEVNULL, check=pause_s is None)
            if pause_s is None or done.returncode == 0:
                return
            time.sleep(pause_s)

    @contextmanager
    def daemon(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A daemon in the foreground; it also ends when this process is killed."""
        arguments = ["setpriv", "--pdeathsig=TERM", *command, "-f"]
        process = subprocess.Popen(arguments, env=self.environment, start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def stop(*_: object) -> None:
    """End once: a second signal must not cut the daemons' end short."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def main(folder: Path, port: int, access_key: str, secret: str) -> None:
    """Serve until told to stop."""
    if missing := [name for name in DAEMONS if not (BIN / name).is_file()]:
        raise SystemExit(f"{', '.join(missing)} missing in {BIN}; {INSTALL}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    Cluster(folder / "cluster").serve(port, access_key, secret)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]), sys.argv[3], sys.argv[4])
