"""CONTRIBUTING.md is followed: its blocks are put where they say, in a copy of the code, and what it promises holds."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("muon_core", "search_spaces", "ray_jobs", "analysis")
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"# (?P<file>\S+\.py), (?P<side>above|in|at its) (?P<anchor>\S+)\n")

PROGRAM = """
import json, sys
import polars as pl
from analysis import queries
from analysis.store import open_store
from muon_core import tables
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.train import train
from search_spaces.expand import expand
from search_spaces.spec import parse_spec

sweep = '''
version: 1
name: signs
seeds: [1]
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - {name: sign, optimizer: sign, grid: {scale: [0.1, 0.3]}}
'''
scales = [getattr(run.config.optimizer, "scale", None) for run in expand(parse_spec(sweep))]
small, store = json.loads(sys.argv[1]), Folder(sys.argv[2])
outcome = train(RunConfig.model_validate(small | {"optimizer": {"name": "sign", "lr": 0.01}}), store)
opened = open_store(store)
layers, rows = opened.layers.collect(), opened.train.collect()
queries.check_layer_metric("nuclear_norm")
print(json.dumps({
    "scales": scales,
    "status": outcome.status,
    "nuclear": layers["nuclear_norm"].to_list(),
    "full_rank": (layers["spectral_norm"] * layers.select(pl.min_horizontal("rows", "cols")).to_series()).to_list(),
    "loss": rows["train_loss"].to_list(),
    "perplexity": rows["train_perplexity"].to_list(),
    "described": [name for name in ("nuclear_norm", "train_perplexity") if f"| {name} | " in tables.describe()],
}))
"""


def blocks() -> list[tuple[str, str, str, str]]:
    """(file, above, in or at its, what stands there or `end`, code) of each block of CONTRIBUTING.md."""
    found = []
    for indent, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        place = PLACE.match(textwrap.dedent(text) if indent else text)
        assert place, text
        found.append((*place.groups(), re.sub(rf"^{indent}", "", text, flags=re.MULTILINE).split("\n", 1)[1]))
    return found


def put(path: Path, side: str, anchor: str, code: str) -> None:
    """Insert `code` above the first line that begins with `anchor`, or below it, or at the end."""
    if side == "at its":
        path.write_text(f"{path.read_text()}\n\n{code}")
        return
    lines = path.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if line.lstrip().startswith(anchor))
    lines.insert(number + (side == "in"), code)
    path.write_text("".join(lines))


@pytest.mark.slow
def test_an_optimizer_a_metric_and_a_column_are_added_as_it_says(tmp_path: Path, small: dict[str, Any]) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, side, anchor, code in blocks():
        put(tmp_path / file, side, anchor, code)
    command = [sys.executable, "-c", PROGRAM, json.dumps(small), str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["scales"] == [None, 0.1, 0.3]
    assert found["status"] == "done"
    assert found["loss"][-1] < found["loss"][0] - 0.2
    assert found["perplexity"] == pytest.approx([2.718281828459045**loss for loss in found["loss"]])
    assert found["nuclear"]
    assert all(0 < norm <= bound for norm, bound in zip(found["nuclear"], found["full_rank"], strict=True))
    assert found["described"] == ["nuclear_norm", "train_perplexity"]
