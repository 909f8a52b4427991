"""Where seconds go: each counts once, under the innermost part that was running."""

import pytest

from muon_core import stopwatch as stopwatch_module
from muon_core.stopwatch import PARTS, Stopwatch
from muon_core.tables import RUNS

OVER_ALL = ("wall_s", "train_s", "tokens_per_s")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is moved by hand: its last entry is the time."""
    now = [100.0]
    monkeypatch.setattr(stopwatch_module.time, "perf_counter", lambda: now[-1])
    return now


def test_a_part_within_another_pauses_it(clock: list[float]) -> None:
    stopwatch = Stopwatch()
    with stopwatch.timed("optimizer"):
        clock.append(101.0)
        with stopwatch.timed("tracking"):
            clock.append(104.0)
        clock.append(104.5)
    clock.append(200.0)  # nobody's
    with stopwatch.timed("tracking"):
        clock.append(201.0)
    assert stopwatch.seconds == dict.fromkeys(PARTS, 0.0) | {"optimizer": 1.5, "tracking": 4.0}


def fail_after(clock: list[float], seconds: float) -> None:
    clock.append(clock[-1] + seconds)
    raise ValueError("lost")


def test_an_error_ends_its_parts(clock: list[float]) -> None:
    stopwatch = Stopwatch()
    with pytest.raises(ValueError, match="lost"), stopwatch.timed("data"), stopwatch.timed("checkpoint"):
        fail_after(clock, 2.0)
    with stopwatch.timed("data"):
        clock.append(103.0)
    assert (stopwatch.seconds["data"], stopwatch.seconds["checkpoint"]) == (1.0, 2.0)


def test_every_part_has_its_column() -> None:
    columns = [name for name in RUNS.columns if name.endswith("_s") and name not in OVER_ALL]
    assert columns == [f"{part}_s" for part in PARTS]
