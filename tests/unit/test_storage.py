"""A folder as object store: whole objects or none, and messages that say what to do."""

from pathlib import Path

import pytest

from muon_core.storage import Folder, StoreError, check_writable, open_storage


def test_put_then_get_and_list_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("a/b/c.bin", b"123")
    folder.put("a/d.bin", b"")
    assert folder.get("a/b/c.bin") == b"123"
    assert folder.list("a/") == [("a/b/c.bin", 3), ("a/d.bin", 0)]
    assert folder.list("a/b/") == [("a/b/c.bin", 3)]
    assert folder.list("missing/") == []


def test_list_hides_the_leftovers_of_a_killed_writer(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("a/b", b"1")
    (tmp_path / "a" / ".b.0123.tmp").write_bytes(b"half")
    assert folder.list("a/") == [("a/b", 1)]


def test_delete_forgives_missing_objects(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("a", b"1")
    folder.delete(["a", "a", "never"])
    assert folder.list("") == []


def test_put_over_a_file_used_as_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("I am a file")
    with pytest.raises(StoreError, match=r"cannot write to .*choose another store"):
        check_writable(Folder(tmp_path / "store"))


def test_check_writable_leaves_no_object(tmp_path: Path) -> None:
    check_writable(Folder(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_open_storage_refuses_an_unknown_scheme() -> None:
    with pytest.raises(StoreError, match="unknown scheme 'ftp'"):
        open_storage("ftp://host/x")
