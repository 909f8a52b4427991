"""What a run costs beyond its training: warm slots, Tune + TorchTrainer as Ray's guide shows them, and a shell loop.

Prints the time from the call until the first run begins to train, and from the last step of a run until the next begins
to train: its results kept and recorded, the next one fetched, its model built and its data opened. The same training
function and the same runs; most processes at once and their memory (resident sets, added up). Exits 1 unless a warm
slot takes at most 0.1 s between runs, and the call at most half of the stock way's time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

import ray_jobs.ray_settings  # noqa: F401  before ray, for both sides alike

GOAL_S = 0.1
GOAL_SHARE = 0.5  # of the stock way's time to the first run
GOAL_BYTES = 2.5 * 2**30
CONFIG: dict[str, Any] = {  # short, with a small evaluation: what is measured is everything but the training
    "steps": 10,
    "data": {"validation_tokens": 2048},
    "tracking": {"eval_every": 10, "track_every": 10},
}


@dataclass
class Measured:
    """One way to train the runs."""

    name: str
    first_s: float
    """From the call to the beginning of the first run's training."""
    gaps_s: list[float]
    """From the last step of each run to the beginning of the next."""
    processes: int = 0
    rss: int = 0
    """Bytes, of all processes together, at most."""


class Family:
    """Looks at this process and those below it, ten times a second, while the block is running."""

    def __init__(self) -> None:
        self.processes, self.rss = 0, 0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._left.wait(0.1):
            sizes = []
            for process in [me, *me.children(recursive=True)]:
                try:
                    sizes.append(process.memory_info().rss)
                except psutil.Error:
                    continue
            self.processes, self.rss = max(self.processes, len(sizes)), max(self.rss, sum(sizes))


def configs(count: int) -> list[Any]:
    from muon_core.config.run import RunConfig

    return [RunConfig.model_validate(CONFIG | {"seed": seed}) for seed in range(count)]


def warm_slots(count: int, workers: int) -> Measured:
    from muon_core.store.open import open_storage
    from ray_jobs.launch import run_on_ray
    from search_spaces.spec import Resources

    with tempfile.TemporaryDirectory() as folder:
        begin = time.time()
        states = run_on_ray(configs(count), open_storage(folder), Resources(workers=workers, max_concurrent=1))
    assert all(state.status == "done" for state in states), states
    times = [(state.began_at or 0.0, state.trained_at or 0.0) for state in states]
    return _measured("warm slots", begin, times)


def _measured(name: str, begin: float, times: list[tuple[float, float]]) -> Measured:
    """`times` are of each run: when it began to train, and when it had done its last step."""
    gaps = [after - before for (_, before), (after, _) in itertools.pairwise(times)]
    return Measured(name, times[0][0] - begin, gaps)


def guide_loop(cell: dict[str, Any]) -> None:
    """train_loop_per_worker of the plain way: one run, its times in a file."""
    import ray.train
    import torch

    from muon_core.config.run import RunConfig
    from muon_core.store.open import open_storage
    from muon_core.train import train

    torch.set_num_threads(1)
    main = ray.train.get_context().get_world_rank() == 0
    times: dict[str, float] = {}

    def report(progress: Any) -> bool:
        times.setdefault("began", time.time())
        if progress.step == progress.steps:
            times["trained"] = time.time()
        return True

    train(RunConfig.model_validate_json(cell["config"]), open_storage(cell["store"]), report=report)
    if main:
        Path(cell["times"], f"{cell['index']}.json").write_text(json.dumps(times))


def guide_driver(cell: dict[str, Any]) -> None:
    """The Tune trial of the plain way: it drives a TorchTrainer of its own."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        guide_loop,
        train_loop_config=cell,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=cell["workers"], resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name=f"run-{cell['index']}", storage_path=cell["scratch"]),
    ).fit()


def tune_and_trainer(count: int, workers: int) -> Measured:
    """One TorchTrainer a trial."""
    import ray
    from ray import tune

    from ray_jobs.slots import worker_environment

    with (
        tempfile.TemporaryDirectory() as store,
        tempfile.TemporaryDirectory() as times,
        tempfile.TemporaryDirectory() as scratch,
    ):
        begin = time.time()
        ray.init(address="local", log_to_driver=False, runtime_env={"env_vars": worker_environment(1)})
        cells = [
            {
                "config": config.model_dump_json(), "store": store, "times": times, "scratch": scratch,
                "index": index, "workers": workers,
            }
            for index, config in enumerate(configs(count))
        ]  # fmt: skip
        results = tune.Tuner(
            tune.with_resources(lambda space: guide_driver(space["cell"]), {"node:__internal_head__": 0.001}),
            param_space={"cell": tune.grid_search(cells)},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(name="guide", storage_path=scratch, verbose=0),
        ).fit()
        ray.shutdown()
        if results.errors:
            raise results.errors[0]
        stamps = [json.loads(Path(times, f"{index}.json").read_text()) for index in range(count)]
    return _measured("Tune + TorchTrainer per trial", begin, [(stamp["began"], stamp["trained"]) for stamp in stamps])


SHELL_RUN = """
import sys, time, torch
from muon_core.config.run import RunConfig
from muon_core.store.open import open_storage
from muon_core.train import train
torch.set_num_threads(1)
times = {}
def report(progress):
    times.setdefault("began", time.time())
    if progress.step == progress.steps:
        times["trained"] = time.time()
    return True
train(RunConfig.model_validate_json(sys.argv[1]), open_storage(sys.argv[2]), report=report)
print(times["began"], times["trained"])
"""


def shell_loop(count: int) -> Measured:
    """A process a run, one after the other, without Ray: one worker each."""
    times = []
    with tempfile.TemporaryDirectory() as store:
        begin = time.time()
        for config in configs(count):
            command = [sys.executable, "-c", SHELL_RUN, config.model_dump_json(), store]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            began, trained = map(float, done.stdout.split())
            times.append((began, trained))
    return _measured("shell loop, 1 worker", begin, times)


def watched(way: Callable[..., Measured], *arguments: int) -> Measured:
    """What `way` takes, with its processes and their memory."""
    with Family() as family:
        measured = way(*arguments)
    measured.processes, measured.rss = family.processes, family.rss
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=6, help="runs through warm slots")
    parser.add_argument("--guide-runs", type=int, default=3, help="runs the other ways")
    parser.add_argument("--workers", type=int, default=1, help="DDP workers a run")
    options = parser.parse_args()
    os.environ |= {
        "RAY_TRAIN_V2_ENABLED": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ways = [
        watched(shell_loop, options.guide_runs),
        watched(tune_and_trainer, options.guide_runs, options.workers),
        watched(warm_slots, options.runs, options.workers),
    ]
    columns = ("to first run", "between runs, median", "largest", "processes", "memory")
    print(f"{'':32s}" + "".join(f"  {name:>{len(name)}s}" for name in columns))
    for way in ways:
        cells = (
            f"{way.first_s:.1f} s",
            f"{statistics.median(way.gaps_s):.2f} s",
            f"{max(way.gaps_s):.2f} s",
            f"{way.processes}",
            f"{way.rss / 2**30:.1f} GiB",
        )
        print(f"{way.name:32s}" + "".join(f"  {cell:>{len(name)}s}" for name, cell in zip(columns, cells, strict=True)))
    _, stock, ours = ways
    between, share = statistics.median(ours.gaps_s), ours.first_s / stock.first_s
    goals = {
        f"between runs {between:.2f} s, {statistics.median(stock.gaps_s) / between:.0f}x less than the stock way; "
        f"goal <= {GOAL_S}": between <= GOAL_S,
        f"to the first run {share:.2f} of its time; goal <= {GOAL_SHARE}": share <= GOAL_SHARE,
        f"{ours.rss / 2**30:.1f} GiB; goal <= {GOAL_BYTES / 2**30}": ours.rss <= GOAL_BYTES,
    }
    print("; ".join(f"{text}: {'met' if met else 'MISSED'}" for text, met in goals.items()))
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
