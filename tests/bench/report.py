"""The report of a sweep beside the same pictures drawn with matplotlib from JSONL that pandas reads.

Usage: python tests/bench/report.py [demo] [sweep]      (both, if none is named)
`demo` has the shape of search_spaces/demo.yaml: 4 arms at 3 seeds, 4 layers, 33 tracked steps. `sweep` is 20 arms at 3
seeds: 60 runs x 22 layers x 6 projections x 400 tracked steps, 3.2 million rows. Their values are invented: smooth
drifts with one per cent of noise, which compresses worse than what real runs write. A report and its rival are
processes of their own. The rival draws the loss curves and the heatmaps, of one projection in six for `sweep`, whose
seconds are then multiplied. It needs `pip install matplotlib pandas`, which the package itself does not; without them
the last line says so, and the goals are checked all the same. Exit 1 when one is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from muon_core.store.folder import Folder
from muon_core.store.keys import ROOT, Attempt, final_key
from muon_core.store.parquet import digest, encode, sort_for_reading
from muon_core.store.storage import Storage
from muon_core.store.sweeps import SweepRecord, write_sweep
from muon_core.store.writer import write_end_record
from muon_core.tables import HEALTH, LAYERS, PROJECTIONS, SPECTRA, TRAIN, VAL, Table

MIB = 2**20
missed: list[str] = []


class Case(NamedTuple):
    """A sweep to report, and what its report may take; None is no limit."""

    arms: int
    layers: int
    events: int
    """Tracked steps."""
    width: int
    """Rows of the q matrix."""
    cpu_s: float | None
    wall_s: float | None
    html: float
    """Bytes."""
    peak: float | None
    """Bytes of memory."""
    projections: int
    """That the rival draws."""


SEEDS = (42, 137, 256)
CASES = {
    "demo": Case(4, 4, 33, 64, 15.0, None, 3 * MIB, None, 6),
    "sweep": Case(20, 22, 400, 512, None, 60.0, 12 * MIB, 2048 * MIB, 1),
}
HEATMAPS = ("entropy", "effective_rank", "left_alignment", "right_alignment", "weight_norm_peak", "grad_norm_peak")


def runs_of(case: Case) -> list[tuple[str, str, int]]:
    """(run_id, arm, seed): Muon, AdamW, and noise arms."""
    names = ["muon", "adamw", *(f"orthonoise alpha={0.001 * (i + 1):.3g} rank=0.5" for i in range(case.arms - 2))]
    return [(f"run{i:02d}-s{seed}", name, seed) for i, name in enumerate(names) for seed in SEEDS]


def rows_of(case: Case, table: Table, run: str, arm: str, seed: int) -> pl.DataFrame:
    """A run's rows of one table, in the order they are emitted."""
    rng = np.random.default_rng([seed, *arm.encode()])
    events = 3 if table is SPECTRA else case.events
    matrices = case.layers * len(PROJECTIONS) if table in (LAYERS, HEALTH, SPECTRA) else 1
    n, step = events * matrices, np.repeat(np.arange(events) * 5, matrices)
    projection = np.tile(np.tile(np.array(PROJECTIONS), case.layers), events)[:n]
    rows, cols = (np.full(n, case.width) for _ in range(2))
    rows[np.isin(projection, ("k", "v"))] //= 2
    rows[projection == "up"] *= 4
    cols[projection == "down"] *= 4
    known: dict[str, Any] = {
        "run_id": [run] * n,
        "attempt": np.ones(n, np.int32),
        "seq": np.arange(n),
        "step": step,
        "tokens": step * 65_536,
        "layer": np.tile(np.repeat(np.arange(case.layers), len(PROJECTIONS)), events)[:n],
        "projection": projection,
        "rows": rows,
        "cols": cols,
        "alignment_chance": 1.85 / np.sqrt(rows),
        "right_alignment_chance": 1.85 / np.sqrt(cols),
        "ill_posed": np.full(n, arm != "adamw"),
        "momentum_ill_posed": np.zeros(n, np.bool_),
    }
    level = (0.3 + 0.5 * rng.random(matrices))[None].repeat(events, 0).ravel()
    drift = level * (1 + 1 / (step / 5 + 10)) * (1 + 0.01 * rng.standard_normal(n))
    scale = {"effective_rank": np.minimum(rows, cols), "val_loss": 4.0, "train_loss": 4.0}
    columns = {}
    for field in table.schema:
        if field.name == "singular_values":
            size = case.width
            spectrum = level[:, None] * np.linspace(2, 0.1, size) * (1 + 0.01 * rng.standard_normal((n, size)))
            columns[field.name] = pa.array(list(spectrum.astype(np.float32)), field.type)
        elif field.name == "sampled":
            columns[field.name] = pa.nulls(n, field.type)
        else:
            values = known.get(field.name, scale.get(field.name, 1.0) * drift)
            columns[field.name] = pa.array(values).cast(field.type, safe=False)
    frame = pl.from_arrow(pa.table(columns, schema=table.schema))
    assert isinstance(frame, pl.DataFrame)
    return frame


def fill(storage: Storage, case: Case) -> None:
    """The sweep `bench`, all runs done."""
    listed = []
    for i, (run, arm, seed) in enumerate(runs_of(case)):
        attempt = Attempt(f"00001.{i:012x}", ROOT, 0, run)
        optimizer = arm.split()[0]
        start = {"run_id": run, "seed": seed, "arm_id": arm, "arm": arm, "optimizer": optimizer}
        storage.put(attempt.key, json.dumps(start).encode())
        for table in (TRAIN, VAL, LAYERS, HEALTH, SPECTRA):
            rows = sort_for_reading(rows_of(case, table, run, arm, seed).to_arrow().cast(table.schema), table)
            data = encode(rows, table, final=True)
            storage.put(final_key(table.name, run, attempt.id, rows.num_rows, digest(data)), data)
        end = start | {"status": "done", "wall_s": 60.0, "final_val_loss": 3.0, "steps": case.events * 5}
        write_end_record(storage, attempt, end, case.events * case.layers * len(PROJECTIONS))
        block, role = ("base", "baseline") if arm == "adamw" else (f"b{i // len(SEEDS)}", "candidate")
        listed.append({"run_id": run, "block": block, "role": role, "arm": arm})
    write_sweep(storage, SweepRecord.model_validate({"sweep": "bench", "question": "How fast?", "runs": listed}))


def fill_jsonl(folder: Path, case: Case) -> None:
    """The rows that the rival's pictures need, one file a run and table: curves of all runs, layers of one seed."""
    for run, arm, seed in runs_of(case):
        for table in (VAL, LAYERS) if seed == SEEDS[0] else (VAL,):
            path = folder / table.name / f"{run}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows_of(case, table, run, arm, seed).with_columns(arm=pl.lit(arm)).write_ndjson(path)


def report_once(store: str, output: str) -> None:
    """Write the report and print what it took."""
    begin = time.perf_counter()
    from analysis.report.build import write_report
    from analysis.store import open_store

    page = write_report(open_store(store).sweep("bench"), output).page
    print_spent(begin, page.stat().st_size)


def draw_once(jsonl: str, output: str, projections: int) -> None:
    """The rival: the curves and the heatmaps as SVG files."""
    begin = time.perf_counter()
    import matplotlib as mpl  # type: ignore[import-not-found]
    import pandas as pd  # type: ignore[import-untyped]

    mpl.use("svg")
    import matplotlib.pyplot as plt  # type: ignore[import-not-found]

    val = [pd.read_json(path, lines=True) for path in sorted(Path(jsonl, "val").glob("*.jsonl"))]
    figure, axes = plt.subplots()
    for run in val:
        axes.plot(run["tokens"], run["val_loss"])
    figure.savefig(Path(output, "val_loss.svg"))
    keep = ["arm", "layer", "step", "projection", *HEATMAPS]
    layers = pd.concat([pd.read_json(path, lines=True)[keep] for path in sorted(Path(jsonl, "layers").glob("*.jsonl"))])
    size = (Path(output) / "val_loss.svg").stat().st_size
    for projection in PROJECTIONS[:projections]:
        own = layers[layers["projection"] == projection]
        for metric in HEATMAPS:
            low, high = own[metric].quantile(0.01), own[metric].quantile(0.99)
            panels = list(own.groupby("arm", sort=False))
            grid = (math.ceil(len(panels) / 4), 4)
            figure, axes = plt.subplots(*grid, figsize=(10, 3 * grid[0]), squeeze=False)
            for (arm, rows), place in zip(panels, axes.flat, strict=False):
                cells = rows.pivot_table(index="layer", columns="step", values=metric)
                shown = place.imshow(cells, aspect="auto", origin="lower", vmin=low, vmax=high, interpolation="nearest")
                place.set_title(arm)
            figure.colorbar(shown, ax=axes)
            path = Path(output, f"{metric}_{projection}.svg")
            figure.savefig(path)
            plt.close(figure)
            size += path.stat().st_size
    print_spent(begin, size)


def print_spent(begin: float, size: int) -> None:
    """What this process took since `begin`, as JSON."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    spent = {"cpu_s": time.process_time(), "wall_s": time.perf_counter() - begin, "bytes": size}
    print(json.dumps(spent | {"peak": int(line.split()[1]) * 1024}))


def in_process_of_its_own(*arguments: str) -> dict[str, float]:
    """What `report_once` or `draw_once` printed."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    spent: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return spent


def check(name: str, what: str, value: float, goal: float | None) -> str:
    """Text of one number, which is noted if short of its goal."""
    if goal is not None and value > goal:
        missed.append(f"{name}: {what}")
    return f"{what} {value:.1f}" + ("" if goal is None else f" (goal <= {goal:g})")


def measure(name: str, case: Case) -> str:
    """Print what the report of one case took; the ratio to the rival's seconds, or why there is none."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        fill(Folder(folder / "store"), case)
        ours = in_process_of_its_own("report", str(folder / "store"), str(folder / "report"))
        files = sum(path.stat().st_size for path in (folder / "report").rglob("*") if path.is_file())
        told = [
            check(name, "s of CPU", ours["cpu_s"], case.cpu_s),
            check(name, "s", ours["wall_s"], case.wall_s),
            check(name, "MiB of HTML", ours["bytes"] / MIB, case.html / MIB),
            check(name, "MiB of memory", ours["peak"] / MIB, None if case.peak is None else case.peak / MIB),
            f"{files / MIB:.1f} MiB with data",
        ]
        print(f"{name}: {'; '.join(told)}", flush=True)
        if lacking := [package for package in ("matplotlib", "pandas") if importlib.util.find_spec(package) is None]:
            return f"{name}: no ratio, for {' and '.join(lacking)} are not installed"
        fill_jsonl(folder / "jsonl", case)
        (folder / "rival").mkdir()
        rival = in_process_of_its_own("rival", str(folder / "jsonl"), str(folder / "rival"), str(case.projections))
    times = len(PROJECTIONS) / case.projections
    seconds = times * rival["wall_s"]
    print(
        f"{name}, matplotlib: {seconds:.1f} s; {times * rival['bytes'] / MIB:.1f} MiB of SVG; "
        f"{rival['peak'] / MIB:.0f} MiB of memory"
    )
    return f"{name}: {ours['wall_s'] / seconds:.2f} of the seconds of matplotlib"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*CASES, []], help="demo, sweep; both if none.")
    ratios = [measure(name, CASES[name]) for name in parser.parse_args().cases or CASES]
    goals = "goals: demo 15 s of CPU, 3 MiB; sweep 60 s, 12 MiB, 2 GiB of memory"
    print(f"{'; '.join(ratios)}; {goals}: {'missed ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["report"]:
        report_once(*sys.argv[2:4])
    elif sys.argv[1:2] == ["rival"]:
        draw_once(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        sys.exit(main())
