"""Sweeps of thousands of runs: what it costs to plan them, and to drive them while they train.

Usage: python tests/bench/many.py [--runs N]
Runs the real command in a new process each time, on files of 2 seeds and half as many arms as runs, and takes the best
of five. CPU seconds are those of the process, so that a busy machine matters little. Exit 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

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
    # Where pip installs a package it compiles it, too; this one may lie in a checkout.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(store.parent / "compiled")}
    environment = os.environ | compiled | {"MUON_STORE": str(store)}
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


TINY = """\
  steps: 1
  batch_size: 2
  model.d_model: 32
  model.num_layers: 1
  model.num_heads: 2
  model.num_kv_heads: 1
  model.d_ff: 32
  model.vocab_size: 512
  data.seq_len: 16
  data.validation_tokens: 64
"""


class Look(NamedTuple):
    """The driver of a sweep at one moment."""

    ended: int
    """Runs."""
    cpu_s: float
    rss: int
    """Bytes."""
    outside: int
    """Files outside the store."""


def train(folder: Path, runs: int) -> list[tuple[str, float, float]]:
    """(what, how much, the goal) of a sweep of so many one-step runs on two slots, from a tenth of them to the end."""
    store, temporary = folder / "trained", folder / "tmp"
    temporary.mkdir()
    spec = folder / "train.yaml"
    seeds = list(range(runs))
    spec.write_text(
        f"version: 1\nname: many\nseeds: {seeds}\nconstants:\n{TINY}"
        "resources: {max_concurrent: 2}\nblocks:\n  - {name: base, role: baseline, optimizer: muon}\n"
    )
    environment = os.environ | {"MUON_STORE": str(store), "TMPDIR": str(temporary)}
    driver = subprocess.Popen(
        [MUON, "sweep", "run", str(spec)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    process, looks = psutil.Process(driver.pid), list[Look]()
    assert driver.stderr
    for line in driver.stderr:
        if f"/{runs}  done " in line:
            ended = int(line.partition("/")[0].split()[-1])
            if ended % max(1, runs // 10) == 0:
                times = process.cpu_times()
                outside = sum(len(files) for _, _, files in os.walk(temporary))
                looks.append(Look(ended, times.user + times.system, process.memory_info().rss, outside))
    assert driver.wait() == 0
    first, last = looks[0], looks[-1]
    each = (last.cpu_s - first.cpu_s) / (last.ended - first.ended)
    return [
        (f"ms of CPU of the driver a run, {runs:,} runs", 1000 * each, 30.0),
        ("of its memory after a tenth of them", last.rss / first.rss, 1.1),
        ("files outside the store at most", float(max(look.outside for look in looks)), 500.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2_000, help="one-step runs to train; 0 trains none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as folder:  # Ray's sockets need short names
        planned = plan(Path(folder))
        trained = train(Path(folder), options.runs) if options.runs else []
    told = [f"{what} {spent.cpu_s:.2f} s CPU, {spent.wall_s:.2f} s (goal {goal:g})" for what, spent, goal in planned]
    told += [f"{amount:.3g} {what} (goal {goal:g})" for what, amount, goal in trained]
    print("; ".join(told))
    sys.exit(any(spent.cpu_s > goal for _, spent, goal in planned) or any(much > goal for _, much, goal in trained))


if __name__ == "__main__":
    main()
