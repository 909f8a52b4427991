"""Sweep files of runs that train in a second, and the `muon` command, as a process of its own and in this one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def start_sweep(spec: Path, store: Path) -> "subprocess.Popen[str]":
    """`muon sweep run --in-process` of a sweep file, in a process of its own that goes on by itself."""
    command, environment = [MUON, "sweep", "run", str(spec), "--in-process"], os.environ | {"MUON_STORE": str(store)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_attempts(process: "subprocess.Popen[str]", store: Path, number: int = 1) -> None:
    """Until the store has so many attempts, of which `process` begins the last."""
    while len(Folder(store).list("attempts/")) < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@contextmanager
def standing_still(process: "subprocess.Popen[str]") -> Iterator[None]:
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
