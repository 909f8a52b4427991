import pytest

from muon_core.config.run import ScheduleConfig
from muon_core.optim.schedules import lr_multiplier


def multipliers(steps: int, warmup_steps: int, cooldown: float, final: float) -> list[float]:
    schedule = ScheduleConfig(warmup_steps=warmup_steps, cooldown=cooldown, final=final)
    return [lr_multiplier(schedule, step, steps) for step in range(steps)]


def test_lr_multiplier_is_a_trapezoid() -> None:
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert multipliers(10, warmup_steps=2, cooldown=0.4, final=0.0) == expected


def test_lr_multiplier_defaults_reach_exactly_a_tenth_at_the_last_step() -> None:
    values = [lr_multiplier(ScheduleConfig(), step, 200) for step in range(200)]
    assert values[:10] == [(step + 1) / 10 for step in range(10)]
    assert values[9:120] == [1.0] * 111
    assert values[159] == pytest.approx(0.55)  # half way down
    assert values[-1] == 0.1


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "cooldown", "final", "expected"),
    [
        (4, 0, 0.0, 0.1, [1.0, 1.0, 1.0, 1.0]),
        (4, 0, 1.0, 0.0, [0.75, 0.5, 0.25, 0.0]),
        (4, 0, 0.5, 1.0, [1.0, 1.0, 1.0, 1.0]),
        (4, 8, 0.0, 0.1, [0.125, 0.25, 0.375, 0.5]),
        (4, 4, 0.5, 0.0, [0.25, 0.5, 0.5, 0.0]),  # the smaller of warm-up and cool-down
        (4, 2, 1.0, 0.0, [0.5, 0.5, 0.25, 0.0]),
        (1, 10, 0.4, 0.1, [0.1]),  # round(0.4) = 0 steps of cool-down, a tenth of the warm-up
        (1, 0, 0.5, 0.1, [1.0]),  # round(0.5) = 0
    ],
)  # fmt: skip
def test_lr_multiplier_without_a_plateau(
    steps: int, warmup_steps: int, cooldown: float, final: float, expected: list[float]
) -> None:
    assert multipliers(steps, warmup_steps, cooldown, final) == expected


@pytest.mark.parametrize("step", [-1, 10])
def test_lr_multiplier_knows_only_the_steps_of_the_run(step: int) -> None:
    with pytest.raises(AssertionError, match=f"step {step} is not in 0..9"):
        lr_multiplier(ScheduleConfig(), step, 10)
