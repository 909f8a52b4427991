"""Sweep files of runs that train in a second, and the `muon` command, as a process of its own and in this one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def muon_here(capsys: pytest.CaptureFixture[str], *arguments: str, store: Path) -> "subprocess.CompletedProcess[str]":
    """The same in this process, which has loaded already what takes another one seconds."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUON_STORE", str(store))
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
    return subprocess.CompletedProcess(arguments, int(stop.value.code or 0), *capsys.readouterr())
