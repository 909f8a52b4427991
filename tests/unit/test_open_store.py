"""What a reader of a results store sees: typed frames, complete rows, each once, at any moment."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.analysis_fixtures import (
    FakeRun,
    demo_runs,
    known_runs,
    loss_curve,
    put_final,
    put_rows,
    start_record,
    write_attempt,
    write_run,
    write_store,
    write_sweep,
)

import analysis
from analysis.scan import polars_schema
from muon_core.store import damage as look
from muon_core.store.cache import Cached, Copies
from muon_core.store.folder import Folder
from muon_core.store.keys import ROOT, Attempt, final_key, live_key, pack_key
from muon_core.store.parquet import digest, encode
from muon_core.store.storage import StoreError
from muon_core.store.writer import RunWriter
from muon_core.tables import RUNS, TABLES, VAL

RUN = "muon-s1-0badcafe"


def val_row(step: int, seq: int, attempt: int = 1) -> dict[str, object]:
    return {"run_id": RUN, "attempt": attempt, "seq": seq, "step": step, "tokens": step * 10, "val_loss": 4.0 + attempt}


def put_val(storage: Folder, attempt: Attempt, seqs: range) -> None:
    rows = [val_row(step=seq, seq=seq, attempt=attempt.number) for seq in seqs]
    put_rows(storage, live_key("val", RUN, attempt.id, seqs.start, seqs.stop), VAL, rows)


def seen(storage: Folder) -> list[tuple[int, int]]:
    """(seq, attempt) of the visible val rows."""
    return sorted(analysis.open_store(storage.url).val.select("seq", "attempt").collect().rows())


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def fake() -> FakeRun:
    return FakeRun("muon", 1, {})


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_an_empty_store_is_empty_and_typed(storage: Folder, name: str) -> None:
    write_sweep(storage, "demo", [])
    frame = analysis.open_store(storage.url).table(name).collect()
    arrow = pl.from_arrow(TABLES[name].schema.empty_table())
    assert isinstance(arrow, pl.DataFrame)
    assert (frame.height, frame.schema) == (0, arrow.schema)


@pytest.mark.parametrize("name", ["runs", "train", "val", "layers"])
def test_a_table_of_a_sweep_adds_block_and_role_to_the_schema(storage: Folder, name: str) -> None:
    write_sweep(storage, "demo", [])
    frame = analysis.open_store(storage.url).sweep("demo").table(name)
    arrow = pl.from_arrow(TABLES[name].schema.empty_table())
    assert isinstance(arrow, pl.DataFrame)
    assert frame.collect_schema() == {**arrow.schema, "block": pl.String, "role": pl.String}


@pytest.mark.parametrize("folder", ["nothing_here", ""])
def test_open_store_refuses_a_folder_without_results(tmp_path: Path, folder: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"is no results store: it has neither sweeps/ nor attempts/; give the folder"):
        analysis.open_store(tmp_path / folder)


def test_open_store_refuses_an_unknown_scheme() -> None:
    with pytest.raises(StoreError, match="unknown scheme 'ftp'"):
        analysis.open_store("ftp://host/results")


def test_an_unknown_table_is_answered_with_the_tables_there_are(storage: Folder) -> None:
    write_sweep(storage, "demo", [])
    with pytest.raises(ValueError, match=f"no table 'loss'; the tables are {', '.join(sorted(TABLES))}"):
        analysis.open_store(storage.url).table("loss")


def test_an_unknown_sweep_is_answered_with_the_sweeps_there_are(storage: Folder) -> None:
    for name in ("demo", "other"):
        write_sweep(storage, name, [])
    with pytest.raises(ValueError, match=r"no sweep 'dmeo' in .*; it holds: demo, other"):
        analysis.open_store(storage.url).sweep("dmeo")


def test_rows_of_a_running_run_are_read_once_from_its_newest_segment(storage: Folder, fake: FakeRun) -> None:
    attempt = write_attempt(storage, fake)
    for end in (2, 5):  # the second flush holds the rows of the first
        put_val(storage, attempt, range(end))
    put_val(storage, attempt, range(5, 6))
    assert seen(storage) == [(seq, 1) for seq in range(6)]
    assert analysis.open_store(storage.url).runs.collect()["status"].to_list() == ["running"]


def test_a_segment_written_between_two_pages_of_a_listing_is_not_missed(
    storage: Folder, fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first page ends before [0, 5) is written, the second begins after it; [5, 8) is written in between, too."""
    attempt = write_attempt(storage, fake)
    for seqs in (range(4), range(5), range(5, 8)):
        put_val(storage, attempt, seqs)
    missed, real, listings = live_key("val", fake.run_id, attempt.id, 0, 5), Folder.keys, list[str]()

    def in_pages(self: Folder, prefix: str) -> list[str]:
        listings.append(prefix)
        first = listings.count(prefix) == 1
        return [key for key in real(self, prefix) if not (first and key == missed)]

    monkeypatch.setattr(Folder, "keys", in_pages)
    assert [seq for seq, _ in seen(storage)] == list(range(8))
    assert listings.count("live/table=val/") == 2


def test_a_resumed_attempt_replaces_the_rows_after_its_checkpoint(storage: Folder, fake: FakeRun) -> None:
    first = write_attempt(storage, fake)
    put_val(storage, first, range(8))
    second = write_attempt(storage, fake, n=2, parent=first.id, resume=5)
    assert seen(storage) == [(seq, 1) for seq in range(5)]
    put_val(storage, second, range(5, 7))
    put_val(storage, first, range(8, 9))  # the first attempt is still alive somewhere
    assert seen(storage) == [(seq, 1) for seq in range(5)] + [(5, 2), (6, 2)]


def test_a_final_object_stands_for_everything_up_to_its_attempt(storage: Folder, fake: FakeRun) -> None:
    attempt = write_attempt(storage, fake)
    put_val(storage, attempt, range(3))
    put_final(storage, VAL, attempt, 3, [val_row(seq, seq) for seq in range(3)])
    assert seen(storage) == [(0, 1), (1, 1), (2, 1)]
    write_attempt(storage, fake, n=2, parent=attempt.id, resume=2)
    assert seen(storage) == [(0, 1), (1, 1)]


def put_pack(storage: Folder, members: list[tuple[str, str, int]], rows: list[dict[str, object]]) -> str:
    """A pack of val rows; the key of its object."""
    data = encode(rows, VAL, final=True)
    key = pack_key("val", digest(data))
    storage.put(key, data)
    manifest = {"members": members, "bytes": len(data)}
    storage.put(f"{key.removesuffix('.parquet')}.json", json.dumps(manifest).encode())
    return key


def test_rows_in_a_pack_are_read_once_and_only_of_the_runs_it_stands_for(storage: Folder) -> None:
    """Three runs in one pack: one whole, one whose newest attempt goes on below the pack's end, one not a member."""
    runs = [FakeRun(name, 1, {}) for name in ("a", "b", "c")]
    attempts = [write_attempt(storage, run) for run in runs]
    rows = [val_row(seq, seq) | {"run_id": run.run_id} for run in runs for seq in range(3)]
    put_pack(storage, [(run.run_id, attempt.id, 3) for run, attempt in zip(runs[:2], attempts[:2], strict=True)], rows)
    write_attempt(storage, runs[1], n=2, parent=attempts[1].id, resume=2)
    found = analysis.open_store(storage.url).val.select("run_id", "seq").sort("run_id", "seq").collect().rows()
    assert found == [("a-s1-0badcafe", seq) for seq in range(3)] + [("b-s1-0badcafe", seq) for seq in range(2)]


def test_a_0_byte_object_is_refused_by_name(storage: Folder, fake: FakeRun) -> None:
    attempt = write_attempt(storage, fake)
    key = live_key("val", RUN, attempt.id, 0, 3)
    storage.put(key, b"")
    with pytest.raises(ValueError, match=rf"{key} is 0 bytes, a damaged object"):
        analysis.open_store(storage.url).table("val")


@pytest.mark.parametrize("damage", [b"", b"PAR", b"PAR1 cut off in the middle", b"x" * 100])
def test_a_damaged_object_is_named_and_the_rest_read_on_request(
    storage: Folder, fake: FakeRun, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = write_attempt(storage, fake)
    put_val(storage, attempt, range(3))
    key = live_key("val", RUN, attempt.id, 3, 5)
    storage.put(key, damage)
    with pytest.raises(ValueError, match=rf"{key} is {len(damage)} bytes, a damaged object; set MUON_SKIP_DAMAGED=1"):
        analysis.open_store(storage.url).table("val")
    rest = analysis.open_store(storage.url, skip_damaged=True).val.select("seq").collect()["seq"].to_list()
    assert sorted(rest) == [0, 1, 2]
    assert [record.message for record in caplog.records] == [f"left out: {storage.uri(key)} is damaged"]


def test_an_object_without_read_permission_is_not_called_damaged(
    storage: Folder, fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told through the calls that fail, for the user root may read everything."""
    put_val(storage, write_attempt(storage, fake), range(3))

    def denied(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("muon_core.store.damage.open", denied, raising=False)
    monkeypatch.setattr(Folder, "get", denied)
    with pytest.raises(StoreError, match=r"000000000003\.parquet may not be read; give this user the permission to"):
        analysis.open_store(storage.url).table("val")


def two_runs(storage: Folder) -> tuple[FakeRun, FakeRun, Attempt, Attempt]:
    """Runs `good` and `bad` with three val rows each, in finals; a sweep `one` of the first."""
    runs = good, bad = FakeRun("good", 1, {}), FakeRun("bad", 1, {})
    attempts = first, second = [write_attempt(storage, run) for run in runs]
    for run, attempt in zip(runs, attempts, strict=True):
        rows = [val_row(seq, seq) | {"run_id": run.run_id} for seq in range(3)]
        put_final(storage, VAL, attempt, 3, rows)
        put_final(storage, RUNS, attempt, 3, [{"run_id": run.run_id, "status": "done"}])
    write_sweep(storage, "one", [{"run_id": good.run_id, "block": "b", "role": "candidate", "arm": "good-1"}])
    return good, bad, first, second


def final_of(storage: Folder, table: str, run: FakeRun) -> str:
    """Key of the run's final."""
    ((key, _),) = storage.list(f"final/table={table}/run={run.run_id}/")
    return key


BREAKAGES = {
    "a missing start record": lambda s, bad, attempt: (
        s.put(Attempt("00002.cc", attempt.id, 2, bad.run_id).key, b"{}"),
        s.delete([attempt.key]),
    ),
    "a damaged start record": lambda s, bad, attempt: (
        s.put(attempt.key, b"{"),
        s.delete([final_of(s, "runs", bad)]),
    ),
    "a damaged end record": lambda s, bad, attempt: s.put(final_of(s, "runs", bad), b"x"),
    "a damaged final": lambda s, bad, attempt: s.put(final_of(s, "val", bad), b"x"),
    "a flipped bit in a final": lambda s, bad, attempt: s.put(
        final_of(s, "val", bad), flipped(s.get(final_of(s, "val", bad)))
    ),
}


def flipped(data: bytes) -> bytes:
    """`data` with one bit changed, in the page of its losses."""
    losses = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(VAL.schema.names.index("val_loss"))
    at = losses.data_page_offset + losses.total_compressed_size - 1
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_run_is_no_concern_of_a_sweep_without_it(storage: Folder, breakage: str) -> None:
    good, bad, _, attempt = two_runs(storage)
    BREAKAGES[breakage](storage, bad, attempt)
    view = analysis.open_store(storage.url).sweep("one")
    assert view.runs.collect()["run_id"].to_list() == [good.run_id]
    assert view.val.collect()["seq"].sort().to_list() == [0, 1, 2]


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_run_is_named_and_the_others_read_on_request(
    storage: Folder, breakage: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad, _, attempt = two_runs(storage)
    BREAKAGES[breakage](storage, bad, attempt)
    with pytest.raises(ValueError, match=rf"{bad.run_id}.*set MUON_SKIP_DAMAGED=1 to read the"):
        [analysis.open_store(storage.url).table(name) for name in ("runs", "val")]
    store = analysis.open_store(storage.url, skip_damaged=True)
    assert good.run_id in store.runs.collect()["run_id"].to_list()
    assert good.run_id in store.val.collect()["run_id"].to_list()
    assert any(bad.run_id in record.message and "left out" in record.message for record in caplog.records)


@pytest.mark.parametrize("part", ["parquet", "json"])
@pytest.mark.parametrize("damage", [None, b"", b"{}", b"x" * 50], ids=["gone", "empty", "no fields", "other"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_damaged_pack_hides_nothing_for_finals_hold_its_rows(
    storage: Folder, part: str, damage: bytes | None, skip: bool
) -> None:
    good, bad, first, second = two_runs(storage)
    rows = [val_row(seq, seq) | {"run_id": run.run_id} for run in (good, bad) for seq in range(3)]
    pack = put_pack(storage, [(good.run_id, first.id, 3), (bad.run_id, second.id, 3)], rows)
    key = pack if part == "parquet" else f"{pack.removesuffix('.parquet')}.json"
    if damage is None:
        storage.delete([key])
    else:
        storage.put(key, damage)
    store = analysis.open_store(storage.url, skip_damaged=skip)
    assert store.val.select("run_id", "seq").collect().sort("run_id", "seq").rows() == [
        (run, seq) for run in (bad.run_id, good.run_id) for seq in range(3)
    ]


def test_a_pack_damaged_inside_is_named_and_passed_over_on_request(storage: Folder) -> None:
    good, bad, first, second = two_runs(storage)
    rows = [val_row(seq, seq) | {"run_id": run.run_id} for run in (good, bad) for seq in range(3)]
    pack = put_pack(storage, [(good.run_id, first.id, 3), (bad.run_id, second.id, 3)], rows)
    data = storage.get(pack)
    storage.put(pack, data[:20] + bytes(byte ^ 255 for byte in data[20:-20]) + data[-20:])
    assert f"{pack} is a damaged copy of finals that are whole; delete it" in (
        analysis.open_store(storage.url).damaged() or ""
    )
    assert analysis.open_store(storage.url, skip_damaged=True).val.collect().height == 6


def test_a_sweep_looks_at_the_objects_of_its_runs_only(storage: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    good, *_ = two_runs(storage)
    asked: list[str] = []
    monkeypatch.setattr("muon_core.store.damage.local_copies", lambda _, sizes: asked.extend(sizes) or Copies({}, []))
    analysis.open_store(storage.url).sweep("one").table("val")
    assert {key.split("/run=")[1].split("/")[0] for key in asked} == {good.run_id}


def test_a_filter_on_run_id_opens_the_files_of_that_run_only(storage: Folder) -> None:
    good, *_ = two_runs(storage)
    plan = analysis.open_store(storage.url).val.filter(run_id=good.run_id).explain()
    assert f"run={good.run_id}/" in plan
    assert "run=bad" not in plan


def test_a_store_in_a_folder_named_like_a_column_is_read(tmp_path: Path) -> None:
    storage = Folder(tmp_path / "run=7" / "a=b")
    two_runs(storage)
    frame = analysis.open_store(storage.url).val.collect()
    assert (frame.columns, frame.height) == (list(VAL.columns), 6)


@pytest.fixture
def copies(storage: Folder, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache that is put before `storage`."""
    folder = tmp_path_factory.mktemp("copies")
    monkeypatch.setattr("analysis.store.cached", lambda _: Cached(storage, folder, 1 << 20))
    return folder


@pytest.mark.parametrize("damage", [lambda data: bytes(len(data)), flipped])
def test_a_damaged_copy_on_this_machine_is_fetched_again(
    storage: Folder, fake: FakeRun, copies: Path, damage: Callable[[bytes], bytes]
) -> None:
    key = put_final(storage, VAL, write_attempt(storage, fake), 3, [val_row(seq, seq) for seq in range(3)])
    data = storage.get(key)
    assert analysis.open_store(storage.url).val.collect().height == 3
    (copies / key).write_bytes(damage(data))
    assert analysis.open_store(storage.url).val.select("seq", "val_loss").collect().rows() == [
        (seq, 5.0) for seq in range(3)
    ]
    assert (copies / key).read_bytes() == data


def test_an_object_that_differs_from_its_name_is_told_when_it_is_fetched(
    storage: Folder, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a question that is too large to compare what lies here already."""
    good, bad, *_ = two_runs(storage)
    monkeypatch.setattr("muon_core.store.damage.CHECKED_BYTES", 0)
    key = final_of(storage, "val", bad)
    storage.put(key, flipped(storage.get(key)))
    with pytest.raises(ValueError, match=rf"{key} is \d+ bytes, a damaged object; set MUON_SKIP_DAMAGED=1"):
        analysis.open_store(storage.url).table("val")
    assert not (copies / key).exists()
    rest = analysis.open_store(storage.url, skip_damaged=True).val.collect()
    assert set(rest["run_id"]) == {good.run_id}


def test_an_object_that_was_damaged_on_its_way_is_fetched_again(
    storage: Folder, fake: FakeRun, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = put_final(storage, VAL, write_attempt(storage, fake), 3, [val_row(seq, seq) for seq in range(3)])
    answers = iter([flipped(storage.get(key))])
    monkeypatch.setattr(Folder, "get_many", lambda self, keys: [next(answers, None) or self.get(key) for key in keys])
    assert analysis.open_store(storage.url).val.collect()["val_loss"].to_list() == [5.0] * 3
    assert (copies / key).exists()


def test_what_was_compared_once_is_not_read_again_until_it_changes(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, *_ = two_runs(storage)
    looked: list[str] = []
    is_sound = look._is_sound
    monkeypatch.setattr(look, "_is_sound", lambda *a, **k: looked.append(a[1]) or is_sound(*a, **k))
    for _ in range(2):
        analysis.open_store(storage.url).table("val")
    assert sorted(looked) == sorted(storage.uri(final_of(storage, "val", run)) for run in (good, bad))
    (path := storage.root / final_of(storage, "val", bad)).write_bytes(flipped(path.read_bytes()))
    with pytest.raises(ValueError, match="a damaged object"):
        analysis.open_store(storage.url).table("val")


def test_more_bytes_than_a_question_may_read_ahead_are_only_glanced_at(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bad, *_ = two_runs(storage)
    (path := storage.root / final_of(storage, "val", bad)).write_bytes(flipped(path.read_bytes()))
    both = sum(size for _, size in storage.list("final/table=val/"))
    monkeypatch.setattr("muon_core.store.damage.CHECKED_BYTES", both - 1)
    assert analysis.open_store(storage.url).val.collect_schema() == polars_schema(VAL)
    with pytest.raises(ValueError, match="a damaged object"):
        analysis.open_store(storage.url).run(bad.run_id).table("val")
    monkeypatch.setattr("muon_core.store.damage.CHECKED_BYTES", both)
    with pytest.raises(ValueError, match="a damaged object"):
        analysis.open_store(storage.url).table("val")


@pytest.mark.parametrize(("name", "final"), [("val", True), ("val", False), ("runs", True)])
def test_an_object_of_a_newer_schema_is_refused_by_name_in_a_store_marked_by_an_older(
    storage: Folder, fake: FakeRun, name: str, final: bool
) -> None:
    """The store was marked by this release: the object was copied there."""
    attempt = write_attempt(storage, fake)
    table = TABLES[name]
    rows = [val_row(0, 0)] if name == "val" else [{"run_id": RUN, "status": "done"}]
    written = pa.Table.from_pylist(rows, schema=table.schema).replace_schema_metadata({"muon_schema": "2"})
    sink = io.BytesIO()
    pq.write_table(written, sink)
    live, named = live_key(name, RUN, attempt.id, 0, 1), digest(sink.getvalue())
    key = final_key(name, RUN, attempt.id, 1, named) if final else live
    storage.put(key, sink.getvalue())
    with pytest.raises(ValueError, match=rf"{key} was written with schema 2, this release reads up to 1; update"):
        analysis.open_store(storage.url).table(name)


def test_narrower_numbers_of_an_older_release_are_read(storage: Folder, fake: FakeRun) -> None:
    attempt = write_attempt(storage, fake)
    narrow = {"val_loss": pa.float32(), "step": pa.int32(), "attempt": pa.int16()}
    table = pa.Table.from_pylist([val_row(0, 0) | {"val_loss": 0.1}], schema=VAL.schema)
    table = table.cast(pa.schema([field.with_type(narrow.get(field.name, field.type)) for field in table.schema]))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.put(live_key("val", RUN, attempt.id, 0, 1), sink.getvalue())
    put_rows(storage, live_key("val", RUN, attempt.id, 1, 2), VAL, [val_row(7, 1)])
    frame = analysis.open_store(storage.url).val.sort("seq").collect()
    assert frame.schema == polars_schema(VAL)
    assert frame["val_loss"].to_list() == [float(np.float32(0.1)), 5.0]
    assert frame.select("step", "attempt").rows() == [(0, 1), (7, 1)]


def test_a_store_of_a_newer_release_is_refused_by_readers_and_writers(storage: Folder) -> None:
    writer = RunWriter(storage, RUN, {})
    writer.end(status="done")
    assert storage.list("schema/") == [("schema/00001.json", 2)]
    storage.put("schema/00002.json", b"{}")
    for use in (lambda: analysis.open_store(storage.url), lambda: RunWriter(storage, RUN, {})):
        with pytest.raises(StoreError, match="was written with schema 2, this release reads up to 1; update"):
            use()


def test_a_damaged_end_record_is_refused_by_name(storage: Folder, fake: FakeRun) -> None:
    key = final_key("runs", RUN, write_attempt(storage, fake).id, 3, "0" * 16)
    storage.put(key, b"")
    with pytest.raises(ValueError, match=rf"{key} is damaged"):
        analysis.open_store(storage.url).table("runs")


def test_a_damaged_start_record_is_refused_by_name(storage: Folder, fake: FakeRun) -> None:
    key = write_attempt(storage, fake).key
    storage.put(key, b"{")
    with pytest.raises(ValueError, match=rf"{key} is not JSON"):
        analysis.open_store(storage.url).table("runs")


def test_files_of_other_releases_are_read_in_the_schema_of_this_one(storage: Folder, fake: FakeRun) -> None:
    attempt = write_attempt(storage, fake)
    whole = pa.Table.from_pylist([val_row(0, 0)], schema=VAL.schema)
    older, newer = whole.drop_columns(["val_accuracy"]), whole.append_column("val_surprise", pa.array([1.0]))
    for seq, table in enumerate((older, newer)):
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(table, sink)
        storage.put(live_key("val", RUN, attempt.id, seq, seq + 1), sink.getvalue().to_pybytes())
    frame = analysis.open_store(storage.url).val.collect()
    assert frame.columns == list(VAL.columns)
    assert frame["val_accuracy"].to_list() == [None, None]
    assert frame["val_loss"].to_list() == [5.0, 5.0]


def test_a_run_named_like_a_number_stays_text(storage: Folder) -> None:
    attempt = Attempt("00001.ab", ROOT, 0, "001")
    storage.put(attempt.key, json.dumps(start_record(FakeRun("muon", 1, {})) | {"run_id": "001"}).encode())
    put_rows(storage, live_key("val", "001", attempt.id, 0, 1), VAL, [val_row(0, 0) | {"run_id": "001"}])
    store = analysis.open_store(storage.url)
    assert store.val.filter(pl.col("run_id") == "001").collect().height == 1
    assert store.runs.collect()["run_id"].to_list() == ["001"]


def test_runs_takes_the_start_record_of_a_run_that_has_not_ended(storage: Folder, fake: FakeRun) -> None:
    write_attempt(storage, fake)
    run = analysis.open_store(storage.url).runs.collect().row(0, named=True)
    assert (run["status"], run["attempts"], run["ended_at"], run["lr"]) == ("running", 1, None, 1.0)
    assert run["started_at"].isoformat() == "2026-01-02T03:04:05+00:00"


def test_runs_takes_the_end_record_of_a_run_that_has_ended_without_reading_its_start(
    storage: Folder, fake: FakeRun
) -> None:
    attempt = write_attempt(storage, fake, n=3)
    storage.put(attempt.key, b"not read")
    end = {"run_id": RUN, "status": "failed", "error": "lost", "init_hash": "init1"}
    put_final(storage, RUNS, attempt, 3, [end])
    run = analysis.open_store(storage.url).runs.collect().row(0, named=True)
    assert (run["status"], run["error"], run["attempts"], run["init_hash"]) == ("failed", "lost", 3, "init1")


def test_a_run_that_is_tried_again_is_running(storage: Folder, fake: FakeRun) -> None:
    first = write_attempt(storage, fake)
    put_final(storage, RUNS, first, 3, [{"run_id": RUN, "status": "failed", "error": "x"}])
    write_attempt(storage, fake, n=2)
    run = analysis.open_store(storage.url).runs.collect().row(0, named=True)
    assert (run["status"], run["error"], run["attempts"]) == ("running", None, 2)


def test_a_sweep_narrows_every_table_to_its_runs(tmp_path: Path) -> None:
    storage = write_store(tmp_path, known_runs())
    write_run(storage, FakeRun("isotropic", 7, loss_curve(3.0)))
    store = analysis.open_store(tmp_path)
    view = store.sweep("demo")
    assert store.runs.collect().height == 7
    for name in ("runs", "train", "val", "layers"):
        frame = view.table(name).collect()
        assert set(frame["run_id"]) == {run.run_id for run in known_runs()}, name
        assert set(frame.select("block", "role").rows()) == {("muon", "candidate"), ("adamw", "baseline")}, name
    assert view.sweep_runs.collect().height == 6


def test_a_run_that_two_blocks_share_has_its_rows_once_in_each(storage: Folder, fake: FakeRun) -> None:
    put_val(storage, write_attempt(storage, fake), range(2))
    member = {"run_id": RUN, "role": "candidate", "arm": "muon-1"}
    write_sweep(storage, "demo", [member | {"block": "a"}, member | {"block": "b"}, member | {"block": "b"}])
    rows = analysis.open_store(storage.url).sweep("demo").val.select("block", "seq").collect().rows()
    assert sorted(rows) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_the_newest_record_of_a_sweep_counts(storage: Folder) -> None:
    write_sweep(storage, "demo", [], number=2, question="new?")
    write_sweep(storage, "demo", [], number=1, question="old?")
    record = analysis.open_store(storage.url).sweep("demo").record
    assert record is not None
    assert record.question == "new?"


def test_sweep_runs_lists_every_sweep(storage: Folder) -> None:
    for name in ("one", "two"):
        write_sweep(storage, name, [{"run_id": RUN, "block": "b", "role": "baseline", "arm": "muon-1"}])
    rows = analysis.open_store(storage.url).sweep_runs.collect().rows()
    assert rows == [("one", RUN, "b", "baseline"), ("two", RUN, "b", "baseline")]


def test_a_store_sees_what_is_written_after_it_was_opened(storage: Folder, fake: FakeRun) -> None:
    attempt = write_attempt(storage, fake)
    store = analysis.open_store(storage.url)
    assert store.val.collect().height == 0
    put_val(storage, attempt, range(3))
    assert store.val.collect().height == 3


def test_rows_of_the_writer_come_back_equal(storage: Folder) -> None:
    writer = RunWriter(storage, RUN, {"arm_id": "muon-1", "arm": "muon", "seed": 1, "optimizer": "muon"})
    for step in (0, 20):
        writer.emit("val", step=step, tokens=step * 10, val_loss=5.0 - step / 100, val_accuracy=0.5)
    writer.flush()
    store = analysis.open_store(storage.url)
    assert store.val.select("seq", "step", "val_loss").collect().rows() == [(0, 0, 5.0), (1, 20, 4.8)]
    writer.end(status="done", final_val_loss=4.8)
    assert store.val.sort("seq").select("seq", "step", "val_loss").collect().rows() == [(0, 0, 5.0), (1, 20, 4.8)]
    run = store.runs.collect().row(0, named=True)
    assert (run["status"], run["final_val_loss"], run["seed"], run["attempts"]) == ("done", 4.8, 1, 1)


def test_plain_polars_reads_the_finished_runs(tmp_path: Path) -> None:
    write_store(tmp_path, demo_runs())
    frame = pl.read_parquet(f"{tmp_path}/final/table=layers/**/*.parquet", hive_partitioning=True)
    ours = analysis.open_store(tmp_path).layers.collect()
    assert frame.drop("table", "run").sort(pl.all()).equals(ours.sort(pl.all()))


def test_reading_results_loads_neither_torch_nor_ray_nor_altair() -> None:
    modules = "analysis, analysis.summary, analysis.verdicts"
    code = f"import sys, {modules}; print(sorted({{'torch', 'ray', 'altair'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_run_is_named_by_its_beginning(tmp_path: Path) -> None:
    write_store(tmp_path, [FakeRun("muon", seed, {0: 6.9, 20: 4.0}) for seed in (1, 2, 12)])
    store = analysis.open_store(tmp_path)
    assert store.run("muon-s2").runs.collect()["run_id"].to_list() == ["muon-s2-0badcafe"]
    assert store.run("muon-s12-0badcafe").val.collect().height == 2
    with pytest.raises(ValueError, match="2 runs begin with 'muon-s1': muon-s1-0badcafe, muon-s12-0badcafe; give more"):
        store.run("muon-s1")
    with pytest.raises(ValueError, match=r"no run begins with 'adamw' in .*; `muon runs ls` lists its 3"):
        store.run("adamw")


def test_a_run_that_is_named_in_full_is_found_without_listing_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path, [FakeRun("muon", seed, {0: 6.9}) for seed in (1, 12)])
    store, listed, keys = analysis.open_store(tmp_path), list[str](), Folder.keys
    monkeypatch.setattr(Folder, "keys", lambda self, prefix: [listed.append(prefix), keys(self, prefix)][1])
    assert store.run("muon-s1-0badcafe").val.collect().height == 1
    assert listed
    assert all("muon-s1-0badcafe/" in prefix for prefix in listed)


def test_every_table_is_an_attribute(tmp_path: Path) -> None:
    write_store(tmp_path, [FakeRun("muon", 1, {0: 6.9})])
    store = analysis.open_store(tmp_path)
    for name in TABLES:
        assert getattr(store, name).collect_schema() == store.table(name).collect_schema()
