"""Writers that are killed while they upload: what is read at the end equals an uninterrupted run.

MUON_KILLS sets how many kills each server sees. Only those count that met an upload of a writer whose run was not done.
"""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from servers.fault_proxy import Cut, FaultProxy, Upload
from servers.fixtures import fresh_url
from servers.killed_writer import CHECKPOINT_EVERY, RUN, write
from servers.s3_servers import S3Server
from servers.whole_tables import assert_same_tables

from muon_core.store.compaction import compact
from muon_core.store.folder import Folder
from muon_core.store.open import open_storage
from muon_core.store.reader import list_keys, read_attempts, read_statuses

KILLS = int(os.environ.get("MUON_KILLS", "3"))
FINALS = (KILLS + 3) // 6  # of them, at the end: from then on hardly a step is left to write
STEPS = CHECKPOINT_EVERY * (KILLS + 2) + CHECKPOINT_EVERY // 2  # about every other writer gets to a checkpoint
TESTS = Path(__file__).parents[1]

TARGETS: dict[str, tuple[Callable[[Upload], bool], int]] = {
    "object": (lambda upload: not upload.is_part, 10),
    "part": (lambda upload: upload.is_part, 4),
    "final": (lambda upload: "/final/" in upload.path, 6),
    "rows or part": (lambda upload: upload.is_part or "/live/" in upload.path, 8),
}
"""Uploads of a writer that it may be stopped at, and how many of them there are to choose from."""


class Snare:
    """Holds an upload of one writer at a random place of its body until it is released."""

    def __init__(self, target: str, chance: random.Random) -> None:
        self._wanted, most = TARGETS[target]
        self._number, self._place = chance.randint(1, most), chance.random()
        self._lock, self._released, self._cut = threading.Lock(), threading.Event(), False
        self.caught = threading.Event()
        self.upload: Upload | None = None

    def watch(self, upload: Upload) -> None:
        """Called by the writer's proxy before each piece of a body and after the last."""
        with self._lock:
            if upload.sent == 0 and self._wanted(upload):
                self._number -= 1
                if self._number == 0:
                    self.upload = upload
        if upload is self.upload and upload.sent >= self._place * upload.size and not self.caught.is_set():
            self.caught.set()
            self._released.wait()
            if self._cut:
                raise Cut

    def release(self, *, cut: bool) -> None:
        """Let the upload go on; with `cut`, the server gets nothing more of it."""
        self._cut = cut
        self._released.set()


@contextmanager
def writer(server: S3Server, url: str, snare: Snare | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that writes the run, behind a proxy of its own."""
    with FaultProxy(server.endpoint) as proxy:
        if snare:
            proxy.watch = snare.watch
        command = [sys.executable, "-m", "servers.killed_writer", url, str(STEPS)]
        environment = os.environ | {"AWS_ENDPOINT_URL": proxy.endpoint}
        process = subprocess.Popen(command, cwd=TESTS, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            if snare:
                snare.release(cut=True)
            process.kill()
            process.communicate()


class Hunt:
    """Stops one writer after another amid an upload: most are killed there, the others go on beside a successor."""

    def __init__(self, server: S3Server, url: str, stack: ExitStack) -> None:
        self._server, self._url, self._stack = server, url, stack
        self._storage, self._chance = open_storage(url), random.Random(7)
        self._held: list[Snare] = []
        self.kills: list[Upload] = []
        self.zombies: list[subprocess.Popen[str]] = []

    def kill_one(self, target: str) -> None:
        """Let writers begin until one was killed whose run was not done."""
        hits = len(self.kills)
        while len(self.kills) == hits:
            process, snare = self._stop_one(target)
            process.kill()
            process.wait()
            snare.release(cut=True)
            assert snare.upload is not None
            if read_statuses(self._storage).get(RUN) != "done":
                self.kills.append(snare.upload)

    def hold_one(self) -> None:
        """Let a writer begin and stop it until the next has begun."""
        process, snare = self._stop_one("rows or part")
        self.zombies.append(process)
        self._held.append(snare)

    def release(self) -> None:
        """Let those go on that were only stopped."""
        while self._held:
            self._held.pop().release(cut=False)

    def _stop_one(self, target: str) -> tuple[subprocess.Popen[str], Snare]:
        before = self._attempts()
        snare = Snare(target, self._chance)
        process = self._stack.enter_context(writer(self._server, self._url, snare))
        while not snare.caught.wait(0.2):
            assert process.poll() is None, (
                f"a writer ended without {target} to upload, {len(self.kills)} kills before it"
            )
            if self._held and self._attempts() > before:
                self.release()
        return process, snare

    def _attempts(self) -> int:
        return len(read_attempts(self._storage).get(RUN, {}))


@pytest.mark.timeout(120 + 30 * KILLS)
def test_a_run_killed_while_uploading_ends_with_the_rows_of_an_uninterrupted_one(
    s3_server: S3Server, tmp_path: Path
) -> None:
    write(Folder(tmp_path), STEPS)
    url = fresh_url()
    with ExitStack() as stack:
        hunt = Hunt(s3_server, url, stack)
        for number in range(KILLS - FINALS):
            if number % 4 == 1:
                hunt.hold_one()
            hunt.kill_one(("part", "object")[number % 2])
        for _ in range(FINALS):
            hunt.kill_one("final")
        last = stack.enter_context(writer(s3_server, url))
        assert (last.communicate(timeout=240)[0], last.returncode) == ("", 0)
        hunt.release()
        for zombie in hunt.zombies:
            assert zombie.communicate(timeout=120)[0] == "superseded\n"
    half_sent = sum(0 < upload.sent < upload.size for upload in hunt.kills)
    parts = sum(upload.is_part for upload in hunt.kills)
    print(f"{s3_server.name}: {KILLS} kills, {half_sent} half-sent, {parts} parts, {len(hunt.zombies)} zombies")
    assert len(hunt.kills) == KILLS
    assert half_sent > KILLS / 2
    assert parts
    check(url, str(tmp_path))


def check(url: str, whole: str) -> None:
    """Every table equals that of the uninterrupted run, before and after compaction, which clears all branches away."""
    storage = open_storage(url)
    for prefix in ("nothing/", "checkpoints/"):
        assert read_statuses(storage) == {RUN: "done"}
        assert_same_tables(url, whole)
        storage.delete(list_keys(storage, prefix))
        assert compact(storage, grace_s=-60.0).problems == {}
    assert_same_tables(url, whole)
    assert list_keys(storage, "live/") == []
