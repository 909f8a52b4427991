"""`muon query`: answers, mistakes in one line, what the terminal shows, and the queries of the docs."""

import csv
import io
import json
import math
import sys
from pathlib import Path

import polars as pl
import pytest
import test_cli
from support.analysis_fixtures import FakeRun, demo_runs, write_store
from test_cli import Muon
from test_docs import ROOT, shell_lines

from muon_core.tables import TABLES
from ray_jobs.cli.main import main
from ray_jobs.cli.text import cell_text, frame_text, record_text, terminal_width

muon = test_cli.muon
QUERIES = [words for words in shell_lines(ROOT / "docs" / "queries.md") if words[:2] == ["muon", "query"]]


@pytest.fixture
def demo(muon: Muon, tmp_path: Path) -> Muon:
    """The command beside a store with four arms at three seeds."""
    write_store(tmp_path / "results", demo_runs())
    return muon


def test_query_prints_a_table_and_counts_its_rows_for_people(demo: Muon) -> None:
    done = demo("query", "SELECT seed, final_val_loss AS loss, run_id FROM runs WHERE optimizer = 'muon' ORDER BY seed")
    assert done.code == 0
    assert done.out.splitlines() == [
        "seed   loss  run_id",
        "  42  3.899  muon-s42-0badcafe",
        " 137  3.921  muon-s137-0badcafe",
        " 256   3.88  muon-s256-0badcafe",
    ]
    assert done.err == "3 rows\nnext: muon query 'SHOW TABLES'\n"
    assert demo("query", "show tables").err.splitlines()[-1] == "next: muon query 'DESCRIBE TABLE runs'"


def test_query_csv_and_json_keep_every_digit(muon: Muon, tmp_path: Path) -> None:
    losses = [3.271849632263184, 0.1 + 0.2, math.nan]
    runs = [FakeRun("muon", seed, {0: loss}) for seed, loss in enumerate(losses)]
    write_store(tmp_path / "results", runs)
    sql = "SELECT val_loss FROM val ORDER BY run_id"
    as_csv, as_json = muon("query", sql, "--csv"), muon("query", sql, "--json")
    rows = [float(row["val_loss"]) for row in csv.DictReader(io.StringIO(as_csv.out))]
    assert rows[:2] == losses[:2]
    assert math.isnan(rows[2])
    assert [row["val_loss"] for row in json.loads(as_json.out)] == [*losses[:2], None]
    assert as_csv.err == as_json.err == ""


def test_query_sees_one_sweep_with_block_and_role(demo: Muon) -> None:
    sql = "SELECT role, COUNT(*) AS n FROM runs GROUP BY role ORDER BY role"
    rows = json.loads(demo("query", sql, "--sweep", "demo", "--json").out)
    assert rows == [{"role": "baseline", "n": 3}, {"role": "candidate", "n": 6}, {"role": "control", "n": 3}]
    assert demo("query", sql, "--sweep", "dmo").err == (
        f"muon: no sweep 'dmo' in {Path('results').absolute()}; it holds: demo\n"
    )


def test_query_knows_every_table(demo: Muon) -> None:
    listed = json.loads(demo("query", "SHOW TABLES", "--json").out)
    assert {row["name"] for row in listed} == set(TABLES)
    for name, table in TABLES.items():
        columns = ", ".join(table.columns)
        assert demo("query", f"SELECT {columns} FROM {name}").code == 0, name
    (row,) = json.loads(demo("query", "SELECT COUNT(*) AS n FROM sweep_runs", "--json").out)
    assert row == {"n": 12}


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            "SELECT * FROM vall",
            "no table 'vall' (did you mean 'val'?); the tables are train, val, layers, ",
        ),
        ("SELECT val_los FROM val", "no column 'val_los' (did you mean 'val_loss'?); the columns are val: run_id, "),
        (
            "SELECT v.val_los FROM val v",
            "no column 'val_los' (did you mean 'val_loss'?); the columns are val: run_id, ",
        ),
        (
            "SELECT loss_of FROM val JOIN runs ON val.run_id = runs.run_id",
            "no column 'loss_of' (a text has single quotes: 'loss_of'); the columns are val: ",
        ),
        ("SELECT step FROM val WHERE", "Polars cannot answer this query: sql parser error: Expected: an expression, "),
        ("SELECT nope(step) FROM val", "Polars cannot answer this query: unsupported function 'nope'"),
        ("SELECT step FROM val; SELECT 1", "Polars cannot answer this query: one (and only one) statement can be "),
        ("SELECT SUM(run_id) FROM val", "Polars cannot answer this query: `sum` operation not supported for dtype"),
        ("SELECT COUNT(*) FROM val WHERE run_id > 3", "Polars cannot answer this query: cannot compare string with "),
        (
            "DELETE FROM runs",
            "a query begins with SELECT, WITH, SHOW TABLES or DESCRIBE, not 'delete'; it only reads the store",
        ),
        ("", "a query begins with SELECT, WITH, SHOW TABLES or DESCRIBE, not ''; it only reads the store"),
        ("-- SELECT 1", "a query begins with SELECT, WITH, SHOW TABLES or DESCRIBE, not ''; it only reads the store"),
        ("SELECT * FROM read_csv('/etc/passwd')", "read_csv opens other files; a query reads the tables of the store"),
        (
            "WITH t AS (SELECT * FROM \"READ_PARQUET\" ('x')) SELECT * FROM t JOIN runs",
            "READ_PARQUET opens other files; a query reads the tables of the store only",
        ),
        ("SELECT run_id FROM runs WHERE optimizer = muon", "no column 'muon' (a text has single quotes: 'muon'); the "),
        ("DESCRIBE TABLE rans", "DESCRIBE wants one of the tables: train, val, layers, "),
        ("DESCRIBE", "DESCRIBE wants one of the tables: train, val, layers, "),
    ],
)
def test_query_answers_a_mistake_in_one_line(demo: Muon, sql: str, message: str) -> None:
    failed = demo("query", sql)
    assert (failed.code, failed.out) == (2, "")
    assert failed.err.startswith(f"muon: {message}")
    assert failed.err.count("\n") == 1


@pytest.mark.parametrize("comment", ["-- 'all' of them\n", "/* all\n of them */ ", "  \n"])
def test_query_may_begin_with_a_comment_and_ends_where_it_ends(demo: Muon, comment: str) -> None:
    plain = demo("query", "SELECT run_id FROM runs WHERE arm <> '--' ORDER BY run_id", "--json")
    noted = demo("query", f"{comment}SELECT run_id FROM runs -- SELECT\nWHERE arm <> '--' ORDER BY run_id;", "--json")
    assert (plain.code, noted.code) == (0, 0)
    assert len(json.loads(plain.out)) == 12
    assert plain.out == noted.out


@pytest.mark.parametrize("ask", ["DESCRIBE TABLE runs", "describe Runs;", 'DESCRIBE "runs"'])
def test_describe_says_what_each_column_of_a_table_means(demo: Muon, ask: str) -> None:
    rows = json.loads(demo("query", ask, "--json").out)
    assert {row["column"]: row["meaning"] for row in rows} == {
        name: meaning for name, (_, meaning) in TABLES["runs"].columns.items()
    }
    assert {"column": "seed", "type": "Int64", "meaning": TABLES["runs"].columns["seed"][1]} in rows
    of_sweep = json.loads(demo("query", ask, "--sweep", "demo", "--json").out)
    assert [row["column"] for row in of_sweep[-2:]] == ["block", "role"]


def test_query_is_read_from_a_file_or_stdin(demo: Muon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = "-- how many\nSELECT COUNT(*) AS n FROM runs\n"
    file = tmp_path / "question.sql"
    file.write_text(sql)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sql.encode())))
    assert demo("query", "--file", str(file), "--json").out == demo("query", "-", "--json").out == '[{"n":12}]\n'
    for given in ([], ["SELECT 1", "--file", str(file)]):
        failed = demo("query", *given)
        assert failed.code == 2
        assert "Give one query" in failed.err
    missing = demo("query", "--file", str(tmp_path / "none.sql"))
    assert (missing.code, "none.sql cannot be read: No such file" in missing.err) == (2, True)


def test_query_refuses_two_formats_lists_in_csv_and_a_folder_that_is_no_store(demo: Muon, tmp_path: Path) -> None:
    assert "contradict" in demo("query", "SELECT 1", "--csv", "--json").err
    nested = demo("query", "SELECT ARRAY_AGG(step) AS steps FROM val", "--csv")
    assert (nested.code, nested.err) == (2, "muon: CSV has no lists, as steps holds; use --json\n")
    assert " is no results store" in demo("query", "SELECT 1", "--store", str(tmp_path / "none")).err


# ---- the queries of docs/queries.md


def answer(muon: Muon, number: int) -> pl.DataFrame:
    """Rows of one of the docs' queries."""
    words = [word for word in QUERIES[number][1:] if word not in ("--csv", "--json")]
    words = words[: words.index(">")] if ">" in words else words
    done = muon(*words, "--json")
    assert done.code == 0, done.err
    return pl.DataFrame(json.loads(done.out), infer_schema_length=None)


def test_documented_queries_are_six() -> None:
    assert len(QUERIES) == 6


def test_documented_final_losses_are_means_over_seeds(demo: Muon) -> None:
    rows = answer(demo, 0)
    assert rows.columns == ["block", "arm", "loss", "sd", "n"]
    muon_arm = rows.row(by_predicate=pl.col("arm") == "muon", named=True)
    assert muon_arm["loss"] == pytest.approx((3.899 + 3.921 + 3.880) / 3, abs=1e-12)
    assert muon_arm["sd"] == pytest.approx(0.0205183, abs=1e-7)  # worked by hand: sqrt(0.000842 / 2)
    assert dict(rows.select("arm", "n").iter_rows()) == {"muon": 3, "adamw": 3, "orthonoise": 3, "isotropic": 1}
    assert rows["loss"].is_sorted()


def test_documented_differences_are_paired_by_seed(demo: Muon) -> None:
    rows = answer(demo, 1)
    adamw = dict(rows.filter(block="adamw").select("seed", "difference").iter_rows())
    assert adamw == pytest.approx({42: 0.14, 137: 0.11, 256: 0.16}, abs=1e-12)
    assert rows.height == 3 + 3 + 1  # two isotropic runs are not done


def test_documented_curve_is_a_mean_at_each_step(demo: Muon) -> None:
    rows = answer(demo, 2)
    start = rows.filter(optimizer="adamw", step=0).row(0, named=True)
    assert (start["loss"], start["n"]) == (pytest.approx(math.log(1024)), 3)
    assert rows.filter(optimizer="muon")["step"].to_list() == list(range(0, 201, 20))


def test_documented_tokens_to_a_loss_are_the_first_that_reach_it(muon: Muon, tmp_path: Path) -> None:
    runs = [FakeRun("muon", 1, {0: 6.9, 20: 4.0, 40: 3.9}), FakeRun("adamw", 1, {0: 6.9, 20: 4.1, 40: 3.95, 60: 4.2})]
    write_store(tmp_path / "results", runs)
    assert answer(muon, 3).rows() == [("muon-s1-0badcafe", 20 * 2048), ("adamw-s1-0badcafe", 40 * 2048)]


def test_documented_heatmap_cells_are_of_one_run_and_projection(demo: Muon) -> None:
    rows = answer(demo, 4)
    assert rows.height == 4 * 11  # layers x steps
    first = rows.row(0, named=True)
    assert (first["layer"], first["step"], first["effective_rank"]) == (0, 0, pytest.approx(0.9 * 64))


def test_documented_time_is_in_shares_of_it(muon: Muon, tmp_path: Path) -> None:
    spent = {"data_s": 2.0, "gradients_s": 10.0, "optimizer_s": 4.0, "tracking_s": 1.0, "evaluation_s": 1.0}
    runs = [FakeRun("muon", seed, {0: 6.9}, facts=spent | {"checkpoint_s": 1.0}) for seed in (1, 2)]
    write_store(tmp_path / "results", runs)
    (row,) = answer(muon, 5).rows()
    assert row == ("muon", 40.0, 0.1, 0.5, 0.2, 0.15)


# ---- text


def test_text_table_fits_its_width_by_cutting_the_longest_text() -> None:
    frame = pl.DataFrame({"n": [1], "short": ["abc"], "long": ["x" * 200]})
    header, row = frame_text(frame).splitlines()
    assert len(row) == 120
    assert row == f"1  abc    {'x' * 109}…"
    assert header == "n  short  long"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("columns", "width"), [("30", 72), ("72", 72), ("90", 90), ("200", 120)])
def test_text_fills_a_terminal_within_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: str, width: int
) -> None:
    write_store(tmp_path / "results", [FakeRun("muon", 1, {0: 6.9}, facts={"health": "x" * 300})])
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", Terminal())
    for arguments in (["query", "SELECT seed, health FROM runs"], ["runs", "show", "muon"], ["runs", "ls"]):
        with pytest.raises(SystemExit):
            main([*arguments, "--store", str(tmp_path / "results")])
    assert isinstance(sys.stdout, Terminal)
    assert max(map(len, sys.stdout.getvalue().splitlines())) == width


def test_text_elsewhere_is_as_wide_as_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert terminal_width() == 120


def test_text_table_too_wide_to_cut_becomes_records() -> None:
    frame = pl.DataFrame({f"column_{i}": [i / 3, None] for i in range(20)})
    first, second = frame_text(frame).split("\n\n")
    assert first.splitlines()[:3] == ["column_0   0", "column_1   0.333333", "column_2   0.666667"]
    assert second.splitlines()[0] == "column_0"
    assert len(first.splitlines()) == 20


def test_text_of_an_empty_frame_is_its_header() -> None:
    assert frame_text(pl.DataFrame(schema={"a": pl.Int64, "b": pl.String})) == "a  b"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.1 + 0.2, "0.3"), (math.nan, "nan"), (1_234_567_890, "1234567890"), ("two\n lines", "two lines"),
     ([1, 2], "[1, 2]"), (True, "True")],
)  # fmt: skip
def test_cells_are_one_line(value: object, text: str) -> None:
    assert cell_text(value) == text


def test_record_lines_are_cut_to_the_width() -> None:
    assert record_text([("name", "x" * 20), ("other", 1)], width=12) == "name   xxxx…\nother  1"
