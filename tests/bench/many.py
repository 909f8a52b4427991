"""Sweeps of thousands of runs: what it costs to plan them.

Usage: python tests/bench/many.py
Runs the real command in a new process each time, on files of 2 seeds and half as many arms as runs, and takes the best
of five. CPU seconds are those of the process, so that a busy machine matters little. Exit 1 when a goal is missed.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MUON = str(Path(sys.executable).with_name("muon"))
DEMO = Path(__file__).parents[2] / "search_spaces" / "demo.yaml"
REPEATS = 5


class Spent(NamedTuple):
    """What a command took, in seconds."""

    cpu_s: float
    wall_s: float


def write_sweep(path: Path, runs: int) -> str:
    """A sweep file of so many runs, an even number: the baseline and a grid of one value for each other arm."""
    alphas = [round(1e-4 * (1 + arm), 7) for arm in range(runs // 2 - 1)]
    path.write_text(
        f"version: 1\nname: many-{runs}\nseeds: [1, 2]\nconstants: {{steps: 1}}\nblocks:\n"
        "  - {name: base, role: baseline, optimizer: muon}\n"
        f"  - {{name: noise, optimizer: orthonoise, grid: {{alpha: {alphas}}}}}\n"
    )
    return str(path)


def measure(*arguments: str, store: Path) -> Spent:
    """The best of REPEATS runs of `muon` with `arguments`."""
    return min(_once(arguments, store) for _ in range(REPEATS))


def _once(arguments: tuple[str, ...], store: Path) -> Spent:
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"MUON_STORE": str(store)}
    subprocess.run([MUON, *arguments], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(cpu, time.perf_counter() - begin)


def plan(folder: Path) -> list[tuple[str, Spent, float]]:
    """(what, what it took, CPU seconds it may take)."""
    store = folder / "results"
    return [
        ("muon --help", measure("--help", store=store), 0.1),
        ("plan of the demo", measure("sweep", "plan", str(DEMO), store=store), 0.5),
        *(
            (
                f"plan of {runs:,} runs",
                measure("sweep", "plan", write_sweep(folder / f"{runs}.yaml", runs), store=store),
                goal,
            )
            for runs, goal in ((2_000, 1.0), (10_000, 4.0))
        ),
    ]


# What trains many short runs is measured here, too: a function like `plan`, and a line in `main`.


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measured = plan(Path(folder))
    told = [f"{what} {spent.cpu_s:.2f} s CPU, {spent.wall_s:.2f} s (goal {goal:g})" for what, spent, goal in measured]
    print("; ".join(told))
    sys.exit(any(spent.cpu_s > goal for _, spent, goal in measured))


if __name__ == "__main__":
    main()
