"""Sweep files of runs that train in a second, and the `muon` command, as a process of its own and in this one."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.ranks import start_process

from muon_core.store.folder import Folder
from ray_jobs.cli.main import main

MUON = str(Path(sys.executable).with_name("muon"))


def sweep_file(folder: Path, small: dict[str, Any], blocks: list[dict[str, Any]], **fields: Any) -> Path:
    """`folder`/sweep.yaml: a sweep named `test` over `blocks`, whose runs are those of the fixture `small`."""
    constants: dict[str, Any] = {}
    for name, value in small.items():
        constants |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    spec = {"version": 1, "name": "test", "question": "Does it hold?", "seeds": [1, 2]}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec | {"constants": constants, "blocks": blocks} | fields))
    return path


def muon(*arguments: str, store: Path) -> subprocess.CompletedProcess[str]:
    """The command with its results in `store`, waited for."""
    environment = os.environ | {"MUON_STORE": str(store)}
    return subprocess.run([MUON, *arguments], capture_output=True, text=True, env=environment, timeout=280)


class Forked:
    """The command in a process of its own, forked from one that has loaded already what takes another one seconds.

    To be asked and signalled as a `subprocess.Popen`.
    """

    def __init__(self, *arguments: str, store: Path) -> None:
        self.args = arguments
        folder = Path(tempfile.mkdtemp(dir=store.parent))
        self._said = [folder / "stdout", folder / "stderr"]
        for file in self._said:
            file.touch()
        environment = os.environ | {"MUON_STORE": str(store)}
        self._process = start_process(_command, arguments, environment, os.getcwd(), *self._said)
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait_for(self, words: str) -> None:
        """Until it has written them to stderr."""
        while words not in self._said[1].read_text():
            assert self.poll() is None, self.communicate()
            time.sleep(0.02)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and stderr, once it has ended."""
        self._process.join(timeout)
        assert self.poll() is not None, "it did not end"
        out, err = (file.read_text() for file in self._said)
        return out, err


def _command(arguments: tuple[str, ...], environment: dict[str, str], folder: str, *said: Path) -> None:
    """In the new process, which is to be as one that a shell has started."""
    for descriptor, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    main([*arguments])


def start_sweep(spec: Path, store: Path) -> Forked:
    """`muon sweep run --in-process` of a sweep file, in a process of its own that goes on by itself."""
    return Forked("sweep", "run", str(spec), "--in-process", store=store)


def wait_for_attempts(process: Forked, store: Path, number: int = 1) -> None:
    """Until the store has so many attempts, of which `process` begins the last."""
    while len(Folder(store).list("attempts/")) < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@contextmanager
def standing_still(process: Forked) -> Iterator[None]:
    """Hold `process` amid its run, which is therefore still under way however long the block takes."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)  # nothing, once it was killed


def muon_here(capsys: pytest.CaptureFixture[str], *arguments: str, store: Path) -> "subprocess.CompletedProcess[str]":
    """The same in this process, which has loaded already what takes another one seconds."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUON_STORE", str(store))
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
    return subprocess.CompletedProcess(arguments, int(stop.value.code or 0), *capsys.readouterr())
