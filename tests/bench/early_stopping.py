"""Early stopping beside the full grid: what share of the steps it takes, and whether it keeps the best run.

Trains 16 small runs of Muon, the baseline and 15 learning rates from 1e-4 to 1, once without Ray to their ends and once
on Ray under ASHA, two at a time. Prints the shares of steps; exits 1 above half of them, or if the best run was lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from analysis.store import open_store

MUON = str(Path(sys.executable).with_name("muon"))
GOAL = 0.5
STEPS, GRACE = 270, 30
SWEEP: dict[str, Any] = {
    "version": 1,
    "name": "narrow",
    "question": "Which learning rate suits Muon?",
    "seeds": [1],
    "constants": {
        "steps": STEPS,
        "model.d_model": 32,
        "model.num_layers": 2,
        "model.num_heads": 2,
        "model.num_kv_heads": 1,
        "model.d_ff": 64,
        "model.vocab_size": 512,
        "data.seq_len": 32,
        "data.validation_tokens": 2048,
        "batch_size": 8,
        "tracking.eval_every": 10,
        "tracking.track_every": STEPS,
    },
    "blocks": [
        {"name": "start", "role": "baseline", "optimizer": "muon", "set": {"lr": 0.02}},
        {
            "name": "rates",
            "optimizer": "muon",
            "grid": {"lr": [float(f"{10 ** (-4 + 4 * number / 14):.3g}") for number in range(15)]},
        },
    ],
    "resources": {"max_concurrent": 2},
}


def run(folder: Path, name: str, *options: str, **fields: Any) -> pl.DataFrame:
    """Train the sweep into a store of its own; its runs, the best first."""
    file, store = folder / f"{name}.yaml", folder / name
    file.write_text(yaml.safe_dump(SWEEP | fields))
    command = [MUON, "sweep", "run", str(file), "--store", str(store), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    columns = ("run_id", "arm", "status", "steps", "last_val_loss")
    runs = open_store(store).sweep("narrow").runs.select(columns).collect()
    return runs.sort("last_val_loss")


def main() -> int:
    rule = {"scheduler": "asha", "grace_steps": GRACE}
    with tempfile.TemporaryDirectory() as folder:
        full = run(Path(folder), "full", "--in-process")
        early = run(Path(folder), "early", early_stopping=rule)
    print(f"{'arm':16s} {'status':8s} {'steps':>5s} {'loss':>7s} {'of the full grid':>17s}")
    for row in early.join(full.select("run_id", full="last_val_loss"), on="run_id").iter_rows(named=True):
        losses = f"{row['last_val_loss']:7.4f} {row['full']:17.4f}"
        print(f"{row['arm']:16s} {row['status']:8s} {row['steps']:5d} {losses}")
    share = early["steps"].sum() / full["steps"].sum()
    best = full.filter(status="done").row(0, named=True)
    kept = early.filter(run_id=best["run_id"], status="done").height == 1
    print(f"{share:.0%} of the steps of {full.height} runs; goal <= {GOAL:.0%}: {'met' if share <= GOAL else 'MISSED'}")
    print(f"the best, {best['arm']} with {best['last_val_loss']:.4f}: {'kept' if kept else 'LOST'}")
    return 0 if share <= GOAL and kept else 1


if __name__ == "__main__":
    sys.exit(main())
