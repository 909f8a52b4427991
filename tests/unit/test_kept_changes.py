"""Uncommitted changes: what counts as one, and what of them is kept where others can read it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from muon_core import code_state
from ray_jobs.kept_changes import LARGEST, bounded, without_secrets

IDENTITY = ["-c", "user.name=a", "-c", "user.email=a@b"]


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, check=True, capture_output=True)


def state(folder: Path) -> list[str]:
    script = "from muon_core.code_state import *; print(*code_state()); print(uncommitted_changes())"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    first, *changes = done.stdout.rstrip("\n").split("\n")
    return [*first.split(), "\n".join(changes)]


def test_changes_and_new_sources_are_changes_and_other_new_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "muon_core").mkdir()
    shutil.copy(code_state.__file__, tmp_path / "muon_core")
    (tmp_path / "muon_core" / "__init__.py").touch()
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "notes.py").write_text("scratch = 1\n")
    commit, diff_hash, changes = state(tmp_path)
    assert (len(commit), diff_hash, changes) == (40, "None", "")
    (tmp_path / "muon_core" / "own.py").write_text("alpha = 1\n")
    _, added, changes = state(tmp_path)
    assert "own.py\nalpha = 1" in changes
    (tmp_path / "muon_core" / "own.py").write_text("alpha = 2\n")
    (tmp_path / "muon_core" / "__init__.py").write_text("beta = 3\n")
    _, changed, changes = state(tmp_path)
    assert "+beta = 3" in changes
    assert len({diff_hash, added, changed}) == 3


def test_secrets_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    lines = [
        "+key = connect('wJalrXUtnFEMI/K7MDENG')",
        f"+header = {'f' * 64}",
        "+AKIAIOSFODNN7EXAMPLE",
        '+API_KEY = "0123456789"',
        "+  password: 'correct horse'",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        "+lr = 0.02  # of all tokens",
        "+token = find_token()",
    ]
    kept = without_secrets("\n".join(lines))
    for secret in ("wJalr", "ffff", "AKIA", "0123456789", "horse", "MIIE"):
        assert secret not in kept
    assert kept.splitlines()[-2:] == lines[-2:]


def test_what_is_kept_has_a_bound() -> None:
    assert bounded("a" * LARGEST) == b"a" * LARGEST
    cut = bounded("a" * (LARGEST + 5))
    assert cut == b"a" * LARGEST + b"\n[... 5 bytes left out ...]\n"
