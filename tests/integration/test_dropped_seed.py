"""A seed is dropped from the file after its result is known: whatever is said of the sweep from then on names it."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from support.sweeps import muon_here, sweep_file

from analysis.store import open_store


@pytest.mark.slow
def test_a_seed_dropped_from_the_file_is_named_in_plan_answer_page_and_exit_text(
    tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = [{"name": "muon", "role": "baseline", "optimizer": "muon"}]
    short = small | {"steps": 2, "tracking": {"track_every": 100}}
    spec, store = sweep_file(tmp_path, short, blocks, seeds=[1, 2, 3]), tmp_path / "results"
    first = muon_here(capsys, "sweep", "run", str(spec), "--in-process", store=store)
    assert first.returncode == 0, first.stderr
    assert "no longer listed" not in first.stdout + first.stderr
    values = dict(open_store(store).runs.select("run_id", "final_val_loss").collect().iter_rows())

    spec.write_text(yaml.safe_dump(yaml.safe_load(spec.read_text()) | {"seeds": [1, 2]}))
    named = "1 finished run of this sweep is no longer listed: seed 3"
    plan = muon_here(capsys, "sweep", "plan", str(spec), store=store)
    assert f"\ndropped: {named}\n" in plan.stdout
    again = muon_here(capsys, "sweep", "run", str(spec), "--in-process", store=store)
    assert again.returncode == 0, again.stderr
    assert f"\nwarning: {named}\n" in again.stdout
    assert f"\ndropped: {named}\nnext: " in again.stderr
    few = ["--metric", "effective_rank", "--projection", "q"]
    report = muon_here(capsys, "report", "test", "-o", str(tmp_path / "report"), *few, store=store)
    assert f"dropped: {named}\nnext: " in report.stderr
    assert f"<li>{named}</li>" in (tmp_path / "report/index.html").read_text()
    table = pl.read_csv(tmp_path / "report/data/dropped.csv")
    assert table["seed"].to_list() == [3]
    assert [values[run] for run in table["run_id"]] == table["value"].to_list()

    planned = json.loads(muon_here(capsys, "sweep", "plan", str(spec), "--json", store=store).stdout)
    assert planned["unlisted"] == sorted(table["run_id"])  # also of a record before the newest
