"""Runs whose optimizer is a class by reference: trained, resumed from the store alone, changed, and failed."""

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.lion_like import SOURCE
from support.same_rows import assert_same_rows
from support.saved_runs import steps_reported, train_until, weights
from support.sweeps import sweep_file
from torch import equal

from analysis.store import open_store
from muon_core import by_reference
from muon_core.by_reference import BadReference, class_of, find
from muon_core.config.reference import ReferenceConfig
from muon_core.config.run import RunConfig
from muon_core.sources import fetch_source, publish_source
from muon_core.store.folder import Folder
from muon_core.store.keys import source_key
from muon_core.store.storage import StoreError
from ray_jobs.cli.main import main
from ray_jobs.sweep_plan import plan_sweep
from search_spaces.run_file import resolve_run
from search_spaces.spec import load_spec

pytestmark = pytest.mark.slow
PECULIAR = """
import torch


class Peculiar(torch.optim.Optimizer):
    '''Keeps something wherever an optimizer can, and steps by all of it.'''

    def __init__(self, params, lr=0.01, seed=0):
        super().__init__(params, {"lr": lr, "k": 0})
        self.total = float(seed)

    def state_dict(self):
        return super().state_dict() | {"total": self.total}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.total = state_dict["total"]

    @torch.no_grad()
    def step(self, closure=None):
        self.total += 0.5
        for group in self.param_groups:
            group["k"] += 1
            for param in group["params"]:
                state = self.state[param]
                state["count"] = state.get("count", 0) + 1
                rough = state.setdefault("rough", torch.zeros_like(param, dtype=torch.bfloat16))
                state.setdefault("seen", torch.zeros((), dtype=torch.float64)).add_(param.grad.square().mean())
                row = state.setdefault("row", torch.zeros(param.shape[-1]))
                state["last"] = [*state.get("last", []), param.grad.clone()][-2:]
                rough.mul_(0.9).add_(param.grad.bfloat16())
                row.add_(param.grad.reshape(-1, param.shape[-1]).mean(0))
                update = rough.float().sign() + row + sum(state["last"]) + state["seen"].float()
                param.sub_(update, alpha=group["lr"] / (group["k"] + state["count"] + self.total))
"""
FAILS = "import torch\n\n\nclass Fails(torch.optim.Optimizer):\n    def __init__(self, params, lr=1.0):\n" + (
    '        super().__init__(params, {"lr": lr})\n\n    def step(self, closure=None):\n'
    '        raise RuntimeError("there is no step here")\n'
)


@pytest.fixture
def folder(tmp_path: Path, small: dict[str, Any]) -> Path:
    """Three files with an optimizer each, and `run.yaml`, a run that saves itself each other step."""
    for name, source in {"lion_like": SOURCE, "peculiar": PECULIAR, "fails": FAILS}.items():
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "run.yaml").write_text(json.dumps(small | {"checkpoint": {"every_steps": 2}}))
    return tmp_path


def forget() -> None:
    """What this process knows of files: from here on it is another worker."""
    by_reference._SOURCES.clear()
    for name in [name for name in sys.modules if name.startswith("muon_source_")]:
        del sys.modules[name]


@pytest.mark.parametrize(("reference", "takes"), [("lion_like.py:LionLike", "hidden"), ("peculiar.py:Peculiar", "all")])
def test_a_run_goes_on_bit_for_bit_where_only_the_store_has_its_source(
    folder: Path,
    reference: str,
    takes: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(folder)
    config = resolve_run("run.yaml", reference, {"takes": takes})
    whole, cut = Folder(folder / "whole"), Folder(folder / "cut")
    steps_reported(whole, config)
    layers = open_store(folder / "whole").layers.filter(pl.col("step") > 0).collect()
    nulls = layers.select(pl.col("^momentum_.*$").null_count()).row(0)
    assert set(nulls) == {layers.height if takes == "all" else 0}  # of the one nobody knows what it averages
    told = [record.message for record in caplog.records if "momentum are null" in record.message]
    assert len(told) == (takes == "all")
    publish_source(config.optimizer, cut)
    train_until(cut, config, 5)
    forget()
    (folder / reference.partition(":")[0]).write_text("raise SystemExit('another file')\n")
    assert steps_reported(cut, config) == [*range(4, 9)]
    assert_same_rows(folder / "whole", folder / "cut", [config.run_id])
    left, right = weights(whole, config), weights(cut, config)
    assert all(equal(left[name], right[name]) for name in left)


def test_a_sweep_compares_classes_by_reference_and_knows_when_one_changes(
    folder: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = [
        {"name": "base", "role": "baseline", "optimizer": "muon"},
        {"name": "mine", "optimizer": "./lion_like.py:LionLike", "grid": {"lr": [0.002, 0.004]}},
        {"name": "theirs", "optimizer": "torch.optim:Muon"},
    ]
    path, store = sweep_file(folder, small, blocks, seeds=[1]), str(folder / "store")
    storage = Folder(store)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "run", str(path), "--store", store, "--yes", "--in-process"])
    assert stop.value.code == 0, capsys.readouterr().err
    planned = plan_sweep(load_spec(path), storage)
    assert planned.counts == {"done": 4}
    assert planned.changed == ()
    optimizer = planned.runs[1].config.optimizer
    assert isinstance(optimizer, ReferenceConfig)
    assert storage.get(source_key(optimizer.source_sha256)) == SOURCE.encode()
    view = open_store(store)
    layers = view.layers.filter(pl.col("step") > 0).collect().join(view.runs.collect(), on="run_id")
    has_momentum = layers.group_by("optimizer").agg(pl.col("momentum_left_alignment", "momentum_ill_posed").count() > 0)
    assert sorted(has_momentum.iter_rows()) == [
        ("LionLike", True, True), ("Muon", True, True), ("muon", True, True)
    ]  # fmt: skip
    assert layers["update_alignment"].null_count() == 0
    (folder / "lion_like.py").write_text(SOURCE.replace(".sign()", ".sign().mul(1.0)"))
    changed = plan_sweep(load_spec(path), storage)
    assert changed.changed == (
        "lion_like.py changed since the runs in the store: 2 runs of the earlier source are kept, 2 are new",
    )
    assert changed.counts == {"done": 2, "planned": 2}
    assert len(changed.unlisted) == 2


def test_a_step_that_raises_fails_the_run_with_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "run.yaml", "--optimizer", "./fails.py:Fails", "--store", "store"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert stop.value.code == 3
    assert line.startswith("failed: Fails-lr1-s42-")
    assert ": RuntimeError: there is no step here (traceback: muon status Fails" in line


def test_a_worker_proves_what_it_loads(folder: Path) -> None:
    """Another file, another release, and a store that is damaged, are named; nothing else is taken in their place."""
    found = find(f"{folder}/lion_like.py:LionLike")
    config = RunConfig.model_validate({"optimizer": {
        "name": "LionLike", "reference": found.reference, "source_sha256": found.source_sha256
    }})  # fmt: skip
    storage = Folder(folder / "store")
    publish_source(config.optimizer, storage)
    forget()
    (folder / "lion_like.py").write_text("import torch\n")
    with pytest.raises(
        BadReference, match=rf"lion_like\.py is another file \(\w+\) than .* \({found.source_sha256[:12]}"
    ):
        class_of(found.reference, found.source_sha256, None)
    fetch_source(config.optimizer, storage)
    assert class_of(found.reference, found.source_sha256, None).__name__ == "LionLike"
    forget()
    (folder / "store" / source_key(found.source_sha256)).write_text("torn")
    with pytest.raises(StoreError, match=r"code/\w+\.py in .* is damaged; remove it there and run the sweep's command"):
        fetch_source(config.optimizer, storage)
    torch_s = find("torch.optim:SGD")
    with pytest.raises(BadReference, match=r"torch\.optim:SGD is of torch \S+ \(\w+\) on this machine, and the run was "
                       r"planned with torch 1\.0 \(\w+\); install the same"):  # fmt: skip
        class_of(torch_s.reference, torch_s.source_sha256, "torch 1.0")
