"""What runs take before they are run: seconds from runs like them."""

from typing import Any

import pytest

from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from muon_core.store.known import End
from search_spaces.estimate import Speed, estimate, flops, speeds


def run(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(PRESETS["tiny"] | {"optimizer": {"name": "muon"}} | changes)


def end(config: RunConfig, seconds: float, status: str = "done") -> End:
    return End(status, 0, seconds, config.steps, None, None, config.model_dump_json())


def test_the_runs_most_like_it_say_how_long_a_run_takes() -> None:
    muon, adamw = run(), run(optimizer={"name": "adamw"})
    other = run(model={"d_model": 128})
    past = speeds([end(muon, 30.0), end(muon, 40.0), end(muon, 50.0), end(adamw, 20.0), end(muon, 9.0, "failed")])
    found = estimate({"a": muon, "b": adamw, "c": run(steps=2 * muon.steps), "d": other}, past, guess=1.0)
    assert found.seconds["a"] == pytest.approx(40.0)
    assert found.seconds["b"] == pytest.approx(20.0)
    assert found.seconds["c"] == pytest.approx(80.0)
    assert found.seconds["d"] == pytest.approx(flops(other) / flops(muon) / ((1 / 30 + 1 / 40) / 2))
    assert "measured: 3 runs of this model and optimizer" in found.source
    assert "measured: 4 runs of other models" in found.source
    assert found.is_measured


def test_where_nothing_was_measured_the_guess_is_called_one() -> None:
    found = estimate({"a": run()}, [], guess=1e9)
    assert found.seconds["a"] == pytest.approx(flops(run()) / 1e9 + 1)
    assert found.source.startswith("assumed: 1e+09 FLOP/s")
    assert not found.is_measured


def test_records_of_another_release_are_passed_over() -> None:
    assert speeds([end(run(), 30.0)._replace(config_json='{"mood": "good"}')]) == []
    assert speeds([end(run(), 30.0)._replace(config_json=None)]) == []
    assert isinstance(speeds([end(run(), 30.0)])[0], Speed)
