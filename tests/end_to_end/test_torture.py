"""A few SIGKILLs of a sweep on Ray; `tests/bench/torture.py` by itself does as many as it is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[1] / "bench" / "torture.py"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_trial_and_sweep_leave_no_trace_in_rows_and_weights() -> None:
    done = subprocess.run([sys.executable, TORTURE, "--kills", "3", "--mode", "ray"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told, verdict = done.stdout.splitlines()
    assert told == "Ray, 2 workers: killed 1 x worker, 1 x trial driver, 1 x everything; differences: none"
    assert verdict == "3 kills: 0 differences; goal 0: met"
