"""What stands out in runs: planted anomalies of each kind are found where they are, clean runs raise no alarm."""

import json
import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from support.analysis_fixtures import FakeRun, demo_runs, known_runs, loss_curve, put_final, write_attempt, write_store
from support.tracked import EVERY, Tracked, clean_runs

from analysis.anomalies import anomalies, find
from analysis.departures import THRESHOLD, WORST
from analysis.store import open_store
from muon_core.store.folder import Folder
from muon_core.tables import HEALTH, LAYERS
from ray_jobs.cli.main import main

RUN, PROJECTION, LAYER = "a0-s1", "up", 4
STEPS = 60  # tracked


@pytest.fixture(scope="module")
def clean() -> Tracked:
    return clean_runs(arms=1, seeds=3, layers=8, steps=STEPS, draw=1)


def look(tracked: Tracked) -> pl.DataFrame:
    return find(tracked.layers.lazy(), tracked.health.lazy(), tracked.who.lazy())


def at(first: int, last: int = STEPS, layer: int = LAYER) -> pl.Expr:
    """Cells of one matrix at its tracked steps `first` to `last`, from 1."""
    place = (pl.col("run_id") == RUN) & (pl.col("projection") == PROJECTION) & (pl.col("layer") == layer)
    return place & pl.col("step").is_between(first * EVERY, last * EVERY)


def planted(frame: pl.DataFrame, where: pl.Expr, **values: pl.Expr | float) -> pl.DataFrame:
    return frame.with_columns(pl.when(where).then(value).otherwise(name).alias(name) for name, value in values.items())


def test_twenty_clean_runs_raise_no_alarm() -> None:
    found = look(clean_runs(arms=4, seeds=5, layers=12, steps=80))
    assert found.select("kind", "run_id", "metric", "score").rows() == []


@pytest.mark.parametrize("runs", [demo_runs(), known_runs()], ids=["demo", "known"])
def test_stores_of_smooth_runs_raise_no_alarm(tmp_path: Path, runs: list[FakeRun]) -> None:
    write_store(tmp_path, runs)
    found = anomalies(open_store(tmp_path).sweep("demo"))
    assert found.regions.rows() == []
    assert found.matrices > 0


def test_a_level_that_jumps_and_stays_is_a_sudden_shift_at_its_step(clean: Tracked) -> None:
    value = pl.col("spectral_norm")
    found = look(replace(clean, layers=planted(clean.layers, at(30), spectral_norm=value * 1.15)))
    (region,) = found.rows(named=True)
    assert (region["kind"], region["metric"], region["run_id"]) == ("sudden shift", "spectral_norm", RUN)
    assert (region["projection"], region["layer_from"], region["layer_to"]) == (PROJECTION, LAYER, LAYER)
    assert (region["step_from"], region["step_to"]) == (30 * EVERY, 30 * EVERY)
    assert region["value"] / region["normal"] == pytest.approx(1.15, rel=0.05)
    assert (region["arm"], region["seed"]) == ("a0", 1)


def test_a_spike_between_two_tracked_steps_shows_by_the_running_peak(clean: Tracked) -> None:
    (peak,) = clean.layers.filter(at(40, 40))["grad_norm_peak"]
    found = look(replace(clean, layers=planted(clean.layers, at(40), grad_norm_peak=5 * peak)))
    (region,) = found.rows(named=True)
    assert (region["kind"], region["run_id"], region["layer"], region["step"]) == ("spike", RUN, LAYER, 40 * EVERY)
    assert region["step_to"] == 40 * EVERY  # the peak stays, the spike does not
    assert region["value"] == pytest.approx(5 * peak)
    assert region["normal"] == pytest.approx(clean.layers.filter(at(35, 45))["grad_norm"].median(), rel=0.2)


def test_a_spike_at_a_tracked_step_below_the_peak_so_far_is_seen_too(clean: Tracked) -> None:
    normal = clean.layers.filter(at(30, 50))["grad_norm"].median()
    assert isinstance(normal, float)
    found = look(replace(clean, layers=planted(clean.layers, at(40, 40), grad_norm=4 * normal)))
    assert [(r["kind"], r["step"]) for r in found.rows(named=True)] == [("spike", 40 * EVERY)]


def test_a_rank_that_falls_below_half_and_stays_there_has_collapsed(clean: Tracked) -> None:
    slow = pl.col("effective_rank") * (1 - 0.8 * (pl.col("step") / EVERY - 20) / 40)
    everywhere = pl.col("projection") == PROJECTION  # in all seeds and layers, so that nothing but time shows it
    layers = planted(clean.layers, everywhere & (pl.col("step") > 20 * EVERY), effective_rank=slow)
    found = look(replace(clean, layers=layers))
    assert set(found["kind"]) == {"rank collapse"}
    assert found.height == 3  # one region a run, of all its layers
    for region in found.rows(named=True):
        assert (region["layer_from"], region["layer_to"], region["matrices"]) == (0, 7, 8)
        assert 40 * EVERY <= region["step_from"] <= 48 * EVERY
        assert (region["step"], region["step_to"]) == (60 * EVERY, 60 * EVERY)
        assert region["value"] / region["normal"] == pytest.approx(0.2, rel=0.1)


def test_a_rank_that_dips_once_has_not_collapsed(clean: Tracked) -> None:
    found = look(replace(clean, layers=planted(clean.layers, at(40, 41), effective_rank=20.0)))
    assert "rank collapse" not in set(found["kind"])


def test_a_seed_that_differs_from_its_arm_is_named_with_what_the_others_have(clean: Tracked) -> None:
    lower = pl.col("effective_rank") * 0.6
    in_layers = pl.col("layer").is_between(2, 7)
    where = (pl.col("run_id") == RUN) & (pl.col("projection") == PROJECTION) & in_layers
    (region,) = look(replace(clean, layers=planted(clean.layers, where, effective_rank=lower))).rows(named=True)
    assert (region["kind"], region["run_id"], region["projection"]) == ("seeds disagree", RUN, PROJECTION)
    assert (region["layer_from"], region["layer_to"], region["cells"]) == (2, 7, 6 * STEPS)
    assert region["value"] / region["normal"] == pytest.approx(0.6, rel=0.05)


def test_of_two_seeds_that_disagree_one_region_tells(clean: Tracked) -> None:
    pair = pl.col("run_id") != "a0-s2"
    where = (pl.col("run_id") == RUN) & (pl.col("projection") == PROJECTION)
    layers = planted(clean.layers.filter(pair), where, weight_norm=pl.col("weight_norm") * 1.6,
                     weight_norm_peak=pl.col("weight_norm_peak") * 1.6)  # fmt: skip
    (region,) = look(Tracked(layers, clean.health, clean.who)).rows(named=True)
    assert region["kind"] == "seeds disagree"
    assert region["value"] / region["normal"] == pytest.approx(1.6, rel=0.05)
    assert region["matrices"] == 8


def test_a_layer_unlike_the_others_is_one_region_and_two_of_them_are_two(clean: Tracked) -> None:
    lone = clean.who.filter(pl.col("run_id") == RUN)  # no other seeds to disagree with
    lower = pl.col("effective_rank") * 0.4
    layers = planted(clean.layers, at(1) | at(1, layer=1), effective_rank=lower)
    found = look(Tracked(layers, clean.health, lone))
    assert set(found["kind"]) == {"outlying layer"}
    assert sorted(found["layer"]) == [1, LAYER]
    assert set(found["step_from"]) == {EVERY}
    assert set(found["step_to"]) == {STEPS * EVERY}
    both = planted(clean.layers, at(1) | at(20, layer=LAYER + 1), effective_rank=lower)
    (region, *rest) = look(Tracked(both, clean.health, lone)).filter(kind="outlying layer").rows(named=True)
    assert rest == []
    assert (region["layer_from"], region["layer_to"], region["cells"]) == (LAYER, LAYER + 1, STEPS + STEPS - 19)


def test_a_momentum_that_repeats_its_update_against_the_gradient_is_frozen(clean: Tracked) -> None:
    health = planted(clean.health, at(21), cos_previous_update=0.9999, gradient_agreement=0.02)
    (region,) = look(replace(clean, health=health)).rows(named=True)
    assert (region["kind"], region["layer"], region["cells"]) == ("frozen momentum", LAYER, 40)
    assert (region["value"], region["normal"]) == (pytest.approx(0.9999), 0.99)
    only_slow = planted(clean.health, at(21), cos_previous_update=0.9999)
    assert look(replace(clean, health=only_slow)).is_empty()


def test_a_momentum_runs_away_by_growth_by_divergence_and_by_what_is_not_finite(clean: Tracked) -> None:
    start = clean.health.filter(at(1, 12))["sigma_max"].median()
    assert isinstance(start, float)
    grown = planted(clean.health, at(50), sigma_max=20 * start)
    (region,) = look(replace(clean, health=grown)).rows(named=True)
    assert (region["kind"], region["metric"], region["step_from"]) == ("runaway momentum", "sigma_max", 50 * EVERY)
    assert region["normal"] == pytest.approx(start, rel=0.01)
    diverging = planted(clean.health, at(30, 30), num_divergent=2.0, sigma_max=math.sqrt(5) * math.e)
    assert look(replace(clean, health=diverging))["score"].to_list() == [pytest.approx(2 * THRESHOLD)]
    lost = planted(clean.health, at(30, 30), num_nonfinite=7.0)
    assert look(replace(clean, health=lost)).select("kind", "score").rows() == [("runaway momentum", WORST)]


def test_values_that_are_not_finite_come_first_and_spoil_no_other(clean: Tracked) -> None:
    bad = dict.fromkeys(("effective_rank", "weight_norm", "grad_norm", "grad_norm_peak"), math.nan)
    found = look(replace(clean, layers=planted(clean.layers, at(50), **bad)))
    (region,) = found.rows(named=True)
    assert (region["kind"], region["metric"], region["score"]) == ("not finite", "effective_rank", WORST)
    assert (region["step_from"], region["cells"]) == (50 * EVERY, 11)


def test_scores_are_free_of_units_and_finite_without_any_noise(clean: Tracked) -> None:
    positive = ["effective_rank", "spectral_norm", "weight_norm", "update_norm", "grad_norm"]
    peaks = ["weight_norm_peak", "grad_norm_peak"]
    layers = planted(clean.layers, at(30), spectral_norm=pl.col("spectral_norm") * 3)
    scaled = layers.with_columns(pl.col(*positive, *peaks) * 1000)
    one, other = (look(replace(clean, layers=frame)) for frame in (layers, scaled))
    assert one.height > 1
    assert other.drop("value", "normal").equals(one.drop("value", "normal").with_columns(other["score"]))
    assert other["score"].to_list() == pytest.approx(one["score"].to_list())
    flat = clean.layers.with_columns(pl.lit(1.0).alias(name) for name in (*positive, *peaks))
    still = look(replace(clean, layers=planted(flat, at(30), spectral_norm=3.0)))
    assert set(still["kind"]) == {"sudden shift", "seeds disagree", "outlying layer"}
    assert still["score"].is_between(THRESHOLD, WORST, closed="left").all()


def test_an_alignment_of_an_update_without_a_top_five_is_not_judged(clean: Tracked) -> None:
    layers = planted(clean.layers, at(30), left_alignment=0.9)
    assert look(replace(clean, layers=layers)).height > 0
    assert look(replace(clean, layers=layers.with_columns(ill_posed=pl.lit(True)))).is_empty()


def with_tracked(storage: Folder, tracked: Tracked) -> list[FakeRun]:
    """A sweep's runs with these rows, in the store; run and arm are called as a fixture's are."""
    runs = [FakeRun("muon", seed, {}, with_layers=False) for seed in tracked.who["seed"]]
    write_store(Path(storage.url), runs)
    for run, name in zip(runs, tracked.who["run_id"], strict=True):
        attempt = write_attempt(storage, run)
        for table, frame in ((LAYERS, tracked.layers), (HEALTH, tracked.health)):
            of_run = frame.filter(run_id=name).sort("step").with_columns(run_id=pl.lit(run.run_id))
            rows = of_run.with_columns(seq=pl.int_range(pl.len())).to_dicts()
            put_final(storage, table, attempt, len(rows), [row | {"attempt": 1, "tokens": 0} for row in rows])
    return runs


def muon(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0
    return capsys.readouterr()


def test_the_command_shows_regions_in_a_table_and_all_of_them_as_json(
    clean: Tracked, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = planted(clean.layers, at(30), spectral_norm=pl.col("spectral_norm") * 1.15)
    layers = planted(layers, at(50, layer=2), weight_norm=math.nan)
    with_tracked(Folder(tmp_path), replace(clean, layers=layers))
    monkeypatch.setenv("MUON_STORE", str(tmp_path))
    out, err = muon(capsys, "anomalies", "demo")
    head, first, second, blank, *words = out.splitlines()
    assert head.split() == ["score", "kind", "run", "layers", "steps", "metric", "value", "normal"]
    assert first.split() == ["1000", "not", "finite", "muon-s1-0badcafe", "up", "2", "500-600", "weight_norm", "nan"]
    assert second.split()[1:8] == ["sudden", "shift", "muon-s1-0badcafe", "up", "4", "300", "spectral_norm"]
    assert head.index("metric") == first.index("weight_norm") == second.index("spectral_norm")
    assert (blank, words) == ("", ["2 regions stand out in 3 runs, 144 matrices, up to 60 tracked steps"])
    assert err == "next: muon report demo --metric weight_norm\n"
    out, _ = muon(capsys, "anomalies", "demo", "--top", "1", "--json")
    told = json.loads(out)
    assert (told["found"], told["runs"], told["threshold"], told["notes"]) == (2, 3, THRESHOLD, [])
    (region,) = told["regions"]
    assert (region["kind"], region["run_id"]) == ("not finite", "muon-s1-0badcafe")
    assert (region["seed"], region["value"]) == (1, None)
    assert (region["layer_from"], region["step_from"], region["step_to"]) == (2, 500, 600)


def test_what_cannot_be_looked_at_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUON_STORE", str(tmp_path))
    one = FakeRun("muon", 1, loss_curve(3.0))
    write_store(tmp_path, [FakeRun("adamw", 1, loss_curve(3.1), with_layers=False)], "bare", unstarted=1)
    write_store(tmp_path, [one], "single")
    out, err = muon(capsys, "anomalies", "bare")
    assert out == (
        "no run has tracked its hidden matrices, so there is nothing to look at\n"
        "note: 1 run not started: adamw-s9000-0badcafe\n"
        "note: 1 run without rows in the layers table: adamw-s1-0badcafe\n"
    )
    assert err == "next: muon status bare\n"
    out, _ = muon(capsys, "anomalies", "single")
    assert out == (
        "nothing stands out in 1 run, 24 matrices, up to 11 tracked steps\n"
        "note: 1 run with fewer than 5 layers, which were not compared: muon-s1-0badcafe\n"
        "note: 1 run without rows in the health table, where frozen momenta show: muon-s1-0badcafe\n"
        "note: no arm has two tracked seeds, so none were compared\n"
    )
    told = json.loads(muon(capsys, "anomalies", "bare", "--json")[0])
    assert (told["runs"], told["regions"], len(told["notes"])) == (0, [], 2)


def test_a_store_without_results_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["anomalies", "demo", "--store", str(tmp_path)])
    assert ended.value.code == 2
    assert "is no results store" in capsys.readouterr().err
