"""What runs take before they are run: seconds from runs like them."""

from typing import Any

import pytest

from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from muon_core.store.known import End
from ray_jobs.cli.presets import facts
from ray_jobs.prices import load_prices
from search_spaces.estimate import ASSUMED_CPU, ASSUMED_GPU, ASSUMED_MFU, Guess, Speed, estimate, flops, speeds
from search_spaces.spec import Resources

CPU = Guess(Resources())


def run(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(PRESETS["tiny"] | {"optimizer": {"name": "muon"}} | changes)


def end(config: RunConfig, seconds: float, status: str = "done", device: str | None = None) -> End:
    return End(status, 0, seconds, config.steps, None, None, config.model_dump_json(), device)


def test_the_runs_most_like_it_say_how_long_a_run_takes() -> None:
    muon, adamw = run(), run(optimizer={"name": "adamw"})
    other = run(model={"d_model": 128})
    past = speeds([end(muon, 30.0), end(muon, 40.0), end(muon, 50.0), end(adamw, 20.0), end(muon, 9.0, "failed")])
    found = estimate({"a": muon, "b": adamw, "c": run(steps=2 * muon.steps), "d": other}, past, CPU)
    assert found.seconds["a"] == pytest.approx(40.0)
    assert found.seconds["b"] == pytest.approx(20.0)
    assert found.seconds["c"] == pytest.approx(80.0)
    assert found.seconds["d"] == pytest.approx(flops(other) / flops(muon) / ((1 / 30 + 1 / 40) / 2))
    assert "measured: 3 runs of this model and optimizer" in found.source
    assert "measured: 4 runs of other models" in found.source
    assert found.is_measured


def test_where_nothing_was_measured_the_guess_is_called_one() -> None:
    found = estimate({"a": run()}, [], Guess(Resources(workers=2, cpus_per_worker=3)))
    assert found.seconds["a"] == pytest.approx(flops(run()) / (6 * ASSUMED_CPU) + 1)
    assert found.source == "assumed: 6e+10 FLOP/s, and a second to start"
    assert not found.is_measured


def test_on_gpus_it_is_what_presets_tell_and_names_what_is_assumed() -> None:
    config = RunConfig.model_validate(PRESETS["88m"] | {"optimizer": {"name": "muon"}, "steps": 1000})
    told = facts("88m", config, 1000 * config.tokens_per_step, ASSUMED_GPU, ASSUMED_MFU, load_prices())
    one, eight = (estimate({"a": config}, [], Guess(Resources(workers=n, gpus_per_worker=1))) for n in (1, 8))
    assert one.seconds["a"] / 3600 == pytest.approx(told["hours"], rel=1e-12)
    assert one.seconds["a"] > flops(config) / (989e12 * ASSUMED_MFU)  # which has no Newton-Schulz
    assert eight.seconds["a"] == pytest.approx(one.seconds["a"] / 8)
    assert (one.source, eight.source) == (
        "assumed: 35% of the peak of 1 h100", "assumed: 35% of the peak of 8 h100"
    )  # fmt: skip
    small = estimate({"a": config}, [], Guess(Resources(gpus_per_worker=1), "a10g"))
    assert small.seconds["a"] == pytest.approx(one.seconds["a"] * 989 / 70)
    past = speeds([end(config, 1234.0)])
    assert estimate({"a": config}, past, Guess(Resources(gpus_per_worker=1))).seconds["a"] == pytest.approx(1234.0)


def test_runs_on_cpus_say_nothing_of_runs_on_gpus() -> None:
    """As the small twin of a sweep, whose speed would make years of it."""
    config = run()
    past = speeds([end(config, 30.0, device="cpu x86_64 AVX512"), end(config, 2.0, device="NVIDIA H100 PCIe")])
    on_cpus, on_gpus = (Guess(Resources(gpus_per_worker=gpus)) for gpus in (0, 1))
    assert estimate({"a": config}, past, on_cpus).seconds["a"] == pytest.approx(30.0)
    assert estimate({"a": config}, past, on_gpus).seconds["a"] == pytest.approx(2.0)
    guessed = estimate({"a": config}, past[:1], on_gpus)
    assert (guessed.is_measured, guessed.source) == (False, "assumed: 35% of the peak of 1 h100")
    untold = speeds([end(config, 30.0)])
    assert estimate({"a": config}, untold, on_gpus).seconds["a"] == pytest.approx(30.0)


def test_a_precision_that_a_gpu_lacks_is_computed_as_fp32() -> None:
    bf16, fp32 = run(precision="bf16"), run(precision="fp32")
    old = Guess(Resources(gpus_per_worker=1), "t4")
    assert old.seconds(bf16) == old.seconds(fp32)


def test_records_of_another_release_are_passed_over() -> None:
    assert speeds([end(run(), 30.0)._replace(config_json='{"mood": "good"}')]) == []
    assert speeds([end(run(), 30.0)._replace(config_json=None)]) == []
    assert isinstance(speeds([end(run(), 30.0)])[0], Speed)
