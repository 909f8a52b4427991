"""SQL over the tables beside DuckDB over the same rows."""

import math
import re
from typing import Any

import duckdb
import polars as pl
import pytest
from support.analysis_fixtures import demo_runs, write_store

from analysis.sql import query
from analysis.store import Store, open_store
from muon_core.tables import TABLES

ALIKE = [
    "SELECT * FROM runs",
    "SELECT run_id, final_val_loss FROM runs WHERE status = 'done'",
    "SELECT COUNT(*) AS n FROM runs",
    "SELECT COUNT(final_val_loss) AS n, COUNT(DISTINCT optimizer) AS arms FROM runs",
    "SELECT optimizer, AVG(final_val_loss) AS loss FROM runs WHERE status = 'done' GROUP BY optimizer",
    "SELECT optimizer, MIN(final_val_loss) AS low, MAX(final_val_loss) AS high FROM runs GROUP BY optimizer",
    "SELECT optimizer, SUM(final_val_loss) AS total FROM runs GROUP BY optimizer",
    "SELECT optimizer, STDDEV(final_val_loss) AS sd FROM runs GROUP BY optimizer",
    "SELECT optimizer, VARIANCE(final_val_loss) AS v FROM runs GROUP BY optimizer",
    "SELECT optimizer, MEDIAN(final_val_loss) AS m FROM runs GROUP BY optimizer",
    "SELECT QUANTILE_CONT(val_loss, 0.9) AS q FROM val",
    "SELECT QUANTILE_DISC(val_loss, 0.5) AS q FROM val",
    "SELECT status, COUNT(*) AS n FROM runs GROUP BY status HAVING COUNT(*) > 1",
    "SELECT status, COUNT(*) AS n FROM runs GROUP BY 1 ORDER BY 2 DESC, 1",
    "SELECT DISTINCT optimizer FROM runs",
    "SELECT run_id FROM runs WHERE run_id LIKE 'muon-%'",
    "SELECT run_id FROM runs WHERE run_id LIKE '%s42%' AND optimizer <> 'muon'",
    "SELECT run_id FROM runs WHERE run_id ILIKE 'MUON%'",
    "SELECT run_id FROM runs WHERE seed IN (42, 137)",
    "SELECT run_id FROM runs WHERE seed NOT IN (42, 137)",
    "SELECT run_id FROM runs WHERE seed BETWEEN 100 AND 200",
    "SELECT run_id FROM runs WHERE final_val_loss IS NULL",
    "SELECT run_id FROM runs WHERE final_val_loss IS NOT NULL AND NOT optimizer = 'muon'",
    "SELECT run_id FROM runs WHERE alpha > 0.01 OR seed = 42",
    "SELECT run_id, CASE WHEN status = 'done' THEN 1 ELSE 0 END AS is_done FROM runs",
    "SELECT run_id, COALESCE(final_val_loss, last_val_loss, 99.0) AS loss FROM runs",
    "SELECT run_id, NULLIF(status, 'done') AS trouble FROM runs",
    "SELECT UPPER(optimizer) AS name, LENGTH(run_id) AS n FROM runs",
    "SELECT SUBSTR(run_id, 1, 4) AS head FROM runs",
    "SELECT optimizer || '-' || status AS word FROM runs",
    "SELECT REPLACE(run_id, '-', '_') AS name FROM runs",
    "SELECT CAST(seed AS VARCHAR) AS text FROM runs",
    "SELECT seed + 1 AS next, seed * 2 AS twice, seed - 1 AS before FROM runs",
    "SELECT seed % 5 AS rest FROM runs",
    "SELECT run_id, EXP(final_val_loss) AS perplexity, LN(final_val_loss) AS log FROM runs WHERE status = 'done'",
    "SELECT run_id, ROUND(final_val_loss, 2) AS loss FROM runs",
    "SELECT run_id, ABS(final_val_loss - 4) AS gap, SQRT(final_val_loss) AS root FROM runs",
    "SELECT run_id, FLOOR(final_val_loss) AS down, CEIL(final_val_loss) AS up FROM runs",
    "SELECT run_id, step, val_loss FROM val ORDER BY val_loss, run_id, step LIMIT 5",
    "SELECT run_id, step, val_loss FROM val ORDER BY val_loss DESC, run_id, step LIMIT 5 OFFSET 2",
    "SELECT step, AVG(val_loss) AS loss, COUNT(*) AS n FROM val GROUP BY step",
    "SELECT run_id, MIN(tokens) AS tokens FROM val WHERE val_loss <= 4.5 GROUP BY run_id",
    "SELECT r.optimizer, v.step, v.val_loss FROM val v JOIN runs r ON v.run_id = r.run_id",
    "SELECT r.run_id, v.step FROM runs r LEFT JOIN val v ON r.run_id = v.run_id AND v.step = 200",
    "SELECT r.run_id, v.val_loss FROM runs r INNER JOIN val v USING (run_id) WHERE v.step = 200",
    "SELECT a.seed, a.final_val_loss - b.final_val_loss AS difference FROM runs a JOIN runs b ON a.seed = b.seed "
    "WHERE a.optimizer = 'adamw' AND b.optimizer = 'muon'",
    "SELECT seed, loss FROM (SELECT seed, final_val_loss AS loss FROM runs WHERE status = 'done') t WHERE loss < 4",
    "WITH d AS (SELECT * FROM runs WHERE status = 'done') SELECT optimizer, COUNT(*) AS n FROM d GROUP BY optimizer",
    "WITH a AS (SELECT seed FROM runs), b AS (SELECT seed FROM a WHERE seed > 100) SELECT COUNT(*) AS n FROM b",
    "SELECT run_id FROM runs WHERE run_id IN (SELECT run_id FROM val WHERE val_loss < 3.9)",
    "SELECT run_id FROM runs WHERE final_val_loss = (SELECT MIN(final_val_loss) FROM runs)",
    "SELECT optimizer FROM runs WHERE seed = 42 UNION ALL SELECT optimizer FROM runs WHERE seed = 137",
    "SELECT optimizer FROM runs UNION SELECT status FROM runs",
    "SELECT optimizer FROM runs EXCEPT SELECT optimizer FROM runs WHERE status <> 'done'",
    "SELECT optimizer FROM runs WHERE status = 'done' INTERSECT SELECT optimizer FROM runs WHERE status = 'failed'",
    "SELECT run_id, step, ROW_NUMBER() OVER (PARTITION BY run_id ORDER BY step) AS nth FROM val",
    "SELECT run_id, AVG(val_loss) OVER (PARTITION BY run_id) AS mean, step FROM val",
    "SELECT run_id, step, val_loss - LAG(val_loss) OVER (PARTITION BY run_id ORDER BY step) AS fall FROM val",
    "SELECT layer, step, effective_rank FROM layers WHERE projection = 'up' AND run_id LIKE 'muon-s42-%'",
    "SELECT layer, AVG(effective_rank) AS rank, MAX(entropy) AS entropy FROM layers GROUP BY projection, layer",
    "SELECT EXTRACT(YEAR FROM started_at) AS year, COUNT(*) AS n FROM runs GROUP BY 1",
    "SELECT SUM(CASE WHEN status = 'done' THEN 1 ELSE 0 END) * 1.0 / COUNT(*) AS share FROM runs",
    "SELECT a.run_id FROM attempts a JOIN runs r ON a.run_id = r.run_id WHERE a.status = r.status",
    "SELECT s.sweep, COUNT(*) AS n FROM sweep_runs s GROUP BY s.sweep",
    "SELECT GREATEST(seed, 100) AS high, LEAST(seed, 100) AS low FROM runs",
    "SELECT seed, COUNT(*) FILTER (WHERE status = 'done') AS n FROM runs GROUP BY seed",
    "SELECT optimizer, CORR(step, val_loss) AS r FROM val JOIN runs ON val.run_id = runs.run_id GROUP BY optimizer",
    "SELECT run_id, RANK() OVER (ORDER BY final_val_loss) AS place FROM runs WHERE status = 'done'",
    "SELECT optimizer, seed, AVG(final_val_loss) AS loss FROM runs GROUP BY GROUPING SETS ((optimizer), (seed))",
    "SELECT run_id FROM runs r WHERE EXISTS (SELECT 1 FROM val v WHERE v.run_id = r.run_id AND v.val_loss < 3.9)",
    "SELECT run_id FROM runs QUALIFY ROW_NUMBER() OVER (PARTITION BY optimizer ORDER BY seed) = 1",
    "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT * FROM t",
    "SELECT 7 / 2 AS half",
    "SELECT run_id, final_val_loss FROM runs ORDER BY final_val_loss NULLS FIRST, run_id LIMIT 3",
    "SELECT run_id, final_val_loss FROM runs ORDER BY final_val_loss, run_id LIMIT 30",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four arms at three seeds, two runs of which did not end well."""
    folder = tmp_path_factory.mktemp("store")
    write_store(folder, demo_runs())
    return open_store(folder)


@pytest.fixture(scope="module")
def oracle(store: Store) -> duckdb.DuckDBPyConnection:
    """DuckDB with the rows of every table."""
    connection = duckdb.connect()
    for name in TABLES:
        connection.register(name, store.table(name).collect().to_arrow())
    return connection


@pytest.mark.parametrize("sql", ALIKE)
def test_a_query_answers_as_duckdb_does(store: Store, oracle: duckdb.DuckDBPyConnection, sql: str) -> None:
    expected = oracle.sql(sql)
    found = query(store, sql)
    assert found.columns == expected.columns
    rows = expected.fetchall()
    if not re.search(r"ORDER BY[^)]*$", sql):
        rows, ours = sorted(rows, key=repr), sorted(found.rows(), key=repr)
    else:
        ours = found.rows()
    assert len(ours) == len(rows)
    digits = [1e-7 if dtype == pl.Float32 else 1e-12 for dtype in found.dtypes]  # Polars' mean of such is one, too
    for one, other in zip(ours, rows, strict=True):
        assert all(map(_is_equal, one, other, digits)), (one, other)


def _is_equal(one: Any, other: Any, tolerance: float) -> bool:
    """Sums go in another order."""
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=tolerance) or (math.isnan(one) and math.isnan(other))
    return one == other or (isinstance(one, int) and float(one) == float(other))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM runs PIVOT (COUNT(*) FOR status IN ('done'))",
        "SELECT * FROM runs TABLESAMPLE 10 PERCENT",
        "SELECT REGR_SLOPE(val_loss, step) AS slope FROM val",
        "SELECT LIST_SORT(ARRAY_AGG(seed)) AS seeds FROM runs",
        "SELECT * FROM runs ASOF JOIN val ON runs.run_id = val.run_id AND val.step >= runs.steps",
        "SELECT run_id FROM runs r, LATERAL (SELECT MAX(step) FROM val v WHERE v.run_id = r.run_id) t",
        "SUMMARIZE runs",
        "CREATE TABLE t AS SELECT 1",
    ],
)
def test_what_polars_lacks_is_refused_in_a_line(store: Store, sql: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        query(store, sql)
    assert "\n" not in str(refused.value)
