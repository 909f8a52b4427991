"""Two gloo workers under DDP against one process: the same rows bit for bit, and errors that name the culprit."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from support.ranks import run_ranks

from analysis.store import open_store
from muon_core import train as train_module
from muon_core.config.run import RunConfig
from muon_core.failures import classify
from muon_core.progress import Progress
from muon_core.store.folder import Folder
from muon_core.store.reader import read_statuses
from muon_core.store.writer import RunWriter
from muon_core.throughput import COLUMNS
from muon_core.train import train

pytestmark = pytest.mark.slow
TIMING = ("run_id", "attempt", "step_time_s", "tokens_per_s", "elapsed_s", *COLUMNS)


def worker(rank: int, config: str, store: str, breaks_on: int, stop_at: int) -> None:
    """One rank: trains `config` up to step `stop_at`; rank `breaks_on` raises in its first evaluation after a step."""
    if rank == breaks_on:
        real, calls = train_module.evaluate, []

        def breaking(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("this rank broke")
            return real(*args, **kwargs)

        train_module.evaluate = breaking
    run = RunConfig.model_validate_json(config)
    try:
        train(run, Folder(store), report=lambda progress: progress.step != stop_at)
        assert run.compile == ("torch._dynamo" in sys.modules)  # which takes as long to load as the rest of torch
    except RuntimeError as error:
        assert (classify(error) == "infrastructure") == (rank != breaks_on), error  # noqa: PT017
        os._exit(0)  # as a worker group does: no more collectives after an error


def train_on(
    world_size: int, tmp_path: Path, config: RunConfig, store: Path, breaks_on: int = -1, stop_at: int = -1
) -> None:
    rendezvous = tmp_path / f"rendezvous-{store.name}-{stop_at}"
    run_ranks(world_size, rendezvous, worker, config.model_dump_json(), str(store), breaks_on, stop_at)


def assert_same_rows(a: Path, b: Path) -> None:
    for table in ("train", "val", "layers", "health"):
        left, right = (
            open_store(store).table(table).drop(TIMING, strict=False).sort("seq").collect() for store in (a, b)
        )
        assert left.height > 0
        assert left.equals(right), table


def on_texts_of_their_own(rank: int, config: str, folder: str) -> None:
    """One of two ranks for which the corpus is another text."""
    corpus = Path(folder, str(rank))
    run = RunConfig.model_validate_json(config)
    with pytest.raises(ValueError, match=r"^workers differ in their tokens \(data_hash\): \w+ on \S+ \(worker 0\)"):
        train(run.replace(data=run.data.replace(corpus=str(corpus))), Folder(Path(folder, "store")))


def test_workers_whose_text_differs_refuse_to_train(tmp_path: Path, run_config: RunConfig, corpus: Path) -> None:
    """As on nodes with other releases of what they read; the mean of their gradients would be of two questions."""
    for rank in (0, 1):
        shutil.copytree(corpus, tmp_path / str(rank))
    changed = next(path for path in sorted((tmp_path / "1").rglob("*")) if path.is_file())
    changed.write_text(changed.read_text() + "one line more\n")
    run_ranks(2, tmp_path / "rendezvous", on_texts_of_their_own, run_config.model_dump_json(), str(tmp_path))
    assert set(read_statuses(Folder(tmp_path / "store")).values()) == {"failed"}


@pytest.mark.parametrize("name", ["muon", "orthonoise"])
def test_two_workers_equal_one_with_two_micro_batches(tmp_path: Path, run_config: RunConfig, name: str) -> None:
    config = run_config.replace(optimizer={"name": name})
    one, two = tmp_path / "one", tmp_path / "two"
    train(config.replace(micro_batches=2), Folder(one))
    train_on(2, tmp_path, config, two)
    assert open_store(two).runs.collect()["world_size"].to_list() == [2]
    assert_same_rows(one, two)


def test_tree_reduction_gives_the_same_bits_on_1_2_and_4_workers_and_after_a_move(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    """Four micro-batches; the last store begins on one worker, is stopped, and goes on with four."""
    config = RunConfig.model_validate(
        small | {"reduction": "tree", "micro_batches": 4, "model": small["model"] | {"dropout": 0.1}}
    )
    one, moved = tmp_path / "one", tmp_path / "moved"
    train(config, Folder(one))
    train(config, Folder(moved), report=lambda progress: progress.step < 5)
    for world_size, store in ((2, tmp_path / "two"), (4, moved)):
        train_on(world_size, tmp_path, config, store)
        assert_same_rows(one, store)
    assert open_store(moved).runs.collect().select("attempts", "world_size").rows() == [(2, 4)]


def test_ddp_reduction_agrees_between_world_sizes_to_rounding(tmp_path: Path, run_config: RunConfig) -> None:
    four = tmp_path / "four"
    config = run_config.replace(optimizer={"name": "muon", "ns_dtype": "fp32"})  # bfloat16 rounds a last bit up to 1e-2
    train_on(4, tmp_path, config, four)
    whole = train(config, None).final
    assert whole is not None
    assert open_store(four).runs.collect()["final_val_loss"][0] == pytest.approx(whole.val_loss, abs=1e-5)


def in_turn(rank: int, config: str, stores: Path) -> None:
    """One of four ranks that train the run whole, and once more in two parts, each under a DDP of its own."""
    for name, stop_at in (("whole", -1), ("cut", 5), ("cut", -1)):
        run = RunConfig.model_validate_json(config)
        train(run, Folder(stores / name), report=lambda progress, stop_at=stop_at: progress.step != stop_at)


def test_four_workers_stopped_half_way_go_on_bitwise(tmp_path: Path, run_config: RunConfig) -> None:
    """From three ranks on a sum depends on its order, which DDP decides anew after its first step."""
    config = run_config.replace(optimizer={"name": "adamw"}, steps=10)
    run_ranks(4, tmp_path / "rendezvous", in_turn, config.model_dump_json(), tmp_path)
    assert open_store(tmp_path / "cut").runs.collect()["attempts"].to_list() == [2]
    assert_same_rows(tmp_path / "whole", tmp_path / "cut")


def test_a_ddp_run_moved_from_two_workers_to_one_agrees_to_rounding(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(optimizer={"name": "adamw"})
    train_on(1, tmp_path, config, tmp_path / "whole")
    train_on(2, tmp_path, config, tmp_path / "moved", stop_at=4)
    train_on(1, tmp_path, config, tmp_path / "moved")
    losses = [
        open_store(tmp_path / name).val.sort("step").collect()["val_loss"].to_list() for name in ("whole", "moved")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def overtaken(rank: int, config: str, store: str) -> None:
    """One of two ranks of a run that another attempt takes over at step 3."""
    run = RunConfig.model_validate_json(config)

    def overtake(progress: Progress) -> bool:
        if progress.step == 3:
            RunWriter(Folder(store), run.run_id, {})
        return True

    outcome = train(run, Folder(store), report=overtake)
    assert outcome.status == "stopped", outcome
    dist.barrier()  # no rank is left behind in a collective of the run


def test_all_ranks_leave_a_run_that_was_overtaken(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(checkpoint={"every_steps": 1})
    run_ranks(2, tmp_path / "rendezvous", overtaken, config.model_dump_json(), str(tmp_path / "store"))
    assert open_store(tmp_path / "store").runs.collect()["status"].to_list() == ["running"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_fails_the_run_with_its_own_traceback(
    tmp_path: Path, run_config: RunConfig, rank: int
) -> None:
    train_on(2, tmp_path, run_config, tmp_path / "store", breaks_on=rank)
    (run,) = open_store(tmp_path / "store").runs.collect().to_dicts()
    assert run["status"] == "failed"
    assert run["error"].strip().endswith("RuntimeError: this rank broke")
