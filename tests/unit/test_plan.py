"""What a plan says is new, done and to be run, and what the seeds can resolve."""

import json
from pathlib import Path

import pytest
from support.analysis_fixtures import write_store
from test_names import trained

from analysis.statistics import holm
from analysis.store import open_store
from analysis.summary import summarize
from muon_core.statuses import MEANINGS, STATUSES, status_told
from muon_core.store.folder import Folder
from muon_core.store.known import End
from muon_core.store.sweeps import write_sweep
from ray_jobs.cli.plan_text import render_plan
from ray_jobs.cli.text import lasting
from ray_jobs.money import money
from ray_jobs.sweep_plan import sweep_record
from search_spaces.plan import Plan, plan
from search_spaces.power import Power, Result, power, powers, results
from search_spaces.spec import SweepSpec, parse_spec

TEXT = """\
version: 1
name: hunt
question: Does noise help?
seeds: [1, 2, 3]
constants: {steps: 50}
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - {name: noisy, optimizer: orthonoise, grid: {alpha: [0.1]}}
  - {name: again, role: control, optimizer: orthonoise, set: {alpha: 0.1}}
"""


def hunt(old: str = "", new: str = "") -> SweepSpec:
    assert old in TEXT
    return parse_spec(TEXT.replace(old, new) if old else TEXT, name="hunt.yaml")


def seeded(seeds: int) -> SweepSpec:
    return hunt("[1, 2, 3]", str(list(range(seeds))))


def render(planned: Plan) -> str:
    """What `muon sweep plan` prints, on a machine of this kind."""
    return render_plan(planned, money(planned, Folder("nowhere")))


def known(*statuses: str) -> dict[str, str]:
    """A store that knows the first runs of the sweep, which start base-1, noisy-1, base-2, noisy-2, base-3, noisy-3."""
    return dict(zip((run.run_id for run in plan(hunt(), {}).runs), statuses, strict=False))


def test_plan_of_an_empty_store_runs_everything_in_order() -> None:
    fresh = plan(hunt(), {})
    assert fresh.to_run == fresh.runs
    assert fresh.counts == {"planned": 6}
    assert fresh.duplicates == 3  # noisy and again are one cell, at 3 seeds
    assert fresh.tokens == 6 * 50 * 16 * 128


def test_plan_runs_what_is_new_or_interrupted_only() -> None:
    statuses = ("done", "diverged", "failed", "running", "stopped")
    planned = plan(hunt(), known(*statuses) | {"of-another-sweep": "done"})
    assert planned.statuses == ("done", "diverged", "failed", "interrupted", "stopped", "planned")
    assert planned.to_run == planned.runs[3:]
    assert planned.counts == {"done": 1, "diverged": 1, "failed": 1, "stopped": 1, "interrupted": 1, "planned": 1}
    assert planned.tokens == 3 * 50 * 16 * 128


def test_plan_runs_failed_runs_again_on_request_only() -> None:
    done = known("failed", *["done"] * 5)
    assert plan(hunt(), done).to_run == ()
    assert [run.run_id for run in plan(hunt(), done, retry=["failed"]).to_run] == [next(iter(done))]


def test_plan_runs_diverged_runs_again_on_request_only() -> None:
    ends = known("failed", "diverged", "done", *["diverged"] * 3)
    planned = plan(hunt(), ends, retry=["diverged"])
    assert planned.to_run == (planned.runs[1], *planned.runs[3:])
    assert planned.finished == {run.run_id for run in planned.runs[1:]}
    assert plan(hunt(), ends, retry=["diverged", "failed"]).to_run == (*planned.runs[:2], *planned.runs[3:])


def test_plan_knows_every_status_of_the_store() -> None:
    assert {status_told(status, alive=False) for status in STATUSES} < set(MEANINGS)


def test_plan_of_a_grown_file_runs_the_new_cells_only() -> None:
    done = dict.fromkeys((run.run_id for run in plan(hunt(), {}).runs), "done")
    more_seeds = plan(hunt("[1, 2, 3]", "[0, 1, 2, 3]"), done)
    assert [(run.block, run.config.seed) for run in more_seeds.to_run] == [("base", 0), ("noisy", 0)]
    more_alphas = plan(hunt("[0.1]", "[0.2, 0.1]"), done)
    assert [run.config.optimizer.alpha for run in more_alphas.to_run] == [0.2] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("seeds", "quantile"),
    [(2, 12.7062047362), (3, 4.3026527297), (5, 2.7764451052), (10, 2.2621571628)],  # printed tables of t(0.975, n - 1)
)
def test_power_is_the_half_width_of_the_t_interval(seeds: int, quantile: float) -> None:
    told = power(seeds, 1, 0.01, "given")
    assert told.resolvable == pytest.approx(quantile * 0.01 / seeds**0.5, rel=1e-9)
    assert (told.seeds, told.comparisons, told.sd, told.sd_source) == (seeds, 1, 0.01, "given")


@pytest.mark.parametrize("arms", [1, 3, 8])
@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_an_arm_with_the_detectable_difference_gets_its_verdict_four_times_in_five(seeds: int, arms: int) -> None:
    """Against the verdicts' own p-values, in the hardest case: no other arm differs, so Holm asks for p < 0.05 / m."""
    from scipy.stats import nct, t

    told = power(seeds, arms, 0.01, "given")
    assert told.resolvable is not None
    assert told.detectable is not None
    error, df = 0.01 / seeds**0.5, seeds - 1
    p_value = 2 * t.sf(told.resolvable / error, df)
    assert holm([p_value, *[0.9] * (arms - 1)])[0] == pytest.approx(0.05, rel=1e-6)
    assert nct.sf(t.isf(0.025 / arms, df), df, told.detectable / error) == pytest.approx(0.8, abs=1e-4)


def test_plan_counts_the_comparisons_that_the_answer_will_adjust_for(tmp_path: Path) -> None:
    planned = plan(hunt("[0.1]", "[0.1, 0.2]"), {})
    assert [power.comparisons for power in planned.powers] == [2]  # two alphas, one of them in a second block too
    storage = write_store(tmp_path, [trained(run, 4.0 + i / 100) for i, run in enumerate(planned.runs)])
    write_sweep(storage, sweep_record(planned))
    assert summarize(open_store(tmp_path).sweep("hunt")).tests == 2


def test_power_of_one_seed_is_nothing() -> None:
    (told,) = plan(seeded(1), {}).powers
    assert (told.resolvable, told.detectable) == (None, None)


def test_power_of_a_baseline_alone_is_nothing() -> None:
    alone = plan(parse_spec(TEXT.split("  - {name: noisy")[0]), {})
    assert [(power.comparisons, power.resolvable) for power in alone.powers] == [(0, None)]
    assert render(alone).endswith("\npower: nothing is compared with the baseline; add a block")


RIVAL = hunt("optimizer: orthonoise, set: {alpha: 0.1}}", "optimizer: adamw}")
"""Noise, and AdamW."""


def of_kind(told: tuple[Power, ...]) -> dict[str, Power]:
    return {power.kind: power for power in told}


def test_power_assumes_an_sd_for_each_kind_of_arm_and_says_which() -> None:
    told = of_kind(plan(RIVAL, {}).powers)
    assert {kind: (power.sd, power.arms, power.comparisons) for kind, power in told.items()} == {
        "orthonoise": (0.0038, 1, 2),
        "adamw": (0.029, 1, 2),
    }
    assert told["adamw"].sd_source.startswith("assumed: that of muon against adamw, tiny preset")
    assert told["orthonoise"].sd_source.startswith("assumed: the largest of noise arms")
    large = of_kind(
        plan(parse_spec(f"preset: 350m\n{TEXT}".replace("orthonoise, set: {alpha: 0.1}}", "adamw}")), {}).powers
    )
    assert (large["adamw"].sd, "88 M" in large["adamw"].sd_source) == (0.0131, True)
    (accuracy,) = plan(hunt("name: hunt", "name: hunt\nmetrics: {primary: val_accuracy, goal: max}"), {}).powers
    assert (accuracy.sd, accuracy.resolvable) == (None, None)
    assert accuracy.sd_source == "none known for val_accuracy; give one with --sd"


def past(spec: SweepSpec, losses: dict[str, tuple[float, ...]]) -> list[Result]:
    """Runs of the sweep that are done, by optimizer and seed."""
    runs = [run for run in plan(spec, {}).runs if run.config.optimizer.name in losses]
    ends = [
        End(
            "done",
            0,
            1.0,
            50,
            losses[run.config.optimizer.name][run.config.seed - 1],
            0.5,
            run.config.model_dump_json(),
            None,
        )
        for run in runs
    ]
    return results(
        [
            *ends,
            End("failed", 0, 1.0, 5, None, None, ends[0].config_json, None),
            End("done", 0, 1.0, 5, 3.0, 0.1, None, None),
        ]
    )


def test_power_takes_the_sd_of_the_stores_own_pairs_of_that_kind() -> None:
    """Differences of noise 0.001, 0.003, 0.002, by hand a deviation of 0.001; of AdamW 0.1, 0.3, 0.2, of 0.1."""
    base = (4.0, 4.1, 4.2)
    losses = {
        "muon": base,
        "orthonoise": tuple(x + y for x, y in zip(base, (0.001, 0.003, 0.002), strict=True)),
        "adamw": tuple(x + y for x, y in zip(base, (0.1, 0.3, 0.2), strict=True)),
    }
    told = of_kind(plan(RIVAL, {}, measured=past(RIVAL, losses)).powers)
    assert told["orthonoise"].sd == pytest.approx(0.001)
    assert told["adamw"].sd == pytest.approx(0.1)
    assert told["adamw"].sd_source == "measured: 3 pairs of adamw and muon of this setting in the store"
    longer = hunt("steps: 50", "steps: 60")
    (noise,) = plan(longer, {}, measured=past(RIVAL, losses)).powers
    assert noise.sd == pytest.approx(0.001)
    assert noise.sd_source == "measured: 3 pairs of orthonoise and muon of this model in the store"


def test_pairs_of_another_model_or_a_single_seed_or_without_any_spread_measure_nothing() -> None:
    other = hunt("steps: 50", "steps: 50, model.num_layers: 2")
    losses = {"muon": (4.0, 4.1, 4.2), "orthonoise": (4.0, 4.2, 4.2)}
    one_seed = [result for result in past(hunt(), losses) if result.seed == 1]
    equal = past(hunt(), {"muon": losses["muon"], "orthonoise": losses["muon"]})
    for measured in (past(other, losses), one_seed, equal):
        (noise,) = plan(hunt(), {}, measured=measured).powers
        assert noise.sd_source.startswith("assumed")


def test_render_has_a_line_for_each_kind() -> None:
    lines = [line for line in render(plan(RIVAL, {})).splitlines() if line.startswith("power: ")]
    assert lines[1].startswith("power: adamw: 3 seeds resolve a measured difference of 0.1")
    assert [line.split(": ")[1] for line in lines] == ["orthonoise", "adamw"]
    assert all("adjusted for 2 arms (Holm) (sd of paired differences 0." in line for line in lines)


@pytest.mark.parametrize("sd", [0.0, -1.0, float("nan"), float("inf")])
def test_power_refuses_an_sd_that_is_not_positive_and_finite(sd: float) -> None:
    with pytest.raises(ValueError, match="standard deviation between seeds must be positive and finite, got"):
        powers(hunt(), plan(hunt(), {}).runs[:2], sd=sd)


def test_plan_as_json_tells_every_run() -> None:
    planned = plan(hunt(), known("done"), sd=0.01)
    told = json.loads(json.dumps(planned.to_json() | money(planned, Folder("nowhere")).to_json(), allow_nan=False))
    assert told["counts"] == {"done": 1, "planned": 5}
    assert told["to_run"] == [run.run_id for run in planned.runs[1:]]
    assert (told["duplicates"], told["training_tokens"], told["cost_usd"]) == (3, 512_000, 0.0)
    noisy = told["runs"][1]
    assert {key: noisy[key] for key in ("block", "role", "arm", "seed", "status", "to_run", "optimizer")} == {
        "block": "noisy",
        "role": "candidate",
        "arm": "orthonoise-a0.1",
        "seed": 1,
        "status": "planned",
        "to_run": True,
        "optimizer": "orthonoise",
    }
    assert noisy["members"] == [{"block": "noisy", "role": "candidate"}, {"block": "again", "role": "control"}]
    assert noisy["config"]["optimizer"]["alpha"] == 0.1
    assert [power["sd"] for power in told["power"]] == [0.01]


def test_render_tells_the_plan_in_plain_lines() -> None:
    planned = plan(hunt(), known("done", "failed"), sd=0.01)
    assert render(planned).splitlines() == [
        "sweep hunt: Does noise help?",
        "6 runs: 2 arms x 3 seeds, 3 duplicates between blocks merged",
        "",
        "blocks         role                 arm              seeds  status",
        "base           baseline             muon             1 2 3  1 done, 2 planned",
        "noisy + again  candidate + control  orthonoise-a0.1  1 2 3  1 failed, 2 planned",
        "",
        "to run: 4 runs, 409,600 training tokens, 7.7e+11 FLOPs",
        "time: about 1.3 minutes, one run after the other (assumed: 1e+10 FLOP/s, and a second to start)",
        "cost: 0 USD (local machines cost nothing)",
        "power: 3 seeds resolve a measured difference of 0.025 and find a true one of 0.033 4 times in 5"
        " (sd of paired differences 0.01, given)",
    ]


def test_what_takes_gpus_that_are_not_here_is_priced_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUON_NODE_TYPE", raising=False)
    spec = hunt("seeds:", "resources: {workers: 2, gpus_per_worker: 1}\nseeds:")
    monkeypatch.setattr("ray_jobs.machine.count_gpus", lambda *_: 2)
    assert "cost: 0 USD (local machines cost nothing)" in render(plan(spec, {}))
    monkeypatch.setattr("ray_jobs.machine.count_gpus", lambda *_: 1)
    planned = plan(spec, {})
    assert render(planned).splitlines()[8:10] == [
        "time: under a second, one run after the other (assumed: 35% of the peak of 2 h100)",
        "cost: under 0.01 USD on p5.48xlarge (AWS list prices on demand, us-east-1 and us-west-2, Linux, 2025-11-30)",
    ]
    told = money(planned, Folder("nowhere")).to_json()
    assert told["price"]["node"] == "p5.48xlarge"
    assert told["cost_usd"] == pytest.approx(2 * 6.88 * planned.seconds / 3600)


def test_a_time_has_the_unit_that_reads_well() -> None:
    seconds = (0.05, 2.51, 59.4, 59.6, 78, 99.4 * 60, 24000, 1e6)
    assert [lasting(second) for second in seconds] == [
        "under a second", "about 2.5 seconds", "about 59 seconds", "about 0.99 minutes", "about 1.3 minutes",
        "about 99 minutes", "about 6.67 hours", "about 278 hours",
    ]  # fmt: skip


def test_render_says_for_how_many_arms_the_verdicts_are_adjusted() -> None:
    assert render(plan(hunt("[0.1]", "[0.1, 0.2]"), {}, sd=0.01)).endswith(
        "power: 3 seeds resolve a measured difference of 0.036 and find a true one of 0.046 4 times in 5,"
        " adjusted for 2 arms (Holm) (sd of paired differences 0.01, given)"
    )


def test_render_says_that_one_seed_resolves_nothing() -> None:
    lines = render(plan(hunt("[1, 2, 3]", "[1]"), {}, sd=0.01)).splitlines()
    assert lines[1] == "2 runs: 2 arms x 1 seed, 1 duplicate between blocks merged"
    assert lines[-1] == (
        "power: one seed gives no interval and resolves nothing; add seeds (sd of paired differences 0.01, given)"
    )
