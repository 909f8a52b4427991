"""Copies of immutable objects: fetched once, never stale, and the oldest gone beyond the bound."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from muon_core.store.bundles import FROM
from muon_core.store.cache import Cached, cache_folder, cached
from muon_core.store.folder import Folder
from muon_core.store.parquet import digest
from muon_core.store.storage import StoreError


class Remote(Folder):
    """A folder as if far away, that counts what is fetched from it."""

    is_local = False

    def __init__(self, root: Path, place: str) -> None:
        super().__init__(root)
        self.place = place
        self.fetched: list[str] = []

    def get_many(self, keys: Iterable[str]) -> list[bytes]:
        wanted = list(keys)
        self.fetched += wanted
        return super().get_many(wanted)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Remote(tmp_path / "store", "http://here/bucket/x")


def named(data: bytes) -> str:
    """Key of a final with this content."""
    return f"final/table=val/run=r/00001.aa.000000000009-{digest(data)}.parquet"


def test_an_immutable_object_is_fetched_once(remote: Remote) -> None:
    remote.put("final/a", b"12")
    for _ in range(2):
        assert cached(remote).get("final/a") == b"12"
    assert remote.fetched == ["final/a"]


def test_what_may_change_is_always_fetched(remote: Remote) -> None:
    for text in (b"1", b"2"):
        remote.put("checkpoints/r/latest.json", text)
        assert cached(remote).get("checkpoints/r/latest.json") == text


def test_objects_come_in_the_order_asked_for_whether_here_or_not(remote: Remote) -> None:
    for name in "abc":
        remote.put(f"final/{name}", name.encode())
    store = cached(remote)
    store.get("final/b")
    assert store.get_many(f"final/{name}" for name in "cbab") == [b"c", b"b", b"a", b"b"]
    assert remote.fetched == ["final/b", "final/c", "final/a"]


@pytest.fixture
def many(remote: Remote) -> dict[str, bytes]:
    """Objects enough for one file, some named after their content."""
    objects = {f"attempts/r{n}/x.json": b"a" * n for n in range(FROM)}
    objects |= {named(data): data for data in (b"1" * n for n in range(1, 9))}
    remote.put_many(objects)
    return objects


def bundles() -> list[Path]:
    return list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.bundle"))


def test_many_objects_are_kept_in_one_file_and_what_comes_later_in_its_own(
    remote: Remote, many: dict[str, bytes]
) -> None:
    for _ in range(2):
        assert cached(remote).get_many(many) == list(many.values())
    assert sorted(remote.fetched) == sorted(many)
    remote.put("sweeps/later", b"1")
    assert cached(remote).get_many(["sweeps/later", *many]) == [b"1", *many.values()]
    assert len(remote.fetched) == len(many) + 1
    assert len(bundles()) == 1


@pytest.mark.parametrize("at", [0, 7, 8, 200, -1, None], ids=str)
def test_a_damaged_bundle_is_never_believed(remote: Remote, many: dict[str, bytes], at: int | None) -> None:
    cached(remote).get_many(many)
    (path,) = bundles()
    data = bytearray(path.read_bytes())
    if at is None:
        del data[len(data) // 2 :]
    else:
        data[at] ^= 0x10
    path.write_bytes(data)
    assert cached(remote).get_many(many) == list(many.values())
    assert len(remote.fetched) > len(many)


def test_many_objects_that_may_change_leave_nothing_behind(remote: Remote) -> None:
    objects = {f"ledger/r{n}/x.json": b"a" for n in range(FROM)}
    remote.put_many(objects)
    assert cached(remote).get_many(objects) == list(objects.values())
    assert bundles() == []


def test_local_copies_fetches_what_is_small_and_leaves_the_rest_to_the_store(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = named(b"12"), named(b"56789")
    remote.put(small, b"12")
    remote.put("live/b", b"34")
    store = cached(remote)
    assert isinstance(store, Cached)
    (path,) = store.local_copies({small: 2, "live/b": 2}).files.values()
    assert Path(path).read_bytes() == b"12"
    remote.put(large, b"56789")
    monkeypatch.setattr("muon_core.store.cache.FETCH_BYTES", 4)
    assert set(store.local_copies({small: 2, large: 5}).files) == {small}


@pytest.mark.parametrize("damage", [b"", b"1", b"13", b"123", b"\0" * 50])
@pytest.mark.parametrize("key", [named(b"12"), "attempts/r/00001.aa--00000.0--000000000000.json"])
def test_a_damaged_copy_is_fetched_again(remote: Remote, key: str, damage: bytes) -> None:
    remote.put(key, b"12")
    store = cached(remote)
    store.get(key)
    (cache_folder(remote.place) / key).write_bytes(damage)
    assert [store.get(key), store.get(key)] == [b"12", b"12"]
    assert remote.fetched == [key, key]


def test_a_torn_copy_is_no_local_path(remote: Remote) -> None:
    key = named(b"12")
    remote.put(key, b"12")
    store = cached(remote)
    assert isinstance(store, Cached)
    (path,) = store.local_copies({key: 2}).files.values()
    Path(path).write_bytes(b"1")
    store.local_copies({key: 2})
    assert Path(path).read_bytes() == b"12"


def test_an_object_that_differs_from_its_name_is_told_and_not_kept(remote: Remote) -> None:
    good, bad = named(b"12"), named(b"34")
    remote.put(good, b"12")
    remote.put(bad, b"35")
    store = cached(remote)
    assert isinstance(store, Cached)
    found = store.local_copies({good: 2, bad: 2})
    assert (set(found.files), found.differing) == ({good}, [bad])
    assert store.get(bad) == b"35"
    assert remote.fetched == [good, bad, bad]


def test_using_a_copy_does_not_change_when_it_was_written(remote: Remote) -> None:
    """That time tells whether the copy is the one that was looked at."""
    key = named(b"12")
    remote.put(key, b"12")
    store = cached(remote)
    assert isinstance(store, Cached)
    path = Path(store.local_copies({key: 2}).files[key])
    os.utime(path, (1_000_000_000, 1_000_000_000))
    store.local_copies({key: 2})
    assert path.stat().st_mtime == 1_000_000_000
    assert path.stat().st_atime > 1_000_000_000


@pytest.mark.parametrize("text", ["2GB", "-1", "1.5"])
def test_a_bound_that_is_no_number_is_refused_with_an_example(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("MUON_CACHE_BYTES", text)
    with pytest.raises(StoreError, match=f"MUON_CACHE_BYTES is '{text}'; give whole bytes, such as 2147483648"):
        cached(remote)


def test_stores_of_one_name_on_two_servers_share_nothing(remote: Remote, tmp_path: Path) -> None:
    other = Remote(tmp_path / "other", "http://there/bucket/x")
    remote.put("final/a", b"1")
    other.put("final/a", b"2")
    assert (cached(remote).get("final/a"), cached(other).get("final/a")) == (b"1", b"2")


def test_the_copies_used_longest_ago_go_beyond_the_bound(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUON_CACHE_BYTES", "10")
    store = cached(remote)
    keys = [named(data) for data in (b"1111", b"2222", b"3333")]
    for age, key, data in zip((3, 2, 1), keys, (b"1111", b"2222", b"3333"), strict=True):
        remote.put(key, data)
        store.get(key)
        past = 1_000_000_000 - age
        os.utime(cache_folder(remote.place) / key, (past, past))
    left = {path.name for path in cache_folder(remote.place).rglob("*") if path.is_file()}
    assert left == {Path(key).name for key in keys[1:]}


def test_copies_of_the_last_minutes_stay_beyond_the_bound(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUON_CACHE_BYTES", "5")
    for data in (b"1111", b"2222"):
        remote.put(named(data), data)
        cached(remote).get(named(data))
    assert len([path for path in cache_folder(remote.place).rglob("*") if path.is_file()]) == 2


def test_an_unwritable_cache_is_no_error(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    remote.put("final/a", b"1")
    assert cached(remote).get("final/a") == b"1"


def test_a_folder_and_a_cache_of_no_bytes_are_read_directly(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    assert cached(folder) is folder
    monkeypatch.setenv("MUON_CACHE_BYTES", "0")
    assert cached(remote) is remote
