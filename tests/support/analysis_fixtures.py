"""A small results store with known numbers, object by object with pyarrow, by none of our writers but the ledger's."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.report.page import Choice
from muon_core.store.folder import Folder
from muon_core.store.keys import ROOT, Attempt, final_key, live_key, sweep_key
from muon_core.store.ledger import LOCAL, new_entry, write_entry
from muon_core.tables import LAYERS, PROJECTIONS, RUNS, TABLES, TRAIN, VAL

STEPS = tuple(range(0, 201, 20))
FEW = Choice(("effective_rank",), projections=("q",))
"""The figures of a report where any will do: all of them take another second or two."""
NUM_LAYERS = 4
FINAL_LOSS = {  # final validation losses in nats per token, invented
    "muon": {42: 3.284417, 137: 3.301962, 256: 3.279108},
    "adamw": {42: 3.361285, 137: 3.352641, 256: 3.344870},
}


@dataclass
class FakeRun:
    """One run with one attempt; `val` maps step to loss."""

    optimizer: str
    seed: int
    val: dict[int, float]
    status: str | None = "done"  # None: it has no end record and this process trains it, so it is running
    role: str = "candidate"
    block: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    with_layers: bool = True
    entry: dict[str, Any] = field(default_factory=dict)  # what the ledger says of a running one

    @property
    def run_id(self) -> str:
        return f"{self.optimizer}-s{self.seed}-0badcafe"


def loss_curve(final: float, steps: tuple[int, ...] = STEPS) -> dict[int, float]:
    """Falls from ln(1024) to exactly `final`."""
    start, last = math.log(1024), steps[-1]
    return {step: final if step == last else final + (start - final) * math.exp(-step / 40) for step in steps}


def known_runs() -> list[FakeRun]:
    """Muon against AdamW at three seeds; AdamW is the baseline."""
    return [
        FakeRun(name, seed, loss_curve(loss), role="baseline" if name == "adamw" else "candidate", block=name)
        for name, losses in FINAL_LOSS.items()
        for seed, loss in losses.items()
    ]


def demo_runs() -> list[FakeRun]:
    """Four arms at three seeds: adamw worse, orthonoise within the noise, isotropic with two seeds lost."""
    muon, worse, noise = {42: 3.899, 137: 3.921, 256: 3.880}, (0.14, 0.11, 0.16), (0.004, -0.006, 0.005)
    runs = [FakeRun("muon", seed, loss_curve(loss), role="baseline", block="baseline") for seed, loss in muon.items()]
    for (seed, loss), more, wobble in zip(muon.items(), worse, noise, strict=True):
        runs.append(FakeRun("adamw", seed, loss_curve(loss + more), block="adamw"))
        runs.append(FakeRun("orthonoise", seed, loss_curve(loss + wobble), block="noise", facts={"alpha": 0.05}))
    runs.append(FakeRun("isotropic", 42, loss_curve(3.905), role="control", block="control", facts={"alpha": 0.05}))
    short = loss_curve(3.9, STEPS[:4])
    runs.append(
        FakeRun("isotropic", 137, short, "diverged", "control", "control", {"error": "non-finite loss at step 71"})
    )
    error = 'Traceback (most recent call last):\n  File "train.py", line 1\nRuntimeError: <disk> full'
    runs.append(FakeRun("isotropic", 256, {}, "failed", "control", "control", {"error": error}, with_layers=False))
    return runs


def write_store(root: Path, runs: list[FakeRun], sweep: str = "demo", unstarted: int = 0, **record: Any) -> Folder:
    """A store with one sweep of `runs` and `unstarted` more runs of the last one's arm that nobody has begun."""
    storage = Folder(root)
    for run in runs:
        write_run(storage, run)
    listed = [
        {"run_id": r.run_id, "block": r.block or r.optimizer, "role": r.role, "arm": r.facts.get("arm", r.optimizer)}
        for r in runs
    ]
    listed += [listed[-1] | {"run_id": f"{runs[-1].optimizer}-s{9000 + i}-0badcafe"} for i in range(unstarted)]
    write_sweep(storage, sweep, listed, **record)
    return storage


def write_sweep(storage: Folder, sweep: str, runs: list[dict[str, str]], number: int = 1, **record: Any) -> None:
    defaults = {
        "question": "Does Muon reach a lower validation loss than AdamW?",
        "spec": {"version": 1, "name": sweep},
        "metrics": {"primary": "val_loss", "goal": "min", "at": "final"},
    }
    key = sweep_key(sweep, f"{number:05d}.aa")
    storage.put(key, json.dumps(defaults | record | {"sweep": sweep, "runs": runs}).encode())


def write_run(storage: Folder, run: FakeRun) -> None:
    """Start record, `val`, `train` and `layers` rows, and the end record."""
    attempt = write_attempt(storage, run)
    common = [
        {"run_id": run.run_id, "attempt": 1, "seq": i, "step": s, "tokens": s * 2048} for i, s in enumerate(run.val)
    ]
    val = [row | {"val_loss": run.val[row["step"]], "val_accuracy": 0.25} for row in common]
    train = [row | {"train_loss": run.val[row["step"]] + 0.01, "lr": 0.03} for row in common]
    put_rows(storage, live_key("val", run.run_id, attempt.id, 0, len(val)), VAL, val)
    put_rows(storage, live_key("train", run.run_id, attempt.id, 0, len(train)), TRAIN, train)
    if run.with_layers:
        layers = [cell for row in common for cell in layer_rows(row, run)]
        put_final(storage, LAYERS, attempt, len(val), layers)
    if run.status is None:
        write_entry(storage, replace(new_entry(run.run_id, attempt.id, LOCAL), **run.entry))
    else:
        final = run.val.get(max(run.val, default=0))
        end = start_record(run) | {"status": run.status, "final_val_loss": final, "wall_s": 20.0, "ended_at": _TIME}
        put_final(storage, RUNS, attempt, 3, [end | {"started_at": _TIME}])


def write_attempt(storage: Folder, run: FakeRun, n: int = 1, parent: str = ROOT, resume: int = 0) -> Attempt:
    attempt = Attempt(f"{n:05d}.ab", parent, resume, run.run_id)
    storage.put(attempt.key, json.dumps(start_record(run)).encode())
    return attempt


def start_record(run: FakeRun) -> dict[str, Any]:
    facts = {
        "run_id": run.run_id,
        "arm_id": f"{run.optimizer}-11111111",
        "arm": run.optimizer,
        "seed": run.seed,
        "optimizer": run.optimizer,
        "lr": 1,  # JSON has no type for a whole float
        "config_json": "{}",
        "started_at": _TIME.isoformat(),
        "init_hash": f"init{run.seed}",
        "first_batch_hash": f"batch{run.seed}",
        "data_hash": "data",
        "world_size": 1,
        "device": "cpu x86_64 AVX512",
        "environment_json": '{"torch": "2.13.0"}',
    }
    return facts | run.facts


def layer_rows(row: dict[str, Any], run: FakeRun) -> list[dict[str, Any]]:
    """Effective rank falls with depth and time, more under AdamW; every number is a simple formula."""
    fall = {"muon": 0.05, "adamw": 0.3}.get(run.optimizer, 0.08) * row["step"] / STEPS[-1]
    cells = []
    for projection in PROJECTIONS:
        rows, cols = {"k": (32, 64), "v": (32, 64), "up": (256, 64), "down": (64, 256)}.get(projection, (64, 64))
        for layer in range(NUM_LAYERS):
            rank = 0.9 * min(rows, cols) * (1 - fall) * (1 - 0.03 * layer**2)
            values = {
                "effective_rank": rank,
                "entropy": math.log(rank),
                "weight_norm": 1.0 + layer,
                "rows": rows,
                "cols": cols,
            }
            cells.append(row | values | {"layer": layer, "projection": projection})
    return cells


def put_rows(storage: Folder, key: str, table: Any, rows: list[dict[str, Any]]) -> None:
    storage.put(key, encoded(table, rows))


def put_final(storage: Folder, table: Any, attempt: Attempt, hi: int, rows: list[dict[str, Any]]) -> str:
    """A final of `attempt` with these rows; its key."""
    data = encoded(table, rows)
    key = final_key(table.name, attempt.run, attempt.id, hi, hashlib.sha256(data).hexdigest()[:16])
    storage.put(key, data)
    return key


def encoded(table: Any, rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=TABLES[table.name].schema), sink)
    return sink.getvalue()


_TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
