"""`muon runs rm`, and the folder of imported runs in `muon runs ls`."""

import io
import json
from pathlib import Path

import polars as pl
import pytest
import test_cli
from support.analysis_fixtures import FakeRun, write_store
from test_cli import Muon
from test_import_meaning import write_arm
from test_legacy import files, imported

from analysis.store import open_store
from muon_core.store.compaction import compact
from muon_core.store.folder import Folder
from muon_core.store.ledger import LOCAL, new_entry, write_entry
from muon_core.store.removal import clear_removed, remove_run
from muon_core.store.writer import RunWriter

muon = test_cli.muon


@pytest.fixture
def older(muon: Muon, tmp_path: Path) -> Muon:
    """The command beside a store of two imported arms."""
    write_arm(tmp_path / "older", "adamw", [3.36, 3.37])
    write_arm(tmp_path / "older", "muon", [3.3, 3.31])
    assert muon("import", "older", "--baseline", "adamw").code == 0
    return muon


def run_ids(tmp_path: Path) -> list[str]:
    return sorted(imported(tmp_path).runs.collect()["run_id"])


def test_runs_ls_shows_the_folder_an_import_came_from(older: Muon, tmp_path: Path) -> None:
    header, *rows = older("runs", "ls").out.splitlines()
    assert header.split()[-1] == "folder"
    assert sorted(row.split()[-1] for row in rows) == ["adamw_seed1", "adamw_seed2", "muon_seed1", "muon_seed2"]
    assert "folder" not in json.loads(older("runs", "ls", "--json").out)[0]


def test_a_removed_run_is_gone_at_once_and_compaction_frees_its_place(older: Muon, tmp_path: Path) -> None:
    older("compact", "--grace", "0")  # packs hold it, too
    done = older("runs", "rm", "imported-muon-s1", "--yes")
    assert done.code == 0, done.err
    (removed,) = [line.split(":")[0] for line in done.err.splitlines() if "lists it" in line]
    assert f"{removed}: done, val_loss 3.3000; sweep older lists it, and will not any more" in done.err.splitlines()
    assert len(run_ids(tmp_path)) == 3
    assert imported(tmp_path).sweep("older").runs.collect().height == 3
    assert imported(tmp_path).val.filter(pl.col("run_id") == removed).collect().is_empty()
    assert [path for path in files(tmp_path / "results") if removed in str(path) and "final" in str(path)]
    for _ in range(2):
        assert older("compact", "--grace", "0").code == 0
    assert not [path for path in files(tmp_path / "results") if removed in str(path)]
    plain = pl.read_parquet(tmp_path / "results/final/table=val/**/*.parquet", hive_partitioning=True)
    assert set(plain["run_id"]) == set(run_ids(tmp_path))


def test_a_removed_run_can_be_imported_again_and_keeps_its_rows(older: Muon, tmp_path: Path) -> None:
    before = imported(tmp_path).val.collect().sort("run_id", "step")
    older("runs", "rm", "imported-muon-s1", "--yes")
    assert "older: 1 run imported, 3 were there already" in older("import", "older").err
    older("compact", "--grace", "0")
    assert imported(tmp_path).val.collect().sort("run_id", "step").equals(before)


def test_an_imported_sweep_without_runs_is_listed_no_more_and_has_no_report(older: Muon, tmp_path: Path) -> None:
    done = older("runs", "rm", *run_ids(tmp_path), "--yes")
    assert "sweep older has no runs left, so `muon sweep ls` does not list it" in done.err.splitlines()
    assert done.out.startswith("removed 4 runs; ")
    assert older("sweep", "ls", "--json").out == "[]\n"
    assert older("status", "older").err.endswith("next: muon sweep ls\n")
    refused = older("report", "older", "-o", "page")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "sweep 'older' lists no runs, so there is nothing to report; `muon runs rm` removed them" in refused.err
    assert not (tmp_path / "page").exists()
    assert older("import", "older").code == 0
    assert [sweep["runs"] for sweep in json.loads(older("sweep", "ls", "--json").out)] == [4]


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_runs_rm_asks_first(older: Muon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    before = files(tmp_path / "results")
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert older("runs", "rm", "imported-muon").code == 2  # begins two
    assert older("runs", "rm", "imported-muon-s1").code == 2
    assert files(tmp_path / "results") == before


def test_a_sweep_that_would_train_it_again_is_named_and_stays(muon: Muon, tmp_path: Path) -> None:
    write_store(tmp_path / "results", [FakeRun("muon", 1, {0: 6.9, 20: 4.0}), FakeRun("muon", 2, {0: 6.9, 20: 4.1})])
    done = muon("runs", "rm", "muon-s1", "--yes")
    assert "muon-s1-0badcafe: done, val_loss 4.0000; sweep demo lists it, and would train it again" in done.err
    assert len(imported(tmp_path).sweep("demo").record.runs) == 2  # type: ignore[union-attr]


def test_a_run_that_is_trained_now_is_not_removed(older: Muon, tmp_path: Path) -> None:
    storage = Folder(tmp_path / "results")
    run = run_ids(tmp_path)[0]
    write_entry(storage, new_entry(run, "00002.aa", LOCAL))
    refused = older("runs", "rm", run, "--yes")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"run {run} is being trained (process " in refused.err
    assert run in run_ids(tmp_path)


def test_checkpoints_of_a_removed_run_are_gone_at_once(tmp_path: Path) -> None:
    """Else a run that is trained anew would be refused for continuing rows that are gone."""
    storage = Folder(tmp_path)
    writer = RunWriter(storage, "a", {"arm": "muon"})
    writer.emit("val", step=1, tokens=8, val_loss=3.0)
    writer.end(status="stopped")
    for name in (f"latest/000000001.{writer.attempt.id}.000000000001.0123456789abcdef.pt", "config.json"):
        storage.put(f"checkpoints/a/{name}", b"state")
    remove_run(storage, "a")
    assert [key for key, _ in storage.list("checkpoints/")] == ["checkpoints/a/config.json"]
    again = RunWriter(storage, "a", {"arm": "muon"})
    again.emit("val", step=1, tokens=8, val_loss=2.0)
    again.end(status="done")
    clear_removed(storage, before=float("inf"))
    assert open_store(storage).val.collect()["val_loss"].to_list() == [2.0]


def test_objects_stay_until_readers_have_finished(tmp_path: Path) -> None:
    """Also where the process was killed between its mark and the start records: its run goes whole."""
    storage = Folder(tmp_path)
    for attempt in ("a", "b"):
        writer = RunWriter(storage, attempt, {"arm": "muon"})
        writer.emit("val", step=1, tokens=8, val_loss=3.0)
        writer.end(status="done")
    objects = {item.key for item in remove_run(storage, "a")}
    assert len(objects) == 3  # live, final, and how it ended
    assert clear_removed(storage, before=0.0) == []
    assert compact(storage).removed == 0
    assert objects <= {key for key, _ in storage.list("")}
    records = storage.list("attempts/b/")
    kept = {key: storage.get(key) for key, _ in records}
    remove_run(storage, "b")
    for key, data in kept.items():
        storage.put(key, data)
    assert {item.key for item in clear_removed(storage, before=float("inf"))} == objects
    assert storage.list("attempts/") == []
    assert {item.key for item in clear_removed(storage, before=float("inf"))}
    assert [key for key, _ in storage.list("") if not key.startswith("schema/")] == []
