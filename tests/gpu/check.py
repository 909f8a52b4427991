"""`make gpu-check`: the tests that need CUDA and what a GPU is measured by, in ten minutes, as one table.

Muon's step beside `torch.optim.Muon`, beside what its FLOPs take at the GPU's peak, and compiled; tokens a second and
MFU of the 88m preset under Muon and AdamW, with tracking and without; how long compilation takes; the bits of a run
that was taken up again; how often a step waits for the device. Every part is a process of its own, so one that fails or
hangs leaves the others, and what takes long, to compile, comes last. Standard error has how long each took, and in full
what one died of. The last line says what was missed; exit code 1 if anything was, 2 without a GPU. Copy the table into
docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIMIT_S, PART_S = 600.0, 240.0
"""Seconds that all parts may take, and any of them."""
MUON_GOAL = 0.2
"""Largest ratio of a step's seconds, ours to `torch.optim.Muon`'s."""
BENCH = HERE.parent / "bench" / "optimizer_step.py"


class Part(Exception):
    """A part without a result; its text is why."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    what: str
    value: str
    beside: str = ""
    missed: bool = False


def called(command: list[str], seconds: float) -> str:
    """What a command prints. Raises Part where it fails, or takes longer than `seconds`."""
    if seconds < 1:
        raise Part("no time was left")
    limit = min(seconds, PART_S)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired as late:
        for stream in (late.stdout, late.stderr):
            print((stream or b"").decode(errors="replace"), file=sys.stderr)
        raise Part(f"took longer than {limit:.0f} s") from None
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise Part(f"failed: {reason_in(done.stderr) or reason_in(done.stdout) or f'exit code {done.returncode}'}")
    return done.stdout


def reason_in(text: str) -> str:
    """The error that a traceback ends with, without the hints that torch's compiler puts behind; else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|OutOfMemory\w*)\b", line)]
    return (errors or lines or [""])[-1][:200]


def part(name: str, *arguments: Any, seconds: float) -> Any:
    """The result of a part of parts.py."""
    return _json(called([sys.executable, str(HERE / "parts.py"), name, json.dumps(arguments)], seconds))


def _json(printed: str) -> Any:
    """Of the last line. Raises Part where that is none."""
    *_, last = ["", *printed.strip().splitlines()]
    try:
        return json.loads(last)
    except ValueError:
        raise Part(f"ended with no result but {last!r}") from None


def gpu_tests(device: str, seconds: float) -> Row:
    """The tests with the marker `gpu`."""
    files = [str(path) for path in sorted(ROOT.glob("tests/*/test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    summary = called([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files], seconds)
    told = summary.strip().splitlines()[-1].strip("= ")
    return Row("tests that need CUDA", told, missed=device == "cuda" and ("skipped" in told or "passed" not in told))


def muon_step(device: str, seconds: float) -> Row:
    """A Muon step of the hidden matrices of 88m, all 22 layers."""
    layers, steps, dtype = (22, 9, "bf16") if device == "cuda" else (1, 1, "fp32")
    arguments = json.dumps(["compare", 1, device, layers, steps, dtype])
    seen = _json(called([sys.executable, str(BENCH), "--in-process", arguments], seconds))
    ours, theirs = (median(wall for wall, _ in seen[kind]) for kind in ("ours", "torch"))
    floor = part("floor", device, seconds=seconds)["seconds"]
    beside = f"torch.optim.Muon {theirs * 1e3:.2f} ms, ratio {ours / theirs:.3f} (goal <= {MUON_GOAL})"
    beside += f"; its FLOPs at the peak {floor * 1e3:.2f} ms" if floor else ""
    return Row("Muon step", f"{ours * 1e3:.2f} ms", beside, ours > MUON_GOAL * theirs)


def muon_step_compiled(device: str, seconds: float) -> Row:
    """The same step with Newton-Schulz compiled, beside itself without."""
    layers, steps = (22, 9) if device == "cuda" else (1, 1)
    arguments = json.dumps(["compare", 1, device, layers, steps, "bf16", ["ours", "compiled"]])
    seen = _json(called([sys.executable, str(BENCH), "--in-process", arguments], seconds))
    plain, compiled = (median(wall for wall, _ in seen[kind]) for kind in ("ours", "compiled"))
    beside = f"not compiled {plain * 1e3:.2f} ms, ratio {compiled / plain:.3f} (goal <= 1)"
    beside += f"; first step {seen['first_s']['compiled'] - compiled:.1f} s longer"
    if peak := seen["peak_bytes"]:
        beside += f"; {peak['compiled'] / 2**20:.0f} MiB beside {peak['ours'] / 2**20:.0f} MiB"
    return Row("Muon step compiled", f"{compiled * 1e3:.2f} ms", beside, compiled > plain)


def speed(optimizer: str, tracking: bool) -> Callable[[str, float], Row]:
    """How fast the 88m preset trains."""

    def row(device: str, seconds: float) -> Row:
        seen = part("speed", device, optimizer, tracking, seconds=seconds)
        mfu = "unknown" if seen["mfu"] is None else f"{seen['mfu']:.1%}"
        beside = f"MFU {mfu}, {seen['peak_bytes'] / 2**30:.1f} GiB, first step {seen['first_step_s']:.1f} s longer"
        return Row(f"{optimizer}, {_tracking(tracking)}", f"{seen['tokens_per_s']:,.0f} tokens/s", beside)

    row.__name__ = f"{optimizer}, {_tracking(tracking)}"
    return row


def _tracking(is_on: bool) -> str:
    return "tracking by default" if is_on else "no tracking"


def resumed(compiled: bool) -> Callable[[str, float], Row]:
    """A run that was stopped and went on, beside one that was not."""
    what = "a compiled run taken up again" if compiled else "a run taken up again"

    def row(device: str, seconds: float) -> Row:
        seen = part("resume", device, compiled, seconds=seconds)
        differing = f"{seen['differing']:,} of {seen['entries']:,} weights differ"
        value = differing if seen["differing"] else "the same bits"
        return Row(what, value, f"train losses at most {seen['apart']:.2g} apart")

    row.__name__ = what
    return row


def waits(device: str, seconds: float) -> Row:
    """Host syncs of a step."""
    seen = part("syncs", device, seconds=seconds)
    return Row(
        "waits for the device in a step", str(seen["most"]), f"the most of {seen['steps']} (goal 0)", seen["most"] > 0
    )


MEASURED: tuple[Callable[[str, float], Row], ...] = (
    gpu_tests,
    muon_step,
    resumed(compiled=False),
    waits,
    speed("muon", tracking=False),
    speed("adamw", tracking=False),
    speed("muon", tracking=True),
    speed("adamw", tracking=True),
    muon_step_compiled,
    resumed(compiled=True),
)


def rows(device: str, limit_s: float = LIMIT_S) -> Iterator[Row]:
    """All parts in order; one without a result has the reason in its place."""
    begin = time.monotonic()
    for measured in MEASURED:
        name, since = measured.__name__.replace("_", " "), time.monotonic()
        try:
            yield measured(device, limit_s - (since - begin))
        except Part as reason:
            yield Row(name, str(reason), missed=True)
        print(f"{name}: {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)


def check(device: str) -> int:
    """Print the table; returns the exit code."""
    import torch

    from muon_core.compiled import check_compiler

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # the first to compile does so from nothing
        try:
            about = part("versions", device, seconds=LIMIT_S)
        except Part as reason:
            print(f"gpu-check: the device cannot be asked: {reason}; `muon doctor` looks it over")
            return 1
        print(" | ".join(f"{name} {value}" for name, value in about.items()), flush=True)
        try:
            check_compiler(torch.device(device))
        except ValueError as lacks:  # and so do the parts that compile
            print(f"\n{lacks}", flush=True)
        print("\n| what | measured | beside |\n|---|---|---|", flush=True)
        found = []
        for row in rows(device):
            print(f"| {row.what} | {row.value} | {row.beside} |", flush=True)
            found.append(row)
    missed = [row.what for row in found if row.missed]
    print(f"\n{time.monotonic() - begin:.0f} s; {'missed: ' + '; '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


def main() -> int:
    import torch

    from ray_jobs.machine import count_gpus

    if torch.version.cuda is None and count_gpus():
        print(f"gpu-check: torch {torch.__version__} is built without CUDA; install its build for CUDA")
        return 2
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device is found here; run it on a machine with an NVIDIA GPU and its driver")
        return 2
    return check("cuda")


if __name__ == "__main__":
    sys.exit(main())
