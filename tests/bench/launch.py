"""What a run costs beyond its training: warm slots beside Tune + TorchTrainer as Ray's guide shows them.

Prints, for both, the time from the call to the first optimizer step, and from the end of a run to the first step of the
next; the same training function and the same runs. Exits 1 unless a warm slot takes at most 0.3 s between runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray_jobs.ray_settings  # noqa: F401  before ray, for both sides alike

GOAL_S = 0.3
CONFIG: dict[str, Any] = {  # short, with a small evaluation: what is measured is everything but the training
    "steps": 10,
    "data": {"validation_tokens": 2048},
    "tracking": {"eval_every": 10, "track_every": 10},
}


def configs(count: int) -> list[Any]:
    from muon_core.config.run import RunConfig

    return [RunConfig.model_validate(CONFIG | {"seed": seed}) for seed in range(count)]


def warm_slots(count: int, workers: int) -> tuple[float, list[float]]:
    """(seconds to the first step, seconds between the end of a run and the first step of the next)."""
    from muon_core.store.open import open_storage
    from ray_jobs.launch import run_on_ray
    from search_spaces.spec import Resources

    with tempfile.TemporaryDirectory() as folder:
        begin = time.time()
        states = run_on_ray(configs(count), open_storage(folder), Resources(workers=workers, max_concurrent=1))
    assert all(state.status == "done" for state in states), states
    gaps = [after.first_step_at - before.ended_at for before, after in itertools.pairwise(states)]
    return states[0].first_step_at - begin, gaps


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
        if progress.step == 1:
            times["first_step"] = time.time()
        return True

    train(RunConfig.model_validate_json(cell["config"]), open_storage(cell["store"]), report=report)
    if main:
        times["end"] = time.time()
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


def tune_and_trainer(count: int, workers: int) -> tuple[float, list[float]]:
    """The same figures for one TorchTrainer a trial."""
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
    gaps = [after["first_step"] - before["end"] for before, after in itertools.pairwise(stamps)]
    return stamps[0]["first_step"] - begin, gaps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=6, help="runs through warm slots")
    parser.add_argument("--guide-runs", type=int, default=3, help="runs the plain way")
    parser.add_argument("--workers", type=int, default=2, help="DDP workers a run")
    options = parser.parse_args()
    os.environ |= {
        "RAY_TRAIN_V2_ENABLED": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    slow_first, slow_gaps = tune_and_trainer(options.guide_runs, options.workers)
    first, gaps = warm_slots(options.runs, options.workers)
    print(f"{'':32s} {'to first step':>14s} {'between runs, median':>22s} {'largest':>9s}")
    for name, start, between in (
        ("Tune + TorchTrainer per trial", slow_first, slow_gaps),
        ("warm slots", first, gaps),
    ):
        print(f"{name:32s} {start:12.1f} s {statistics.median(between):20.2f} s {max(between):7.2f} s")
    measured = statistics.median(gaps)
    ratio = statistics.median(slow_gaps) / measured
    met = measured <= GOAL_S
    verdict = "met" if met else "MISSED"
    print(f"between runs: {measured:.2f} s, {ratio:.0f}x less than the rival; goal <= {GOAL_S} s: {verdict}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
