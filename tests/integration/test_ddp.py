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


def worker(rank: int, rendezvous: str, config: str, store: str, breaks_on: int) -> None:
    """One rank: trains `config`; rank `breaks_on` raises in its first evaluation after a step."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
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


def train_on_two(tmp_path: Path, config: RunConfig, store: Path, breaks_on: int = -1) -> None:
    rendezvous = str(tmp_path / f"rendezvous-{store.name}")
    mp.start_processes(
        worker, (rendezvous, config.model_dump_json(), str(store), breaks_on), nprocs=2, start_method="spawn"
    )


@pytest.mark.parametrize("name", ["muon", "orthonoise"])
def test_two_workers_equal_one_with_two_micro_batches(tmp_path: Path, run_config: RunConfig, name: str) -> None:
    config = run_config.replace(optimizer={"name": name})
    one, two = tmp_path / "one", tmp_path / "two"
    train(config.replace(micro_batches=2), Folder(one))
    train_on_two(tmp_path, config, two)
    assert open_store(two).runs.collect()["world_size"].to_list() == [2]
    for table in ("train", "val", "layers"):
        a, b = (open_store(store).table(table).drop(TIMING, strict=False).sort("seq").collect() for store in (one, two))
        assert a.height > 0
        assert a.equals(b), table


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_fails_the_run_with_its_own_traceback(
    tmp_path: Path, run_config: RunConfig, rank: int
) -> None:
    train_on_two(tmp_path, run_config, tmp_path / "store", breaks_on=rank)
    (run,) = open_store(tmp_path / "store").runs.collect().to_dicts()
    assert run["status"] == "failed"
    assert run["error"].strip().endswith("RuntimeError: this rank broke")
