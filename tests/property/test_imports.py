"""Any table with a step and a metric is imported to the last digit or refused in one line; twice adds nothing."""

import csv
import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.store import open_store
from muon_core.imports.log import UnreadableLog
from muon_core.imports.mapping import parse_map
from muon_core.imports.read import ReadLogs, read_logs
from muon_core.legacy.write import write_runs
from muon_core.store.folder import Folder

STEPS = st.sampled_from(["step", "global_step", "Step", "iteration", "_step", "trainer/global_step"])
LOSSES = st.sampled_from(["val_loss", "Val/Loss", "eval_loss", "train_loss", "loss", "loss/val", "validation loss"])
OTHERS = st.sampled_from(
    ["seed", "optimizer", "run", "lr", "epoch", "time", "val_acc", "val_ppl", "minutes", "tokens", "note", "split", ""]
)
FLOATS = st.floats(width=64)
CELLS = st.one_of(FLOATS, st.integers(-(10**25), 10**25), st.text(max_size=8), st.none(), st.booleans())
ROWS = st.lists(st.tuples(st.integers(0, 60), FLOATS, st.lists(CELLS, min_size=3, max_size=3)), min_size=1, max_size=8)
KINDS = st.sampled_from(["csv", "jsonl", "parquet"])


def write_table(path: Path, kind: str, columns: list[str], rows: list[list[Any]]) -> None:
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text).writerows([columns, *rows])
        path.write_text(text.getvalue(), newline="")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    else:
        texts = [[cell if i < 2 else str(cell) for i, cell in enumerate(row)] for row in rows]
        pq.write_table(pa.table([list(column) for column in zip(*texts, strict=True)], names=columns), path)


def read_or_line(path: Path) -> ReadLogs | None:
    """The runs, or None if the table was refused, which must be in one line that says what to do."""
    try:
        return read_logs(path, parse_map(()))
    except UnreadableLog as error:
        text = str(error)
        assert text.startswith("t.")
        assert text.count("\n") == 0
        return None


@settings(deadline=None, max_examples=150)
@given(STEPS, LOSSES, st.lists(OTHERS, min_size=3, max_size=3, unique=True), ROWS, KINDS)
def test_any_table_is_read_or_refused_in_a_line(
    step: str, loss: str, others: list[str], rows: list[tuple[int, float, list[Any]]], kind: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{kind}"
        write_table(path, kind, [step, loss, *others], [[at, value, *cells] for at, value, cells in rows])
        found = read_or_line(path)
    if found is None:
        return
    given_losses = [value for _, value, _ in rows]
    column = "train_loss" if loss in ("train_loss", "loss") else "val_loss"
    for run in found.runs:
        for row in run.val + run.train:
            if column in row and "split" not in others:
                assert any(
                    row[column] == value or (math.isnan(row[column]) and math.isnan(value)) for value in given_losses
                )


@settings(deadline=None, max_examples=12)
@given(
    st.dictionaries(st.integers(0, 10**6), FLOATS, min_size=2, max_size=6),
    st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
    KINDS,
)
def test_twice_adds_nothing_and_grown_files_what_is_new(curve: dict[int, float], seeds: list[int], kind: str) -> None:
    points = sorted(curve.items())
    columns = ["step", "val_loss", "optimizer", "seed"]

    def table(points: list[tuple[int, float]]) -> list[list[Any]]:
        return [[step, loss + seed, "muon", seed] for seed in seeds for step, loss in points]

    with tempfile.TemporaryDirectory() as folder:
        path, storage = Path(folder) / f"t.{kind}", Folder(Path(folder) / "store")

        def import_table(points: list[tuple[int, float]]) -> tuple[int, int]:
            write_table(path, kind, columns, table(points))
            done = write_runs(storage, read_logs(path, parse_map(())).runs, "t")
            assert not done.damaged
            return len(done.new), len(done.grown)

        assert import_table(points[:-1]) == (len(seeds), 0)
        assert import_table(points[:-1]) == (0, 0)
        assert import_table(points) == (0, len(seeds))
        assert import_table(points) == (0, 0)
        store = open_store(storage)
        rows = (
            store.val.join(store.runs.select("run_id", "seed"), on="run_id")
            .select("step", "val_loss", "seed")
            .collect()
        )
    stored = {(step, seed): loss for step, loss, seed in rows.rows()}
    assert rows.height == len(stored) == len(seeds) * len(points)
    for step, loss in points:
        for seed in seeds:
            expected, found = loss + seed, stored[step, seed]
            assert found == expected or (math.isnan(found) and math.isnan(expected))
