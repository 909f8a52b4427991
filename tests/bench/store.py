"""Results store: bytes, query times and writer cost against the same rows as JSONL read by Polars.

Usage: python tests/bench/store.py [RUNS ...]      (default 200; the goals hold for 200 and for 2000)
       python tests/bench/store.py writer URL      what a writer costs, alone in its process
A run has 1,000 train, 60 val and 400 x 132 layer rows; beyond 200 runs, the others have no layer rows, so there are
ten million of these. S3 is ministack on loopback, `cold` with an empty cache before every question, `warm` with one
that has answered it before. Every answer is compared with that of the JSONL files; of layers four runs are kept as
such. Goals are by the clock, of an idle machine; beside it stands the CPU time of the client, which a busy one leaves
alone. The last line names the tightest goal; exit 1 when one is missed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from polars.testing import assert_frame_equal

sys.path.insert(0, str(Path(__file__).parents[1]))

from servers.s3_servers import BUCKET, running

from analysis.store import open_store
from muon_core.store.compaction import compact
from muon_core.store.folder import Folder
from muon_core.store.keys import ROOT, Attempt, final_key
from muon_core.store.open import open_storage
from muon_core.store.parquet import digest, encode, sort_for_reading
from muon_core.store.storage import Storage
from muon_core.store.sweeps import SweepRecord, write_sweep
from muon_core.store.writer import RunWriter, write_end_record
from muon_core.tables import LAYERS, PROJECTIONS, TRAIN, VAL, Table

NUM_LAYERS, EVENTS, RUNS_WITH_LAYERS, REPEATS = 22, 400, 200, 5
EXAMPLE = "run-0000"
ONE_ARM = [f"run-{n:04d}" for n in range(4)]
"""Seeds whose layers are kept as JSONL too, 0.1 GB a run."""
SERIES_HERE = ("train", "val", "layers")
HEATMAP, FILTERED, FINAL, CURVE, RUNS = (
    "heatmap, one run", "heatmap, one run by filter", "final val loss, all runs", "seed-averaged train curve", "runs",
)  # fmt: skip
ARM_LAYERS, ALL_LAYERS = "layer mean over 4 seeds", "layer mean over all seeds"
Goals = dict[str, float]
"""Seconds, by question."""
LAYER_GOALS = {FILTERED: 0.1, ALL_LAYERS: 1.0}
FINALS = {200: {HEATMAP: 0.02, RUNS: 2.0, **LAYER_GOALS}, 2000: {HEATMAP: 0.1, RUNS: 2.0, **LAYER_GOALS}}
PACKED = {
    200: {HEATMAP: 0.02, FINAL: 0.05, CURVE: 0.05, **LAYER_GOALS},
    2000: {HEATMAP: 0.1, FINAL: 0.05, **LAYER_GOALS},
}
REMOTE = {200: {HEATMAP: 0.3, FINAL: 1.0, CURVE: 1.0}, 2000: {HEATMAP: 0.3, FINAL: 0.5, CURVE: 1.0}}
NEVER_COMPACTED = {200: {RUNS: 2.0}, 2000: {RUNS: 2.0}}
missed: list[str] = []
tightest: list[tuple[float, str]] = []
"""Of each goal: the share of it that was needed, and the line that tells it."""


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
    return pa.table([pa.array(values[f.name]).cast(f.type, safe=False) for f in table.schema], schema=table.schema)


def end_record(run: str, n: int) -> dict[str, Any]:
    """How a run ended; `failed`, so that compaction looks for no further tables."""
    return {
        "run_id": run,
        "seed": n % 4,
        "arm_id": f"arm-{n // 4}",
        "status": "failed",
        "last_val_loss": 3 + 1 / (n + 1),
    }


def fill(storage: Storage, runs: int) -> None:
    """Ended runs with their finals, as `muon compact` leaves them before it packs."""
    write_sweep(storage, SweepRecord(sweep="bench"))
    for n in range(runs):
        run = f"run-{n:04d}"
        attempt = Attempt(f"00001.{n:012x}", ROOT, 0, run)
        storage.put(attempt.key, json.dumps({"run_id": run, "seed": n % 4, "arm_id": f"arm-{n // 4}"}).encode())
        for table in (TRAIN, VAL, LAYERS) if n < RUNS_WITH_LAYERS else (TRAIN, VAL):
            rows = sort_for_reading(rows_of(run, table, n), table)
            data = encode(rows, table, final=True)
            hi = int(rows["seq"].to_numpy().max()) + 1
            storage.put(final_key(table.name, run, attempt.id, hi, digest(data)), data)
        write_end_record(storage, attempt, end_record(run, n), hi)


def fill_jsonl(folder: Path, runs: int) -> int:
    """The same rows as JSONL, one file a run and table. Returns their bytes.

    Of layers only those of `ONE_ARM` stay; the others are counted and removed.
    """
    total = 0
    for n in range(runs):
        run = f"run-{n:04d}"
        frames = {
            t.name: pl.from_arrow(rows_of(run, t, n))
            for t in (TRAIN, VAL, LAYERS)
            if n < RUNS_WITH_LAYERS or t is not LAYERS
        }
        for name, frame in {**frames, "runs": pl.DataFrame([end_record(run, n)])}.items():
            assert isinstance(frame, pl.DataFrame)
            path = folder / name / f"{run}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.write_ndjson(path)
            total += path.stat().st_size
            if name == LAYERS.name and run not in ONE_ARM:
                path.unlink()
    return total


def heatmap(layers: pl.LazyFrame) -> pl.DataFrame:
    """One metric of one run."""
    return layers.filter(run_id=EXAMPLE).select("step", "layer", "projection", "effective_rank").collect()


def final_loss(val: pl.LazyFrame) -> pl.DataFrame:
    """Final val loss of every run."""
    return val.group_by("run_id").agg(pl.col("val_loss").sort_by("step").last()).collect()


def mean_curve(train: pl.LazyFrame) -> pl.DataFrame:
    """Train loss averaged over all seeds."""
    return train.group_by("step").agg(pl.col("train_loss").mean(), pl.len()).sort("step").collect()


def layer_mean(layers: pl.LazyFrame) -> pl.DataFrame:
    """A metric's mean over runs and projections, by layer and step."""
    value = pl.col("effective_rank").cast(pl.Float32).cast(pl.Float64)  # of JSON's digits the number they were made of
    return layers.group_by("layer", "step").agg(value.mean(), pl.len()).collect()


def outcomes(runs: pl.LazyFrame) -> pl.DataFrame:
    """How every run ended."""
    return runs.select("run_id", "arm_id", "seed", "status", "last_val_loss").collect()


def questions(url: str) -> dict[str, Callable[[], pl.DataFrame]]:
    """What is asked, the store listed anew each time."""
    in_arm = pl.col("run_id").is_in(ONE_ARM)
    return {
        HEATMAP: lambda: heatmap(open_store(url).run(EXAMPLE).layers),
        FILTERED: lambda: heatmap(open_store(url).layers),
        ARM_LAYERS: lambda: layer_mean(open_store(url).layers.filter(in_arm)),
        ALL_LAYERS: lambda: layer_mean(open_store(url).layers),
        FINAL: lambda: final_loss(open_store(url).val),
        CURVE: lambda: mean_curve(open_store(url).train),
        RUNS: lambda: outcomes(open_store(url).runs),
    }


def jsonl_questions(folder: Path) -> dict[str, Callable[[], pl.DataFrame]]:
    """The same, of JSONL read by Polars; but for the layers of all runs, which would be 20 GB."""
    one = folder / "layers" / f"{EXAMPLE}.jsonl"
    return {
        HEATMAP: lambda: heatmap(pl.scan_ndjson(one)),
        FILTERED: lambda: heatmap(pl.scan_ndjson(one)),
        ARM_LAYERS: lambda: layer_mean(pl.scan_ndjson(folder / "layers" / "*.jsonl")),
        FINAL: lambda: final_loss(pl.scan_ndjson(folder / "val" / "*.jsonl")),
        CURVE: lambda: mean_curve(pl.scan_ndjson(folder / "train" / "*.jsonl")),
        RUNS: lambda: outcomes(pl.scan_ndjson(folder / "runs" / "*.jsonl")),
    }


def timed(question: Callable[[], pl.DataFrame], *, cold: bool = False) -> tuple[float, float, pl.DataFrame]:
    """Median seconds of `REPEATS` answers, by the clock and of CPU, and the last; `cold` gives each an empty cache."""
    seconds, of_cpu = [], []
    answer = question()  # connections, imports, and the cache where it is not cold
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as empty:
            if cold:
                os.environ["XDG_CACHE_HOME"] = empty
            begin, used = time.perf_counter(), time.process_time()
            answer = question()
            seconds.append(time.perf_counter() - begin)
            of_cpu.append(time.process_time() - used)
    return median(seconds), median(of_cpu), answer


def report(
    what: str, value: float, unit: str, goal: float | None = None, rival: float | None = None, note: str = ""
) -> None:
    """One line; a value above its goal is missed."""
    short = goal is not None and value > goal
    if short:
        missed.append(what)
    against = f", JSONL {rival:.4g} {unit} ({rival / value:.1f}x)" if rival else ""
    aim = "" if goal is None else f", goal <= {goal:g} {unit}{'  MISSED' if short else ''}"
    print(f"{what:58} {value:9.4g} {unit}{note}{against}{aim}", flush=True)
    if goal is not None:
        tightest.append((value / goal, f"{what} {value:.4g} {unit}{note}{against}{aim}"))


Answers = dict[str, tuple[float, float, pl.DataFrame]]


def ask(
    url: str,
    runs: int,
    rivals: Answers,
    goals: dict[int, Goals],
    place: str,
    *,
    cold: bool = False,
    only: str | None = None,
) -> None:
    """All questions to the store at `url`, or `only` one; `rivals` are JSONL's seconds and answers."""
    for name, question in questions(url).items():
        if only not in (None, name) or (cold and name == ALL_LAYERS):  # 0.7 GB that no cache takes
            continue
        seconds, of_cpu, answer = timed(question, cold=cold)
        rival = None
        if name in rivals:
            rival, _, expected = rivals[name]
            expected = expected.cast(dict(answer.schema))  # JSON knows one width of numbers
            assert_frame_equal(answer, expected, check_row_order=False, rel_tol=1e-12, abs_tol=0)
        elif runs >= RUNS_WITH_LAYERS:
            rows = RUNS_WITH_LAYERS * EVENTS * NUM_LAYERS * len(PROJECTIONS)
            assert answer["len"].sum() == rows, f"{answer['len'].sum()} rows of {rows}"
        goal = goals.get(runs, {}).get(name)
        report(f"{place}, {runs} runs: {name}", seconds, "s", goal, rival, f" ({of_cpu:.3f} of CPU)")


def measure_bytes(storage: Storage, folder: Path, runs: int, jsonl: int) -> None:
    """Bytes of the whole store, packs and records too, and of one run's finals, against the rows as JSONL."""
    whole = sum(size for _, size in storage.list(""))
    report(f"folder, {runs} runs: bytes of the whole store / JSONL", whole / jsonl, "", 1 / 8 if runs <= 200 else None)
    own = sum(path.stat().st_size for path in folder.rglob(f"{EXAMPLE}.jsonl"))
    finals = sum(size for t in SERIES_HERE for _, size in storage.list(f"final/table={t}/run={EXAMPLE}/"))
    report(f"folder, {runs} runs: bytes of one run's finals / JSONL", finals / own, "", 1 / 8)


def measure_writer(storage: Storage) -> None:
    """What the training loop pays for an event of 132 layer rows, and until the store has them."""
    place = storage.url.split(":")[0] if "://" in storage.url else "folder"
    before = peak_memory()
    writer = RunWriter(storage, "writer", {})
    row = {name: 1.5 for name in LAYERS.columns if name not in TRAIN.columns}
    row |= {"layer": 1, "projection": "q", "ill_posed": False, "momentum_ill_posed": False, "rows": 8, "cols": 8}
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
    report(f"{place}: peak memory of a writing process", peak_memory(), "MiB")
    report(f"{place}: of it, by the writer of {count} rows", peak_memory() - before, "MiB")


def peak_memory() -> float:
    """MiB of this process at its largest; getrusage would tell its parent's where that is more."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def measure(runs: int) -> None:
    """One size of store, in a folder and on S3."""
    with tempfile.TemporaryDirectory() as root:
        jsonl, place = Path(root, "jsonl"), Folder(Path(root, "store"))
        size = fill_jsonl(jsonl, runs)
        fill(place, runs)
        rivals = {name: timed(question) for name, question in jsonl_questions(jsonl).items()}
        ask(place.url, runs, rivals, FINALS, "folder, finals")
        with running("ministack", Path(root, "s3")) as server:
            os.environ.update(server.environment)
            fresh, bucket = open_storage(f"s3://{BUCKET}/fresh"), open_storage(f"s3://{BUCKET}/bench")
            copy(place, fresh, "attempts/", "sweeps/", "schema/", "final/table=runs/")
            ask(fresh.url, runs, rivals, NEVER_COMPACTED, "S3 cold, never compacted", cold=True, only=RUNS)
            begin = time.perf_counter()
            compact(place, grace_s=-60)
            report(f"folder, {runs} runs: muon compact", time.perf_counter() - begin, "s")
            begin = time.perf_counter()
            compact(place, grace_s=-60)
            report(f"folder, {runs} runs: muon compact with nothing to do", time.perf_counter() - begin, "s")
            ask(place.url, runs, rivals, PACKED, "folder, packed")
            measure_bytes(place, jsonl, runs, size)
            in_process_of_its_own(Folder(Path(root, "writer")).url)
            copy(place, bucket, "")
            ask(bucket.url, runs, rivals, REMOTE, "S3 cold, packed", cold=True)
            os.environ["XDG_CACHE_HOME"] = str(Path(root, "cache"))
            ask(bucket.url, runs, rivals, REMOTE, "S3 warm, packed")
            in_process_of_its_own(f"s3://{BUCKET}/writer")


def in_process_of_its_own(url: str) -> None:
    """Measure a writer to `url` without this process's memory."""
    subprocess.run([sys.executable, __file__, "writer", url], check=True)


def copy(source: Storage, target: Storage, *prefixes: str) -> None:
    """Every object below `prefixes`."""
    for prefix in prefixes:
        keys = source.keys(prefix)
        for first in range(0, len(keys), 64):
            target.put_many({key: source.get(key) for key in keys[first : first + 64]})


if __name__ == "__main__":
    if sys.argv[1:2] == ["writer"]:
        measure_writer(open_storage(sys.argv[2]))
        sys.exit()
    for number in [int(argument) for argument in sys.argv[1:]] or [200]:
        measure(number)
    if tightest:
        print(f"tightest of {len(tightest)} goals: {max(tightest)[1]}", flush=True)
    sys.exit(f"short of the goal: {'; '.join(missed)}" if missed else 0)
