"""End records that Polars reads at once are those that the reader of single objects gives."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from analysis import scan
from analysis.scan import read_ends_at_once
from muon_core.store.folder import Folder
from muon_core.store.keys import ObjectSlice, final_key, parse_finals
from muon_core.store.parquet import digest, encode, to_arrow
from muon_core.store.reader import read_rows
from muon_core.tables import RUNS

TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
RECORDS: dict[str, dict[str, Any]] = {
    "a": {"run_id": "a", "seed": 1, "status": "done", "started_at": TIME, "final_val_loss": 0.1, "config_json": "{ä}"},
    "b": {"run_id": "b", "seed": -3, "status": "diverged", "last_val_loss": float("inf"), "num_parameters": 2**40},
    "c": {"run_id": "c", "status": "failed", "last_val_loss": float("nan"), "attempts": 7},
    "001": {"run_id": "001", "status": "done", "lr": 0.02},
}


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    """The records, two of them as other releases have written them."""
    folder = Folder(tmp_path)
    tables = {run: to_arrow([record], RUNS) for run, record in RECORDS.items()}
    tables["b"] = tables["b"].drop_columns(["peak_memory_bytes", "arm"])
    seed = tables["b"].schema.get_field_index("seed")
    tables["b"] = tables["b"].set_column(seed, "seed", tables["b"]["seed"].cast(pa.int16()))
    tables["c"] = tables["c"].append_column("mood", pa.array(["well"]))
    for run, table in tables.items():
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        folder.put(final_key("runs", run, "00001.ab", 3, digest(data)), data)
    return folder


def ends(storage: Folder) -> list[ObjectSlice]:
    return [item for items in parse_finals(storage.keys("final/"), "runs").values() for item in items]


def test_records_of_all_releases_are_read_as_one_by_one(storage: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = read_rows(storage, ends(storage), RUNS)
    monkeypatch.setattr(scan, "read_rows", lambda *_, **__: pytest.fail("took them one by one"))
    at_once = read_ends_at_once(storage, ends(storage), RUNS)
    assert at_once.schema.equals(RUNS.schema)
    assert encode(at_once.combine_chunks(), RUNS) == encode(one_by_one.combine_chunks(), RUNS)
    assert set(at_once["run_id"].to_pylist()) == RECORDS.keys()


@pytest.mark.parametrize("rows", [[], ["a", "a"], ["b"]], ids=["no row", "two rows", "another's row"])
def test_an_object_without_just_the_row_of_its_run_is_read_by_the_rules_for_all(
    storage: Folder, rows: list[str]
) -> None:
    for key in storage.keys("final/table=runs/run=a/"):
        storage.delete([key])
    data = encode([RECORDS[run] for run in rows], RUNS)
    storage.put(final_key("runs", "a", "00001.ab", 3, digest(data)), data)
    found = read_ends_at_once(storage, ends(storage), RUNS)["run_id"].to_pylist()
    assert sorted(found) == sorted(["b", "c", "001", *(run for run in rows if run == "a")])


def test_a_damaged_record_is_the_problem_of_its_run_alone(storage: Folder) -> None:
    (key,) = storage.keys("final/table=runs/run=b/")
    (Path(storage.root) / key).write_bytes(storage.get(key)[:-9] + b"x" * 9)
    problems: dict[str, str] = {}
    found = read_ends_at_once(storage, ends(storage), RUNS, problems=problems)["run_id"].to_pylist()
    assert sorted(found) == ["001", "a", "c"]
    assert problems.keys() == {"b"}
    assert key in problems["b"]
