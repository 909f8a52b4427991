"""Kills runs by SIGKILL at random instants and compares what remains with an uninterrupted run, bit for bit.

    python tests/bench/torture.py --kills 50

Half of the kills hit a training in one process; half hit a sweep on Ray with two DDP workers: a worker, the process
that drives the trial, or everything at once. Prints what was killed; exits 1 at the first difference.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs
import psutil
import torch
import yaml

from analysis.store import open_store
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.store.keys import parse_checkpoint
from muon_core.store.reader import read_attempts
from muon_core.tables import RUNS, SERIES
from muon_core.throughput import COLUMNS
from muon_core.train import train

MUON = str(Path(sys.executable).with_name("muon"))
TIMING = ("attempt", "step_time_s", "tokens_per_s", "elapsed_s", *COLUMNS)
OF_ATTEMPT = ("attempts", "started_at", "ended_at", "peak_memory_bytes", "world_size", "commit", "diff_hash",
              "environment_json", "distribution_json")  # fmt: skip
FIELDS: dict[str, Any] = {
    "optimizer": {"name": "orthonoise", "alpha": 0.1, "ns_dtype": "fp32"},
    "data": {"validation_tokens": 2048},
    "steps": 150,
    "micro_batches": 2,
    "tracking": {"eval_every": 10, "track_every": 10, "spectra_every": 30, "flush_every_s": 0.1},
    "checkpoint": {"every_steps": 7, "every_s": None},
}
PROGRAM = """
import sys, torch
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.train import train
torch.set_num_threads(1)
train(RunConfig.model_validate_json(sys.argv[2]), Folder(sys.argv[1]))
"""


def status(store: Path) -> str | None:
    found = open_store(store).runs.collect()["status"].to_list() if (store / "attempts").exists() else []
    return found[0] if found else None


def attempts(store: Path) -> int:
    return len(Folder(store).list("attempts/"))


def wait_for_training(process: subprocess.Popen[bytes], store: Path, before: int) -> bool:
    """Until the process has begun an attempt of its own; False if it ended first."""
    while attempts(store) == before:
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


def kill_plain(config: RunConfig, store: Path, kills: int, chance: random.Random) -> int:
    """Kill a training process up to `kills` times, then let it end; returns the kills that hit it training."""
    command = [sys.executable, "-c", PROGRAM, str(store), config.model_dump_json()]
    hits = 0
    while hits < kills and status(store) != "done":
        process = subprocess.Popen(command)
        if wait_for_training(process, store, attempts(store)):
            time.sleep(chance.expovariate(1 / 2.0))
            hits += status(store) != "done"
        process.kill()
        process.wait()
    subprocess.run(command, check=True)
    return hits


def processes(root: int, name: str) -> list[psutil.Process]:
    """Processes below `root` whose title holds `name`."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile
    return found


def kill_on_ray(spec: Path, store: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """The same for a sweep of one run on two workers; returns the kills by what they hit."""
    hits: dict[str, int] = {"worker": 0, "trial driver": 0, "everything": 0}
    deck: list[str] = []
    command = [MUON, "sweep", "run", str(spec), "--store", str(store), "--retry", "failed"]
    while sum(hits.values()) < kills and status(store) != "done":
        sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while sum(hits.values()) < kills and wait_for_training(sweep, store, attempts(store)):
            time.sleep(chance.expovariate(1 / 2.0))
            if status(store) == "done":
                continue  # it only has to end
            deck = deck or chance.sample(list(hits), len(hits))  # each in turn, in any order
            target = deck.pop()
            name = {"worker": "RayTrainWorker", "trial driver": "ray::ResourceTrainable", "everything": ""}[target]
            victims = processes(sweep.pid, name)
            if target == "everything":
                for process in [psutil.Process(sweep.pid), *victims]:
                    if process.is_running():
                        process.kill()
                sweep.wait()
                hits[target] += 1
                break
            if victims:
                chance.choice(victims).kill()
                hits[target] += 1
        else:
            sweep.wait()
    while status(store) != "done":
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return hits


def rows(store: Path, table: str) -> pl.DataFrame:
    return open_store(store).table(table).drop(TIMING, strict=False).sort("seq").collect()


def weights(store: Path, config: RunConfig) -> dict[str, torch.Tensor]:
    """What the run's newest attempt ended with."""
    head = max(read_attempts(Folder(store), config.run_id)[config.run_id])
    keys = [key for key, _ in Folder(store).list(f"checkpoints/{config.run_id}/model/")]
    (key,) = [key for key in keys if (told := parse_checkpoint(key)) and told.attempt == head]
    model: dict[str, torch.Tensor] = torch.load(io.BytesIO(Folder(store).get(key)), weights_only=True)["model"]
    return model


def record(store: Path) -> pl.DataFrame:
    """What the store says of the run, but for when, where and in how many attempts it was trained."""
    return open_store(store).runs.drop(cs.ends_with("_s"), *OF_ATTEMPT).collect()


def differences(a: Path, b: Path, config: RunConfig) -> list[str]:
    """Tables and weights in which two stores differ."""
    found = [table for table in SERIES if not rows(a, table).equals(rows(b, table))]
    found += [] if record(a).equals(record(b)) else [RUNS.name]
    ours, theirs = weights(a, config), weights(b, config)
    return found + [name for name in ours if not torch.equal(ours[name], theirs[name])]


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill runs at random instants and compare them with a whole one.")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--mode", choices=["plain", "ray", "both"], default="both")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and targets")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    config = RunConfig.model_validate(FIELDS)
    done, round_ = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        train(config, Folder(whole))
        spec = Path(folder, "sweep.yaml")
        constants = {
            f"{group}.{key}": value
            for group in ("data", "tracking", "checkpoint")
            for key, value in FIELDS[group].items()
        }
        constants |= {"steps": FIELDS["steps"], "micro_batches": 2, "alpha": 0.1, "ns_dtype": "fp32"}
        block = {"name": "noise", "role": "baseline", "optimizer": "orthonoise"}
        sweep = {"version": 1, "name": "torture", "seeds": [config.seed], "constants": constants, "blocks": [block]}
        spec.write_text(yaml.safe_dump(sweep | {"resources": {"workers": 2}, "retries": {"infrastructure": 100}}))
        while done < options.kills:
            store, left = Path(folder, f"round{round_}"), min(8, options.kills - done)
            plain = options.mode == "plain" or (options.mode == "both" and round_ % 2 == 0)
            hits = (
                {"process": kill_plain(config, store, left, chance)}
                if plain
                else kill_on_ray(spec, store, left, chance)
            )
            done, round_ = done + sum(hits.values()), round_ + 1
            found = differences(whole, store, config)
            told = ", ".join(f"{count} x {name}" for name, count in hits.items())
            print(
                f"{'plain' if plain else 'Ray, 2 workers'}: killed {told}; differences: {found or 'none'}", flush=True
            )
            if found:
                print(f"{done} kills: DIFFERENT")
                return 1
    print(f"{done} kills: 0 differences; goal 0: met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
