"""Results store: bytes, query times and writer cost against the same rows as JSONL read by Polars.

Usage: python tests/bench/store.py [RUNS ...]      (default 200; the goals hold for 200)
A run has 1,000 train, 60 val and 400 x 132 layer rows. Layer rows are written for at most 100 runs: the queries on them
concern one run. S3 is ministack on loopback. Exit 1 when a goal is missed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp())  # a cache left from before would flatter

import numpy as np
import polars as pl
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from servers.s3_servers import BUCKET, running

from analysis.tables import open_store
from muon_core import layout
from muon_core.compaction import compact
from muon_core.parquet import digest, encode, sort_for_reading
from muon_core.results import RunWriter, write_end_record, write_sweep
from muon_core.storage import Folder, Storage, open_storage
from muon_core.tables import LAYERS, PROJECTIONS, TRAIN, VAL, Table

NUM_LAYERS, EVENTS, RUNS_WITH_LAYERS, REPEATS = 22, 400, 100, 5
EXAMPLE = "run-0000"
SERIES_HERE = ("train", "val", "layers")
missed: list[str] = []


def rows_of(run: str, table: Table, seed: int) -> pa.Table:
    """A run's rows of one table: smooth drifts with one per cent of noise, in the order they are emitted."""
    rng = np.random.default_rng(seed)
    matrices = NUM_LAYERS * len(PROJECTIONS) if table is LAYERS else 1
    events = {"train": 1_000, "val": 60, "layers": EVENTS}[table.name]
    n = events * matrices
    step = np.repeat(np.arange(events) + 1, matrices)
    known: dict[str, Any] = {
        "run_id": [run] * n,
        "attempt": np.ones(n, np.int32),
        "seq": np.arange(n) + {"train": 0, "val": 1_000, "layers": 1_060}[table.name],
        "step": step,
        "tokens": step * 65_536,
        "rows": np.full(n, 768),
        "cols": np.full(n, 768),
        "layer": np.tile(np.repeat(np.arange(NUM_LAYERS), len(PROJECTIONS)), events)[:n],
        "projection": np.tile(np.array(PROJECTIONS), events * NUM_LAYERS)[:n],
    }
    level = 3.0 + rng.random(n if matrices == 1 else matrices).repeat(1 if matrices == 1 else events)[:n]
    values = {
        name: known.get(name, (level * (1 + 1 / (step + 10)) * (1 + 0.01 * rng.standard_normal(n))).astype(np.float32))
        for name in table.columns
    }
    return pa.table([pa.array(values[f.name]).cast(f.type) for f in table.schema], schema=table.schema)


def fill(storage: Storage, runs: int) -> None:
    """Ended runs with their finals, as `muon compact` leaves them before it packs."""
    write_sweep(storage, "bench", {"runs": []})
    for n in range(runs):
        run = f"run-{n:04d}"
        attempt = layout.Attempt(f"00001.{n:012x}", layout.ROOT, 0, run)
        storage.put(attempt.key, json.dumps({"run_id": run, "seed": n % 4, "arm_id": f"arm-{n // 4}"}).encode())
        for table in (TRAIN, VAL, LAYERS) if n < RUNS_WITH_LAYERS else (TRAIN, VAL):
            rows = sort_for_reading(rows_of(run, table, n), table)
            data = encode(rows, table, final=True)
            hi = int(rows["seq"].to_numpy().max()) + 1
            storage.put(layout.final_key(table.name, run, attempt.id, hi, digest(data)), data)
        write_end_record(
            storage, attempt, {"run_id": run, "seed": n % 4, "arm_id": f"arm-{n // 4}", "status": "failed"}
        )


def fill_jsonl(folder: Path, runs: int) -> None:
    """The same rows as JSONL, one file a run and table; layers of one run, which is all the queries need."""
    for n in range(runs):
        run = f"run-{n:04d}"
        for table in (TRAIN, VAL, LAYERS) if n == 0 else (TRAIN, VAL):
            path = folder / table.name / f"{run}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            frame = pl.from_arrow(rows_of(run, table, n))
            assert isinstance(frame, pl.DataFrame)
            frame.write_ndjson(path)


def heatmap(layers: pl.LazyFrame) -> pl.DataFrame:
    """One metric of one run."""
    return layers.filter(run_id=EXAMPLE).select("step", "layer", "projection", "effective_rank").collect()


def final_loss(val: pl.LazyFrame) -> pl.DataFrame:
    """Final val loss of every run."""
    return val.group_by("run_id").agg(pl.col("val_loss").sort_by("step").last()).collect()


def mean_curve(train: pl.LazyFrame) -> pl.DataFrame:
    """Train loss averaged over all seeds."""
    return train.group_by("step").agg(pl.col("train_loss").mean(), pl.len()).sort("step").collect()


def timed(question: Callable[[], pl.DataFrame]) -> float:
    """Median seconds of `REPEATS` answers, the store listed anew each time."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        question()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def report(what: str, value: float, unit: str, goal: float | None = None, rival: float | None = None) -> None:
    """One line; a value above its goal is missed."""
    short = goal is not None and value > goal
    if short:
        missed.append(what)
    against = f", JSONL {rival:.4g} {unit} ({rival / value:.1f}x)" if rival else ""
    aim = "" if goal is None else f", goal <= {goal:g} {unit}{'  MISSED' if short else ''}"
    print(f"{what:58} {value:9.4g} {unit}{against}{aim}", flush=True)


def ask(url: str, runs: int, rivals: dict[str, float], goals: dict[str, float], place: str) -> None:
    """The three questions to the store at `url`."""
    questions: dict[str, Callable[[], pl.DataFrame]] = {
        "heatmap, one run": lambda: heatmap(open_store(url).run(EXAMPLE).layers),
        "final val loss, all runs": lambda: final_loss(open_store(url).val),
        "seed-averaged train curve": lambda: mean_curve(open_store(url).train),
    }
    for name, question in questions.items():
        goal = goals.get(name) if runs <= 200 else None
        report(f"{place}, {runs} runs: {name}", timed(question), "s", goal, rivals.get(name))


def ask_jsonl(folder: Path) -> dict[str, float]:
    """The same questions to JSONL read by Polars."""
    return {
        "heatmap, one run": timed(lambda: heatmap(pl.scan_ndjson(folder / "layers" / f"{EXAMPLE}.jsonl"))),
        "final val loss, all runs": timed(lambda: final_loss(pl.scan_ndjson(folder / "val" / "*.jsonl"))),
        "seed-averaged train curve": timed(lambda: mean_curve(pl.scan_ndjson(folder / "train" / "*.jsonl"))),
    }


def measure_bytes(storage: Storage, folder: Path, runs: int) -> None:
    """Bytes of one whole run, and of the small tables of all runs, which lie there twice: in finals and in packs."""
    own = sum(path.stat().st_size for path in folder.rglob(f"{EXAMPLE}.jsonl"))
    finals = sum(size for t in SERIES_HERE for _, size in storage.list(f"final/table={t}/run={EXAMPLE}/"))
    report(f"{runs} runs: bytes of one run's finals / JSONL", finals / own, "", 1 / 8)
    small = sum(size for kind in ("final", "packs") for t in ("train", "val")
                for _, size in storage.list(f"{kind}/table={t}/"))  # fmt: skip
    jsonl = sum(path.stat().st_size for table in ("train", "val") for path in (folder / table).iterdir())
    report(f"{runs} runs: train and val of all, with packs / JSONL", small / jsonl, "")


def measure_writer(storage: Storage, place: str) -> None:
    """What the training loop pays for an event of 132 layer rows, and until the store has them."""
    writer = RunWriter(storage, "writer", {})
    row = {name: 1.5 for name in LAYERS.columns if name not in TRAIN.columns}
    row |= {"layer": 1, "projection": "q", "rows": 8, "cols": 8}
    path, whole, count = 0.0, 0.0, 0
    for event in range(60):
        begin = time.perf_counter()
        for _ in range(132):
            writer.emit("layers", step=event, tokens=0, **row)
        if event % 10 == 9:
            writer.flush(wait=False)
        path += time.perf_counter() - begin
        count += 132
        if event % 10 == 9:
            writer.barrier()
        whole += time.perf_counter() - begin
    report(f"{place}: loop's time a row, flushed in the background", 1e6 * path / count, "us")
    report(f"{place}: time a row until the store has it", 1e6 * whole / count, "us")


def measure(runs: int) -> None:
    """One size of store, in a folder and on S3."""
    with tempfile.TemporaryDirectory() as root:
        jsonl, place = Path(root, "jsonl"), Folder(Path(root, "store"))
        fill_jsonl(jsonl, runs)
        fill(place, runs)
        rivals = ask_jsonl(jsonl)
        ask(place.url, runs, rivals, {"heatmap, one run": 0.020}, "folder, finals")
        begin = time.perf_counter()
        compact(place, grace_s=-60)
        report(f"folder, {runs} runs: muon compact", time.perf_counter() - begin, "s")
        local = {"heatmap, one run": 0.020, "final val loss, all runs": 0.050, "seed-averaged train curve": 0.050}
        ask(place.url, runs, rivals, local, "folder, packed")
        measure_bytes(place, jsonl, runs)
        measure_writer(place, "folder")
        with running("ministack", Path(root, "s3")) as server:
            os.environ.update(server.environment)
            bucket = open_storage(f"s3://{BUCKET}/bench")
            copy(place, bucket)
            remote = {"heatmap, one run": 0.3, "final val loss, all runs": 1.0, "seed-averaged train curve": 1.0}
            ask(bucket.url, runs, rivals, remote, "S3, packed")
            measure_writer(bucket, "S3")
        report("peak memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")


def copy(source: Storage, target: Storage) -> None:
    """Everything but most of the layers, which no question touches."""
    for key, _ in source.list(""):
        if "table=layers" not in key or f"run={EXAMPLE}/" in key:
            target.put(key, source.get(key))


if __name__ == "__main__":
    for size in [int(argument) for argument in sys.argv[1:]] or [200]:
        measure(size)
    sys.exit(f"short of the goal: {'; '.join(missed)}" if missed else 0)
