"""Text and shards on S3: the same bytes as in folders, fetched once by a machine, whatever is damaged named."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from servers.fault_proxy import FaultProxy
from servers.fixtures import fresh_url
from support.prepared import SMALL, contents, documents, write_jsonl

from muon_core.config.run import DataConfig, ModelConfig, RunConfig
from muon_core.data import listing, prepare, prepared, set_cache
from muon_core.data.batches import load_data
from muon_core.data.prepare import Progress, prepare_set
from muon_core.data.prepared import local_copy, read_manifest
from muon_core.store.open import open_storage
from muon_core.store.s3.bucket import Bucket, open_bucket
from muon_core.store.storage import StoreError
from search_spaces.parameters import locate_corpus

TEXTS = documents(80)


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture
def place(s3_url: str, tmp_path: Path) -> str:
    """A prefix with text: a plain file and a packed one."""
    storage, plain = open_storage(s3_url), write_jsonl(tmp_path / "a.jsonl", TEXTS[:50]).read_bytes()
    storage.put("texts/a.jsonl", plain)
    packed = zstandard.compress(write_jsonl(tmp_path / "b.jsonl", TEXTS[40:]).read_bytes())
    storage.put("texts/deep/b.jsonl.zst", packed)
    (tmp_path / "b.jsonl.zst").write_bytes(packed)
    return s3_url


@pytest.fixture
def a_set(place: str) -> str:
    prepare_set([f"{place}/texts/a.jsonl"], f"{place}/set", SMALL)
    return f"{place}/set"


def test_text_and_shards_on_s3_are_those_of_folders(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice on the way, too."""
    monkeypatch.setattr(prepare, "BLOCK", 1500)
    monkeypatch.setattr(prepare, "SAVE_EVERY_S", 0.0)
    here = prepare_set([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.zst")], str(tmp_path / "set"), SMALL)
    for limit in (20, 60):
        with pytest.raises(Killed):
            prepare_set([f"{place}/texts"], f"{place}/set", SMALL, report=killing(limit))
    there = prepare_set([f"{place}/texts"], f"{place}/set", SMALL)
    assert there.content_hash == here.content_hash
    stored = open_storage(f"{place}/set")
    names = [key for key, _ in stored.list("")]
    assert names == sorted(contents(tmp_path / "set"))
    for name in names:
        if name != "manifest.json":
            assert stored.get(name) == (tmp_path / "set" / name).read_bytes()
    assert [found.place for found in listing.find_sets(place)] == [f"{place}/set"]
    assert listing.verify(f"{place}/set", lambda _: None) == []


def killing(limit: int) -> Callable[[Progress], None]:
    def kill(progress: Progress) -> None:
        if progress.documents > limit:
            raise Killed

    return kill


def test_globs_and_single_objects_name_text(place: str, tmp_path: Path) -> None:
    ways = [f"{place}/texts/*.jsonl.zst", f"{place}/texts/deep/b.jsonl.zst", f"{place}/texts/deep"]
    sets = [prepare_set([way], str(tmp_path / f"{i}"), SMALL) for i, way in enumerate(ways)]
    assert len({done.content_hash for done in sets}) == 1
    with pytest.raises(ValueError, match="there is no such object"):
        prepare_set([f"{place}/text/*"], str(tmp_path / "none"), SMALL)


def data_of(place: str) -> DataConfig:
    return DataConfig(corpus=place, seq_len=16, validation_tokens=128)


def test_a_machine_fetches_a_set_once(a_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = Bucket.read, list[str]()

    def watched(self: Bucket, key: str, start: int, length: int) -> bytes:
        seen.append(key)
        return read(self, key, start, length)

    monkeypatch.setattr(Bucket, "read", watched)
    monkeypatch.setattr(set_cache, "RANGE", 1000)
    with ThreadPoolExecutor(4) as pool:  # as the workers of one node
        folders = set(pool.map(lambda _: local_copy(data_of(a_set), 300, tmp_path / "cache"), range(4)))
    (folder,) = folders
    stored = open_storage(a_set)
    for shard in read_manifest(a_set).all_shards:
        assert (folder / shard.name).read_bytes() == stored.get(shard.name)
        assert seen.count(shard.name) == -(-shard.bytes // 1000)
    assert load_data(data_of(a_set), 300, folder).batch(0, 0, 4).shape == (4, 17)
    planned = locate_corpus(data_of(a_set), tmp_path)
    assert (planned.corpus, planned.corpus_sha256) == (a_set, read_manifest(a_set).content_hash)


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_named(
    a_set: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, name = local_copy(data_of(a_set), 300, tmp_path / "cache"), "train-00001.npy"
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert local_copy(data_of(a_set), 300, tmp_path / "cache") == folder
    assert (folder / name).read_bytes() == good
    assert f"{name} is damaged and fetched again" in caplog.text
    open_storage(a_set).put(name, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StoreError, match=rf"{a_set}/{name} is damaged or missing \(sha256 differs\)"):
        local_copy(data_of(a_set), 300, tmp_path / "other")
    assert listing.verify(a_set, lambda _: None) == [f"{name}: is damaged (sha256 differs)"]
    open_storage(a_set).delete([name])
    with pytest.raises(StoreError, match=f"{name} is missing, though manifest.json names it"):
        local_copy(data_of(a_set), 300, tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.tmp"))


def test_a_server_that_fails_now_and_then_costs_time_only(a_set: str, tmp_path: Path, faults: FaultProxy) -> None:
    faults.script.extend(["reset_before", "slow_down", "ok", "truncated", "reset_after"] * 2)
    prepared._read_manifest.cache_clear()
    folder = local_copy(data_of(a_set), 300, tmp_path / "cache")
    assert not listing.verify(str(folder), lambda _: None)


def test_the_cache_keeps_to_its_bound(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set used longest ago goes, unless a process has it open."""
    places = []
    for i in range(3):
        text = str(write_jsonl(tmp_path / f"{i}.jsonl", documents(80, seed=i)))
        places.append(fresh_url())
        prepare_set([text], places[-1], replace(SMALL, keep_duplicates=True))
    size = max(read_manifest(place).num_bytes for place in places)
    monkeypatch.setenv("MUON_DATA_CACHE_BYTES", str(int(2.7 * size)))
    cache, folders = tmp_path / "cache", []
    for i, one in enumerate(places[:2]):
        folders.append(local_copy(data_of(one), 300, cache))
        os.utime(folders[-1], (time.time() - 100 + i,) * 2)
    folders.append(local_copy(data_of(places[2]), 300, cache))
    assert all(folder.is_dir() for folder in folders)  # this process has them all
    for file in set_cache._held.values():
        file.close()
    set_cache._held.clear()
    other = fresh_url()
    prepare_set([str(tmp_path / "a.jsonl")], other, SMALL)
    folders.append(local_copy(data_of(other), 300, cache))
    assert [folder.is_dir() for folder in folders] == [False, False, True, True]
    monkeypatch.setenv("MUON_DATA_CACHE_BYTES", "1000")
    with pytest.raises(StoreError, match=r"the data set takes .* GB, .*; raise MUON_DATA_CACHE_BYTES to \d+ at least"):
        local_copy(data_of(places[0]), 300, cache)


def test_what_does_not_suit_a_run_is_said_before_anything_is_fetched(a_set: str) -> None:
    run = RunConfig(data=data_of(a_set), model=ModelConfig(vocab_size=299))
    with pytest.raises(ValueError, match=r"its tokenizer has 300 tokens, model\.vocab_size is 299"):
        prepared.check_run(run)
    with pytest.raises(ValueError, match=r"holds no prepared data set \(manifest\.json is missing\)"):
        read_manifest(f"{a_set}/nowhere")


def test_a_part_of_an_object_is_read(place: str) -> None:
    bucket = open_bucket(place)
    whole = bucket.get("texts/a.jsonl")
    assert bucket.read("texts/a.jsonl", 10, 20) == whole[10:30]
    assert bucket.read("texts/a.jsonl", len(whole) - 5, 100) == whole[-5:]
    assert bucket.read("texts/a.jsonl", 5, 0) == b""
    with pytest.raises(FileNotFoundError):
        bucket.read("texts/none", 0, 10)
