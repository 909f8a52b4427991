"""Writers that are killed while they upload: what is read at the end equals an uninterrupted run.

MUON_KILLS sets how many kills each server sees.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import servers.killed_writer as killed_writer
from servers.fault_proxy import FaultProxy
from servers.fixtures import fresh_url

from analysis.tables import open_store
from muon_core.compaction import compact
from muon_core.snapshot import read_statuses
from muon_core.storage import open_storage

KILLS = int(os.environ.get("MUON_KILLS", "2"))
STEPS = 70
LONGEST_LIFE_S = 0.6


def start(url: str, checkpoint: Path) -> subprocess.Popen[str]:
    """A writer that has begun its attempt."""
    arguments = [sys.executable, killed_writer.__file__, url, str(checkpoint), str(STEPS)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_a_run_killed_while_uploading_ends_with_the_rows_of_an_uninterrupted_one(
    faults: FaultProxy, tmp_path: Path
) -> None:
    faults.delay_s = 0.01  # so that most kills meet an upload under way
    url, checkpoint, chance = fresh_url(), tmp_path / "checkpoint.json", random.Random(7)
    survivors = []
    kills = 0
    while kills < KILLS:
        process = start(url, checkpoint)
        time.sleep(chance.uniform(0.0, LONGEST_LIFE_S))
        if chance.random() < 0.3:
            survivors.append(process)  # a zombie: it goes on beside its successor
        else:
            process.kill()
            process.communicate()
            kills += 1
    last = start(url, checkpoint)
    for process in (*survivors, last):
        process.communicate(timeout=120)
    assert last.returncode == 0
    storage = open_storage(url)
    for _ in range(2):
        check(url)
        assert read_statuses(storage) == {"r": "done"}
        assert compact(storage, grace_s=-60.0).problems == {}
    assert storage.list("live/") == []


def check(url: str) -> None:
    """Every step once, with the values of an uninterrupted run."""
    store = open_store(url)
    train = store.train.sort("step").collect()
    assert train["step"].to_list() == list(range(1, STEPS + 1))
    assert train["train_loss"].equals(pl.Series("train_loss", [1 / step for step in range(1, STEPS + 1)]))
    val = store.val.sort("step").collect()
    assert val["val_loss"].to_list() == [float(step) for step in range(7, STEPS + 1, 7)]
