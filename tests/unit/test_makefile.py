"""`make` on a machine that lacks something: one line that says what, whichever target asks for it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cluster import hosts

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", ["demo", "test", "test-browser", "test-cluster", "s3-servers"])
def test_make_without_a_python_says_what_to_install(tmp_path: Path, target: str) -> None:
    requirements = [f"tests/{folder}/requirements.txt" for folder in ("servers", "cluster")]
    for name in ("Makefile", "pyproject.toml", "constraints.txt", *requirements):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", target, "PYTHON="], cwd=tmp_path, capture_output=True, text=True, env=outside)
    assert done.returncode == 2
    assert done.stdout == (
        "make: Python 3.11 or newer with venv is missing (on Debian: apt-get install python3-venv)\n"
    )
    assert "registry" not in done.stderr
    assert not list(tmp_path.glob(".venv*"))


def test_what_a_machine_lacks_for_hosts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name, path: None if name in ("sshd", "rsync") else f"/usr/bin/{name}")
    assert hosts.missing() == "hosts need openssh-server and rsync: apt-get install openssh-server rsync"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert hosts.missing() == (
        "hosts are namespaces, which only root makes: run it as root, or in a container that is privileged"
    )
