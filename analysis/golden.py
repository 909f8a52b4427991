"""Judges runs against a stored golden baseline: final metrics, curves at equal tokens, ranks and norms of the matrices.

A golden baseline is a run, or a sweep: then an arm is judged against the golden arm of its name, or where there is none
against the golden sweep's baseline. `analysis.bands` says what a band is, and when a run that leaves it fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from analysis.bands import PLACE, Check, cell_points, check_points, curve_points, golden_cells
from analysis.gates import Result, all_of
from analysis.members import tell_statuses
from analysis.store import Store
from analysis.summary import members_of
from muon_core.statuses import FINISHED, last_line
from muon_core.store.ledger import read_alive

VAL_METRICS = {"val_loss": 1, "val_accuracy": 2}
"""Metric -> how many margins it has: where losses differ by 1 %, accuracies do by about 2 % of themselves."""
LAYER_METRICS = ("effective_rank", "stable_rank", "spectral_norm", "weight_norm")
VAL_MARGIN, LAYER_MARGIN = 0.01, 0.1


@dataclass(frozen=True, slots=True)
class Golden:
    """Runs that others are judged against."""

    arm: str
    run_ids: tuple[str, ...]
    """Those that are done."""
    seeds: tuple[int | None, ...]
    left_out: int
    """Runs of the arm that are not done."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run against the golden arm `vs`."""

    run_id: str
    arm: str
    seed: int | None
    status: str
    result: Result
    reason: str
    """Why its numbers do not decide; empty where they do."""
    vs: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """All runs against a golden baseline."""

    result: Result
    golden: tuple[Golden, ...]
    """Those that a run was judged against."""
    val_margin: float
    layer_margin: float
    runs: tuple[RunResult, ...]


def runs_of_sweep(store: Store, name: str) -> pl.DataFrame:
    """Rows of `sweep_members` of a sweep, each run once."""
    return members_of(store.sweep(name)).unique("run_id", keep="first", maintain_order=True)


def run_alone(store: Store, run_id: str) -> pl.DataFrame:
    """The same of one run of the store, which then is the baseline of nothing and nobody."""
    runs = store.run(run_id).runs.collect()
    alive = read_alive(store.storage, set(runs.filter(~pl.col("status").is_in(FINISHED))["run_id"]))
    return tell_statuses(runs.with_columns(role=pl.lit("candidate")), alive)


def judge_golden(
    store: Store,
    judged: pl.DataFrame,
    golden: pl.DataFrame,
    *,
    val_margin: float = VAL_MARGIN,
    layer_margin: float = LAYER_MARGIN,
) -> GoldenResult:
    """Judge the runs of `judged` that are none of `golden`, both rows of `runs_of_sweep` or `run_alone`.

    Args:
        store: all of it, not the view of a sweep.
        val_margin, layer_margin: by which bands are wider than the range of the golden runs, as shares of their mean,
            for validation metrics and those of matrices.

    Raises: ValueError if no golden run is done, it is not clear which golden arm is meant, or no run is left to judge.
    """
    own = judged.filter(~pl.col("run_id").is_in(golden["run_id"].to_list()))
    if own.is_empty():
        raise ValueError("every run to judge is one of the baseline's own; name a sweep with other runs")
    arms = _golden_arms(golden, own["arm"].to_list())
    used = {golden_arm.arm: golden_arm for golden_arm in arms.values()}
    bands = {arm: _Band(store, found, val_margin, layer_margin) for arm, found in used.items()}
    runs = [bands[arms[row["arm"]].arm].judge(row) for row in own.iter_rows(named=True)]
    result = all_of([run.result for run in runs])
    return GoldenResult(result, tuple(used.values()), val_margin, layer_margin, tuple(runs))


def _golden_arms(golden: pl.DataFrame, names: Sequence[str]) -> dict[str, Golden]:
    """Arm to judge -> the golden arm it is judged against."""
    frames = {str(arm): frame for (arm,), frame in golden.group_by("arm", maintain_order=True)}
    baselines = [arm for arm, frame in frames.items() if frame["role"][0] == "baseline"]
    default = baselines[0] if baselines else next(iter(frames)) if len(frames) == 1 else None
    chosen: dict[str, Golden] = {}
    for name in dict.fromkeys(names):
        arm = name if name in frames else default
        if arm is None:
            raise ValueError(
                f"the baseline has no arm {name!r}, and of its {len(frames)} arms none has the role baseline; "
                "name one of its runs instead"
            )
        chosen[name] = _golden(arm, frames[arm])
    return chosen


def _golden(arm: str, frame: pl.DataFrame) -> Golden:
    done = frame.filter(pl.col("status") == "done")
    if done.is_empty():
        raise ValueError(f"no run of the baseline {arm!r} is done, so there is nothing to judge by")
    return Golden(arm, tuple(done["run_id"]), tuple(done["seed"]), frame.height - done.height)


class _Band:
    """What golden runs have, read once, and the judgement of others by it."""

    def __init__(self, store: Store, golden: Golden, val_margin: float, layer_margin: float) -> None:
        self.golden, self.val_margin, self.layer_margin = golden, val_margin, layer_margin
        self._val, self._layers = store.val, store.layers
        self._curves = _rows(self._val, golden.run_ids, tuple(VAL_METRICS))
        tracked = _rows(self._layers, golden.run_ids, LAYER_METRICS)
        self._cells = {metric: golden_cells(_values(tracked, metric)) for metric in LAYER_METRICS}

    def judge(self, row: Mapping[str, object]) -> RunResult:
        """The result of the run that has this row."""
        run_id, status = str(row["run_id"]), str(row["status"])
        checks = (*self._curve_checks(run_id, is_done=status == "done"), *self._matrix_checks(run_id))
        result = all_of([check.result for check in checks])
        reason = "" if checks else "nothing that the baseline measured was measured"
        if status in ("failed", "diverged"):
            why = last_line(str(row["error"] or ""))
            result, reason = "FAIL", f"it {status}: {why}" if why else f"it {status}"
        elif status != "done":
            result, reason = "INCONCLUSIVE", f"it is {status}, and nothing is decided before its end"
        seed = row["seed"]
        return RunResult(
            run_id=run_id,
            arm=str(row["arm"]),
            seed=int(str(seed)) if seed is not None else None,
            status=status,
            result=result,
            reason=reason,
            vs=self.golden.arm,
            checks=checks,
        )

    def _curve_checks(self, run_id: str, *, is_done: bool) -> list[Check]:
        """The final value, at the most tokens that all of them reached, and the curve."""
        rows = _rows(self._val, (run_id,), tuple(VAL_METRICS))
        found = []
        for metric, margins in VAL_METRICS.items():
            golden = _values(self._curves, metric)
            if golden.is_empty():
                continue
            points = curve_points(_values(rows, metric), golden)
            runs, margin = len(self.golden.run_ids), margins * self.val_margin
            if is_done:
                found.append(check_points(f"final {metric}", points.tail(1), runs, margin))
            found.append(check_points(metric, points, runs, margin))
        return found

    def _matrix_checks(self, run_id: str) -> list[Check]:
        """The values of all matrices at all tracked steps, a check a metric."""
        known = {metric: cells for metric, cells in self._cells.items() if cells.height}
        rows = _rows(self._layers, (run_id,), tuple(known)) if known else pl.DataFrame()
        return [
            check_points(metric, cell_points(_values(rows, metric), cells), len(self.golden.run_ids), self.layer_margin)
            for metric, cells in known.items()
        ]


def _rows(table: pl.LazyFrame, run_ids: Sequence[str], metrics: Sequence[str]) -> pl.DataFrame:
    """`run_id`, PLACE and `metrics` of runs."""
    place = [name for name in PLACE if name in table.collect_schema()]
    return table.filter(pl.col("run_id").is_in(list(run_ids))).select("run_id", *place, *metrics).collect()


def _values(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """`rows` that have `metric`, as `value`."""
    place = [name for name in ("run_id", *PLACE) if name in rows.columns]
    return rows.select(*place, value=pl.col(metric).cast(pl.Float64)).drop_nulls("value")
