"""Matrices that are measured beside training by two gloo workers: the rows of workers that wait for it."""

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.beside import measure_beside
from support.ranks import run_ranks, start_process
from support.same_rows import assert_same_rows, rows

from analysis.store import open_store
from muon_core import environment
from muon_core.config.run import RunConfig
from muon_core.measuring import has_room
from muon_core.store.folder import Folder
from muon_core.train import train

pytestmark = pytest.mark.slow
MODES: dict[str, dict[str, Any]] = {
    "replicated": {"distribute": "replicated"},
    "owner": {"distribute": "owner"},
    "fsdp": {"parallel": "fsdp"},
}
"""Whose matrices rank 0 sees: all of them, all but for the blocks that the other orthogonalized, and its share."""


def on_two(config: str, folder: Path) -> None:
    importlib.import_module("torch._dynamo")  # FSDP does: once for all
    run_ranks(2, folder / "rendezvous", on_ranks, config, folder, start_method="fork")
    run_ranks(2, folder / "rendezvous-cramped", cramped, config, folder, start_method="fork")
    for mode in MODES:
        run_ranks(2, folder / f"rendezvous-{mode}", breaking, config, folder, mode, start_method="fork")


def on_ranks(rank: int, config: str, folder: Path) -> None:
    """One of two ranks: waits, measures late, is stopped at step 7 with a measurement under way, and goes on.

    What is under way is taken up at the end, by a checkpoint for which rank 0's clock is right, and by one at a step.
    """
    run, by_clock = RunConfig.model_validate_json(config), {"every_s": 1e-6}
    with pytest.MonkeyPatch.context() as patched:
        for way in ("waits", "late", "cut"):
            for mode, fields in MODES.items():
                changed, store = run.replace(**fields), Folder(folder / f"{mode}-{way}")
                if way == "cut":
                    train(changed.replace(checkpoint=by_clock), store, report=lambda progress: progress.step != 7)
                    changed = changed.replace(checkpoint={"every_steps": 2})
                assert train(changed, store).status == "done"
            measure_beside(patched, late=True)


def cramped(rank: int, config: str, folder: Path) -> None:
    """One of two ranks, of which the second has no room for copies."""
    free = environment.free_memory_bytes
    run = RunConfig.model_validate_json(config)
    with pytest.MonkeyPatch.context() as patched:
        measure_beside(patched)
        patched.setattr(environment, "free_memory_bytes", lambda device: (1 - rank) * free(device))
        assert not has_room(run, torch.device("cpu"))


def breaking(rank: int, config: str, folder: Path, mode: str) -> None:
    """One of two ranks, of which the first raises with a measurement under way."""
    run = RunConfig.model_validate_json(config).replace(**MODES[mode])

    def report(progress: Any) -> bool:
        if progress.step == 7:
            raise RuntimeError("this rank broke")
        return True

    with pytest.MonkeyPatch.context() as patched:
        measure_beside(patched, late=True)
        with pytest.raises(RuntimeError):
            train(run, Folder(folder / f"{mode}-broken"), report=report)
    os._exit(0)  # as a worker group does: no more collectives after an error


@pytest.fixture(scope="module")
def stores(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all stores."""
    folder = tmp_path_factory.mktemp("measuring")
    config = RunConfig.model_validate(
        small
        | {"tracking": {"track_every": 3, "eval_every": 5}, "checkpoint": {"every_s": None}, "micro_batches": 2}
        | {"optimizer": {"name": "orthonoise", "alpha": 0.1, "ns_dtype": "fp32", "attention_blocks": "per_head"}}
    )
    process = start_process(on_two, config.model_dump_json(), folder)
    process.join()
    assert process.exitcode == 0
    return folder


def run_ids(store: Path) -> list[str]:
    return open_store(store).runs.collect()["run_id"].to_list()


@pytest.mark.parametrize("way", ["late", "cut"])
@pytest.mark.parametrize("mode", MODES)
def test_rows_are_those_of_workers_that_wait(stores: Path, mode: str, way: str) -> None:
    assert_same_rows(stores / f"{mode}-waits", stores / f"{mode}-{way}", run_ids(stores / f"{mode}-waits"))
    runs = open_store(stores / f"{mode}-{way}").runs.collect()
    assert runs["attempts"].to_list() == [2 if way == "cut" else 1]
    assert (runs["distribution_json"].str.contains("owner").item()) == (mode != "replicated")


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_that_breaks_waits_for_no_other(stores: Path, mode: str) -> None:
    """What it measured by itself is there, what the other had a part in is not; nor does anything wait behind it."""
    store = stores / f"{mode}-broken"
    assert open_store(store).runs.collect()["status"].to_list() == ["failed"]
    steps = sorted(set(open_store(store).layers.collect()["step"]))
    assert steps == ([0, 3, 6] if mode == "replicated" else [0, 3])
    assert rows(store, "train", run_ids(store))["step"].to_list() == list(range(1, 8))
