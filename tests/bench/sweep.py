"""A sweep beside a shell loop of `muon pretrain`, two processes at a time: the wall time of the same runs.

Usage: python tests/bench/sweep.py [SPEC]
Without SPEC 20 runs of 20 steps; then the sweep may take at most 0.4 of the loop's time, else 0.9. Exit 1 when it takes
more.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from muon_core.config.run import RunConfig
from search_spaces.expand import expand
from search_spaces.spec import load_spec

MUON = str(Path(sys.executable).with_name("muon"))
AT_A_TIME = 2
SHORT = f"""\
version: 1
name: short
seeds: {list(range(20))}
constants: {{steps: 20}}
resources: {{max_concurrent: {AT_A_TIME}}}
blocks:
  - {{name: base, role: baseline, optimizer: muon}}
"""


def sweep(spec: Path, folder: Path) -> float:
    """Seconds that the sweep takes."""
    return _timed([MUON, "sweep", "run", str(spec)], folder / "sweep")


def shell_loop(configs: Sequence[RunConfig], folder: Path) -> float:
    """Seconds that a process a run takes, two at a time."""
    commands = []
    for config in configs:
        file = folder / f"{config.run_id}.yaml"
        file.write_text(config.model_dump_json())
        commands.append(shlex.join([MUON, "pretrain", str(file)]))
    (folder / "commands").write_text("\n".join(commands))
    # Each has a core, as a worker of the sweep has: with all of them both would wait for each other's threads.
    loop = f"xargs -P {AT_A_TIME} -d '\\n' -I @ sh -c @ < {shlex.quote(str(folder / 'commands'))}"
    return _timed(["sh", "-c", loop], folder / "loop", OMP_NUM_THREADS="1")


def _timed(command: list[str], store: Path, **environment: str) -> float:
    begin = time.perf_counter()
    with store.with_suffix(".log").open("w") as log:
        subprocess.run(
            command, env=os.environ | {"MUON_STORE": str(store)} | environment, check=True, stdout=log, stderr=log
        )
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("spec", nargs="?", type=Path, metavar="SPEC")
    spec = parser.parse_args().spec
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as name:  # Ray's sockets need short names
        folder, goal = Path(name), 0.9 if spec else 0.4
        if spec is None:
            spec = folder / "short.yaml"
            spec.write_text(SHORT)
        configs = [run.config for run in expand(load_spec(str(spec)))]
        loop_s, sweep_s = shell_loop(configs, folder), sweep(spec, folder)
    share = sweep_s / loop_s
    print(
        f"{len(configs)} runs: shell loop, {AT_A_TIME} at a time, {loop_s:.0f} s; sweep {sweep_s:.0f} s, "
        f"{share:.2f} of it; goal <= {goal}: {'met' if share <= goal else 'MISSED'}"
    )
    return 0 if share <= goal else 1


if __name__ == "__main__":
    sys.exit(main())
