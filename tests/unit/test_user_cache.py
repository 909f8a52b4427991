"""Where computed files go, whatever home a user has."""

import os
from pathlib import Path

import pytest

from muon_core.user_cache import user_cache


@pytest.fixture(autouse=True)
def _places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


def test_the_users_own_choice_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert user_cache() == tmp_path / "mine"


def test_by_default_it_is_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache"


@pytest.mark.parametrize("exists", [True, False])
def test_a_home_that_is_read_only_or_none_gives_way_to_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exists: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path if exists else tmp_path / "none"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere but to such a disk
    assert user_cache() == tmp_path / "temporary" / f"muon-{os.getuid()}"


def test_a_user_without_an_entry_has_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert user_cache() == tmp_path / "temporary" / f"muon-{os.getuid()}"
