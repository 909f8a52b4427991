"""A folder as object store: whole objects or none, and messages that say what to do."""

import os
import time
from pathlib import Path
from uuid import uuid4

import pytest

from muon_core.store import folder as folder_module
from muon_core.store.folder import Folder
from muon_core.store.open import open_storage
from muon_core.store.storage import StoreError, check_writable
from ray_jobs.cli.commands import cli
from ray_jobs.cli.main import main


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


def test_keys_are_those_of_a_list_also_below_a_link(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "store")
    folder.put("a/b", b"1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c").write_bytes(b"22")
    (tmp_path / "store" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "store" / "a" / "to-nothing").symlink_to(tmp_path / "gone")
    (tmp_path / "store" / "a" / ".hidden").write_bytes(b"")
    assert folder.list("a/") == [("a/b", 1), ("a/linked/c", 2)]
    assert folder.keys("a/") == ["a/b", "a/linked/c"]
    assert folder.keys("missing/") == []


def test_delete_forgives_missing_objects(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put("a", b"1")
    folder.delete(["a", "a", "never"])
    assert folder.list("") == []


def test_what_cannot_be_removed_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()  # which unlink refuses, also for the user root
    with pytest.raises(StoreError, match=r"cannot remove objects from .*; check its permissions"):
        Folder(tmp_path).delete(["a"])


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


@pytest.mark.parametrize("url", [Path("s3://bucket/prefix"), "s3:/bucket", "s3:bucket"])
def test_open_storage_refuses_an_s3_url_that_lost_a_slash(url: str | Path) -> None:
    with pytest.raises(StoreError, match=r"is s3://bucket/prefix, as text with two slashes: a Path drops one"):
        open_storage(url)


def test_put_takes_a_view_of_a_buffer(tmp_path: Path) -> None:
    Folder(tmp_path).put("a", memoryview(b"0123456")[2:5])
    assert Folder(tmp_path).get("a") == b"234"


def test_put_syncs_every_folder_that_got_a_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(folder_module, "_fsync_folder", synced.append)
    folder = Folder(tmp_path / "store")
    folder.put("a/b/c.bin", b"1")
    assert sorted(synced) == [tmp_path, tmp_path / "store", tmp_path / "store/a", tmp_path / "store/a/b"]
    synced.clear()
    folder.put("a/b/d.bin", b"1")
    assert synced == [tmp_path / "store/a/b"]


def test_what_cannot_be_read_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(StoreError, match=r"^cannot read .*/a: Permission denied; check its permissions$"):
        Folder(tmp_path).get("a")


def test_a_file_that_may_not_be_read_is_one_line_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError("Permission denied (os error 13): /store/x.parquet")  # as Polars says it

    monkeypatch.setattr(cli, "main", denied)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "muon: Permission denied (os error 13): /store/x.parquet; check the permissions\n"
    )


def test_leftovers_of_killed_writers_go_after_a_day_and_nothing_else_does(tmp_path: Path) -> None:
    stale, fresh = (tmp_path / "a" / f".b.{uuid4().hex}.tmp" for _ in range(2))
    other = tmp_path / "a" / ".b.tmp"
    Folder(tmp_path).put("a/b", b"1")
    for path in (stale, fresh, other):
        path.write_bytes(b"half")
    for path in (stale, other, tmp_path / "a/b"):
        os.utime(path, (time.time() - 86_500,) * 2)
    os.utime(fresh, (time.time() - 86_300,) * 2)
    check_writable(Folder(tmp_path))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {fresh, other, tmp_path / "a/b"}
