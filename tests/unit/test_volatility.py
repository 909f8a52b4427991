"""Spread between seeds, cell by cell: what is counted, what is left out, and what is said of it."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import polars as pl
import pytest
from support.analysis_fixtures import FakeRun, loss_curve, put_final, write_attempt, write_store

from analysis.store import open_store
from analysis.summary import members_of
from analysis.volatility import Volatility, compare, table, volatility
from analysis.volatility_texts import sentences, why_none
from muon_core.store.folder import Folder
from muon_core.tables import LAYERS

SEEDS = (42, 137, 256)
STEPS = (0, 20, 40)


def alignment(optimizer: str, seed: int, layer: int, step: int) -> float:
    """Muon's seeds part by 0.1, and the second layer's to the other side: an average over layers would not move."""
    apart = (0.1 if optimizer == "muon" else 0.02) * (SEEDS.index(seed) - 1)
    return 0.5 + (apart if layer == 0 else -apart) + step / 1000


def store_of(
    folder: Path, seeds: Mapping[str, tuple[int, ...]], change: Any = lambda run, row: {}, **of_runs: Any
) -> Folder:
    """Two layers of q at three steps; `change` gives columns of a row that are other than planned."""
    runs = [
        FakeRun(name, seed, loss_curve(3.0, STEPS), role="baseline" if name == "adamw" else "candidate", **of_runs)
        for name, own in seeds.items()
        for seed in own
    ]
    for run in runs:
        run.with_layers = False
    storage = write_store(folder, runs)
    for run in runs:
        rows = [
            {"run_id": run.run_id, "attempt": 1, "seq": 2 * t + layer, "step": step, "tokens": step, "layer": layer}
            | {"projection": "q", "update_alignment": alignment(run.optimizer, run.seed, layer, step)}
            | {"effective_rank": 30.0 + SEEDS.index(run.seed), "ill_posed": False}
            for t, step in enumerate(STEPS)
            for layer in (0, 1)
        ]
        put_final(storage, LAYERS, write_attempt(storage, run), len(rows), [row | change(run, row) for row in rows])
    return storage


def volatility_of(storage: Folder, metric: str = "update_alignment") -> Volatility:
    view = open_store(storage).sweep("demo")
    return volatility(view, members_of(view), metric)


BOTH = {"muon": SEEDS, "adamw": SEEDS}


def test_the_deviation_is_taken_at_every_cell_and_not_after_an_average_over_layers(tmp_path: Path) -> None:
    info = volatility_of(store_of(tmp_path, BOTH))
    assert info.cells.height == 2 * 2 * len(STEPS)
    assert info.arms == ["muon", "adamw"]
    for row in info.cells.iter_rows(named=True):
        values = [alignment(row["arm"], seed, row["layer"], row["step"]) for seed in SEEDS]
        assert row["sd"] == pytest.approx(stdev(values), rel=1e-5)
        assert row["n"] == 3
        assert row["spread"] == row["sd"]
    assert table(info, "optimizer").select("optimizer", "cells").rows() == [("muon", 6), ("adamw", 6)]
    by_arm = {row["arm"]: row for row in table(info, "arm").iter_rows(named=True)}
    assert by_arm["muon"]["median_sd"] == pytest.approx(0.1, rel=1e-5)
    assert by_arm["muon"]["mean_variance"] == pytest.approx(0.01, rel=1e-5)
    assert by_arm["adamw"]["q90"] == pytest.approx(0.02, rel=1e-5)


def test_arms_are_compared_over_the_cells_that_both_have(tmp_path: Path) -> None:
    late = store_of(tmp_path, BOTH, lambda run, row: {"update_alignment": None} if late_muon(run, row) else {})
    (row,) = compare(volatility_of(late), "adamw").to_dicts()
    assert (row["arm"], row["projection"], row["cells"], row["n"], row["baseline_n"]) == ("muon", "q", 4, 3, 3)
    assert row["ratio"] == pytest.approx(5, rel=1e-4)
    assert row["share"] == 1.0


def late_muon(run: FakeRun, row: dict[str, Any]) -> bool:
    return run.optimizer == "muon" and row["step"] == STEPS[-1]


def test_the_sentence_has_the_ratio_the_medians_and_how_many_seeds(tmp_path: Path) -> None:
    info = volatility_of(store_of(tmp_path, BOTH))
    assert sentences(info, "adamw") == [
        "update_alignment varies more between seeds under muon than under adamw in 1 of 1 projection: 5-fold more in q "
        "(median sd 0.1 against 0.02, n = 3, 6 cells, larger in 100 % of them)."
    ]
    assert sentences(info, None)[0] == ("muon: median sd of update_alignment between seeds 0.1 over 6 cells, n = 3.")


def test_other_metrics_are_compared_as_shares_of_their_mean(tmp_path: Path) -> None:
    info = volatility_of(store_of(tmp_path, BOTH), "effective_rank")
    assert info.is_relative
    assert info.cells["spread"].to_list() == pytest.approx([1 / 31] * 12)
    assert "as much in q (median sd / mean 3.2 % against 3.2 %" in sentences(info, "adamw")[0]


def test_ill_posed_values_are_left_out_and_counted(tmp_path: Path) -> None:
    def chance(run: FakeRun, row: dict[str, Any]) -> dict[str, Any]:
        """All of seed 42, and all but one seed at layer 1."""
        return {"ill_posed": run.optimizer == "muon" and (run.seed == 42 or (row["layer"] == 1 and run.seed == 137))}

    info = volatility_of(store_of(tmp_path, BOTH, chance))
    muon = table(info, "arm").row(0, named=True)
    assert (muon["cells"], muon["cells_left_out"], muon["ill_posed"]) == (3, 3, 9)
    assert (muon["n_min"], muon["n_max"]) == (2, 2)
    assert muon["median_sd"] == pytest.approx(stdev([0.4 + 0.1, 0.6]), rel=1e-4)
    told = sentences(info, "adamw")
    assert "n = 2 against 3 (fewer seeds look steadier than they are), 3 cells" in told[0]
    assert told[1] == "muon: 9 values ill-posed, 3 of 6 cells have no two seeds left."
    ranks = volatility_of(Folder(tmp_path), "effective_rank")  # of the weight, which has its ranks all the same
    assert table(ranks, "arm")["ill_posed"].to_list() == [0, 0]


def test_where_most_cells_have_equally_many_seeds_only_those_are_compared(tmp_path: Path) -> None:
    def chance(run: FakeRun, row: dict[str, Any]) -> dict[str, Any]:
        """One value of Muon, without which its other two are nearer to each other."""
        return {"ill_posed": run.optimizer == "muon" and run.seed == 42 and row["step"] == 0 and row["layer"] == 0}

    (row,) = compare(volatility_of(store_of(tmp_path, BOTH, chance)), "adamw").to_dicts()
    assert (row["cells"], row["n"], row["n_max"], row["baseline_n"]) == (5, 3, 3, 3)
    assert row["ratio"] == pytest.approx(5, rel=1e-4)


def test_an_arm_that_is_ill_posed_everywhere_is_said_to_be(tmp_path: Path) -> None:
    storage = store_of(tmp_path, BOTH, lambda run, _: {"ill_posed": run.optimizer == "muon"})
    told = sentences(volatility_of(storage), "adamw")
    assert told == [
        "adamw: median sd of update_alignment between seeds 0.02 over 6 cells, n = 3.",
        "muon: 18 values ill-posed, 6 of 6 cells have no two seeds left.",
    ]


def test_runs_that_do_not_tell_where_they_are_ill_posed_are_named(tmp_path: Path) -> None:
    storage = store_of(tmp_path, BOTH, lambda run, _: {"ill_posed": None} if run.optimizer == "adamw" else {})
    info = volatility_of(storage)
    assert info.untold == ("adamw",)
    assert "is not recorded for adamw" in sentences(info, "adamw")[-1]


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    def broken(run: FakeRun, row: dict[str, Any]) -> dict[str, Any]:
        return {"update_alignment": math.nan} if run.seed == 42 and row["step"] == 40 else {}

    info = volatility_of(store_of(tmp_path, BOTH, broken))
    assert table(info, "arm").select("cells", "n_min", "n_max", "not_finite").rows() == [(6, 2, 3, 2)] * 2
    assert info.cells["sd"].is_finite().all()


@pytest.mark.parametrize("seeds", [{"muon": (42,), "adamw": (137,)}, {"muon": (42,)}])
def test_one_seed_has_no_spread(tmp_path: Path, seeds: dict[str, tuple[int, ...]]) -> None:
    info = volatility_of(store_of(tmp_path, seeds))
    assert info.arms == []
    assert info.cells["sd"].null_count() == info.cells.height == 6 * len(seeds)
    assert (
        why_none(info) == "No arm has two seeds with update_alignment at one cell, so there is no spread between seeds."
    )
    assert compare(info, "adamw").is_empty()
    assert sentences(info, "adamw") == []


def test_without_rows_it_says_so(tmp_path: Path) -> None:
    write_store(tmp_path, [FakeRun("muon", 1, {}, "failed", with_layers=False)])
    info = volatility_of(Folder(tmp_path))
    assert info.cells.is_empty()
    assert why_none(info).startswith("update_alignment was measured in no run that is done or running")
    assert table(info, "arm").is_empty()
    assert sentences(info, "adamw") == []


def test_runs_that_ended_badly_do_not_count_and_a_run_of_two_blocks_counts_once(tmp_path: Path) -> None:
    storage = store_of(tmp_path, BOTH)
    (key,) = [key for key, _ in storage.list("sweeps/demo/")]
    listed = storage.get(key).decode().replace('"block": "muon"', '"block": "again"')
    view = open_store(storage).sweep("demo")
    record = view.record
    assert record is not None
    doubled = type(record).model_validate_json(listed)
    twice = record.model_copy(update={"runs": (*record.runs, *doubled.runs)})
    both = replace(view, record=twice)
    members = members_of(both)
    assert members.height == 12
    info = volatility(both, members, "update_alignment")
    assert info.cells["n"].unique().to_list() == [3]
    lost = members.with_columns(status=pl.when(pl.col("seed") == 42).then(pl.lit("diverged")).otherwise("status"))
    assert volatility(both, lost, "update_alignment").cells["n"].unique().to_list() == [2]


def test_an_unknown_metric_is_named_with_those_there_are(tmp_path: Path) -> None:
    view = open_store(write_store(tmp_path, [FakeRun("muon", 1, {})])).sweep("demo")
    with pytest.raises(ValueError, match="unknown layer metric 'rank'; choose one of"):
        volatility(view, members_of(view), "rank")


def test_of_many_arms_those_that_differ_most_are_told_of(tmp_path: Path) -> None:
    arms = {"muon": SEEDS, "adamw": SEEDS, "lion": SEEDS, "sgd": SEEDS}

    def far(run: FakeRun, row: dict[str, Any]) -> dict[str, Any]:
        factor = {"muon": 1.0, "adamw": 1.0, "lion": 5.0, "sgd": 0.1}[run.optimizer]
        return {"update_alignment": 0.5 + factor * 0.01 * SEEDS.index(run.seed)}

    info = volatility_of(store_of(tmp_path, arms, far))
    assert [text.split(" under ")[1].split()[0] for text in sentences(info, "adamw")] == ["muon", "lion", "sgd"]
    first, rest = sentences(info, "adamw", 1)
    assert first.startswith(
        "update_alignment varies less between seeds under sgd than under adamw in 1 of 1 projection"
    )
    assert "10-fold less in q" in first
    assert rest == "2 arms more depart from adamw by less."
