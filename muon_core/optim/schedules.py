"""Learning-rate schedules: multipliers of each optimizer's own rate."""

from __future__ import annotations

from muon_core.config.run import ScheduleConfig


def lr_multiplier(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Trapezoid: multiplier of the learning rate for optimizer step `step`, counted from 0, of `steps`.

    Warm-up takes `(step + 1) / warmup_steps`, so that its last step is the first at the full rate. The cool-down falls
    linearly over the last `round(cooldown * steps)` steps and reaches exactly `final` at step `steps - 1`. Where both
    overlap, in runs shorter than their warm-up, the smaller one holds.
    """
    assert 0 <= step < steps, f"step {step} is not in 0..{steps - 1}"
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    cooldown_steps = round(schedule.cooldown * steps)
    done = step + 1 - (steps - cooldown_steps)
    if done <= 0:
        return warmup
    progress = done / cooldown_steps
    return min(warmup, (1 - progress) + schedule.final * progress)
