"""Two gloo workers under DDP against one process: the same rows bit for bit, and errors that name the culprit."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from analysis.tables import open_store
from muon_core import distributed
from muon_core import train as train_module
from muon_core.config import RunConfig
from muon_core.storage import Folder
from muon_core.train import train

pytestmark = pytest.mark.slow
TIMING = ("run_id", "attempt", "step_time_s", "tokens_per_s", "elapsed_s")


def worker(rank: int, world_size: int, rendezvous: str, config: str, store: str, breaks_on: int) -> None:
    """One rank: trains `config`; rank `breaks_on` raises in its first evaluation after a step."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    if rank == breaks_on:
        real, calls = train_module.evaluate, []

        def breaking(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("this rank broke")
            return real(*args, **kwargs)

        train_module.evaluate = breaking
    try:
        train(RunConfig.model_validate_json(config), Folder(store))
    except RuntimeError as error:
        assert distributed.lost_peer(error) == (rank != breaks_on), error  # noqa: PT017
        os._exit(0)  # as a worker group does: no more collectives after an error
    finally:
        if dist.is_initialized() and breaks_on < 0:
            dist.destroy_process_group()


def train_on(world_size: int, tmp_path: Path, config: RunConfig, store: Path, breaks_on: int = -1) -> None:
    rendezvous = str(tmp_path / f"rendezvous-{store.name}")
    arguments = (world_size, rendezvous, config.model_dump_json(), str(store), breaks_on)
    mp.start_processes(worker, arguments, nprocs=world_size, start_method="spawn")


def assert_same_rows(a: Path, b: Path) -> None:
    for table in ("train", "val", "layers"):
        left, right = (
            open_store(store).table(table).drop(TIMING, strict=False).sort("seq").collect() for store in (a, b)
        )
        assert left.height > 0
        assert left.equals(right), table


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


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_fails_the_run_with_its_own_traceback(
    tmp_path: Path, run_config: RunConfig, rank: int
) -> None:
    train_on(2, tmp_path, run_config, tmp_path / "store", breaks_on=rank)
    (run,) = open_store(tmp_path / "store").runs.collect().to_dicts()
    assert run["status"] == "failed"
    assert run["error"].strip().endswith("RuntimeError: this rank broke")
