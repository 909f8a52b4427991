"""Shares of a model on 2 and 4 gloo workers: the numbers of one process, its rows and its checkpoints."""

import importlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs
import pytest
import torch.distributed as dist
from support.live_bytes import live_bytes
from support.ranks import run_ranks, start_process
from support.same_rows import assert_same_rows, rows

from analysis.store import open_store
from muon_core import compiled, distributed
from muon_core import train as train_module
from muon_core.config.run import RunConfig
from muon_core.config.sizes import num_hidden, num_parameters
from muon_core.store.folder import Folder
from muon_core.tables import SERIES
from muon_core.train import train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*goes on in another environment")]
COUNTED_STEP = 7
SLACK = 16_384  # bytes of norms, tables and losses, a twelfth of the weights
VARIANTS: dict[str, dict[str, Any]] = {
    "noise": {"optimizer": {"name": "orthonoise", "ns_dtype": "fp32", "attention_blocks": "merge_qkvo"}},
    "written_noise": {"optimizer": {"name": "isotropic", "mode": "as_seed", "alpha": 1e-3, "rank_threshold": 1.0}},
    "rows": {"optimizer": {"name": "normuon", "ns_dtype": "fp32"}},
    "soap": {"optimizer": {"name": "soap"}},
    "bf16": {"optimizer": {"name": "lion"}, "precision": "bf16", "activation_checkpointing": True},
    "clipped": {"optimizer": {"name": "adamw", "clipping": "all", "max_grad_norm": 0.1}},
    "compiled": {"compile": True, "activation_checkpointing": True},
}
"""What steps matrices as blocks or by itself, what draws noise and stores it, casts, norms over ranks, and graphs."""
ROUNDED = ("clipped", "compiled")
"""Those which add up in another order than one process."""


@dataclass(frozen=True)
class Leg:
    """A part of a run, in `store`, up to step `stop_at` or its end."""

    store: str
    parallel: str = "fsdp"
    stop_at: int = -1
    variant: str = ""

    def train(self, config: RunConfig, folder: Path) -> None:
        changed = VARIANTS[self.variant] | {"steps": 6, "micro_batches": 2} if self.variant else {}
        run = config.replace(parallel=self.parallel, **changed)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(compiled, "BACKEND", "aot_eager")  # all of the compiler but its code for this machine
            outcome = train(run, Folder(folder / self.store), report=lambda progress: progress.step != self.stop_at)
        assert outcome.status == ("done" if self.stop_at < 0 else "stopped"), outcome


TWO = [
    Leg("two"), Leg("cut", stop_at=10), Leg("cut"),
    Leg("from_one", stop_at=10), Leg("from_ddp", "ddp", stop_at=5),
    *(Leg(name, variant=name) for name in VARIANTS),
]  # fmt: skip
FOUR = [Leg("four"), Leg("from_one", stop_at=15), Leg("from_ddp", stop_at=10), Leg("from_ddp", "ddp", stop_at=15)]


def on_two_and_four(config: str, folder: Path) -> None:
    """Train all legs that take several ranks."""
    importlib.import_module("torch._dynamo")  # FSDP does: once for all of them
    for legs, size in ((TWO, 2), (FOUR, 4)):
        run_ranks(size, folder / f"rendezvous-{size}", on_ranks, legs, config, folder, start_method="fork")


def on_ranks(rank: int, legs: list[Leg], config: str, folder: Path) -> None:
    """One rank, which trains all legs and counts its bytes in the first of them."""
    run = RunConfig.model_validate_json(config)
    with counted(folder / f"bytes-{dist.get_world_size()}-{rank}.json"):
        legs[0].train(run, folder)
    for leg in legs[1:]:
        leg.train(run, folder)


@contextmanager
def counted(file: Path) -> Iterator[None]:
    """Write into `file` how many bytes of floats this process has with the gradients of one step, and after it.

    No tracked step, and not the one before, whose update is kept for the next: these hold a share of the matrices more.
    """
    begin, counts, looks = live_bytes(), {}, Counter[str]()
    update, check_whole = train_module._update, distributed.check_whole

    def count(what: str) -> None:
        looks[what] += 1
        if looks[what] == COUNTED_STEP:
            counts[what] = live_bytes() - begin

    def updating(*args: Any, **kwargs: Any) -> None:
        count("with_gradients")
        update(*args, **kwargs)

    def checking(workers: int) -> None:
        count("after")
        check_whole(workers)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_module, "_update", updating)
        patched.setattr(distributed, "check_whole", checking)
        yield
    file.write_text(json.dumps(counts))


@pytest.fixture(scope="module")
def config(small: dict[str, Any]) -> RunConfig:
    """Sizes that do not divide by 4, and steps with rows of all tables among others."""
    sizes = small["model"] | {"num_layers": 4, "d_ff": 66, "vocab_size": 514}
    return RunConfig.model_validate(
        small | {"model": sizes, "steps": 20, "micro_batches": 4, "checkpoint": {"every_steps": 5},
                 "optimizer": {"name": "muon", "ns_dtype": "fp32"}, "tracking": {"eval_every": 5, "track_every": 5}}
    )  # fmt: skip


@pytest.fixture(scope="module")
def stores(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all stores, whose runs one process, two and four have trained, some of them in turn."""
    folder = tmp_path_factory.mktemp("fsdp")
    for leg in (Leg("one"), Leg("from_one", stop_at=5)):
        leg.train(config, folder)
    for name in VARIANTS:
        Leg(f"{name}_in_one", variant=name).train(config, folder)
    process = start_process(on_two_and_four, config.model_dump_json(), folder)
    process.join()
    assert process.exitcode == 0
    for store in ("from_one", "from_ddp"):
        Leg(store).train(config, folder)
    return folder


def losses(store: Path) -> list[float]:
    frame = open_store(store).train.sort("step").collect()
    assert frame["step"].to_list() == list(range(1, frame.height + 1))
    return frame["train_loss"].to_list()


@pytest.mark.parametrize("store", ["two", "four", "from_one", "from_ddp"])
def test_losses_of_twenty_steps_are_those_of_one_process(stores: Path, store: str) -> None:
    """Also where the run moves on its way: 1 -> fsdp 2 -> fsdp 4 -> 1, and ddp 2 -> fsdp 4 -> ddp 4 -> 1."""
    expected = losses(stores / "one")
    assert len(expected) == 20
    assert expected[-1] < expected[0] - 0.3
    assert losses(stores / store) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("store", ["two", "four"])
def test_rows_of_all_tables_are_those_of_one_process(stores: Path, store: str, config: RunConfig) -> None:
    """To rounding: their sums of micro-batches have another order."""
    for table in SERIES:
        one, other = (rows(stores / name, table, [config.run_id]) for name in ("one", store))
        assert one.height > 0
        floats, lists = cs.float(), cs.by_dtype(pl.List(pl.Float32), pl.List(pl.Float64))
        assert one.select(~floats - lists).equals(other.select(~floats - lists)), table
        assert one.select(floats.is_null()).equals(other.select(floats.is_null())), table
        for column in one.select(floats).fill_null(0.0):
            found = other[column.name].fill_null(0.0).to_list()
            assert found == pytest.approx(column.to_list(), rel=1e-3, abs=1e-3), (table, column.name)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ROUNDED])
def test_other_optimizers_have_the_bits_of_one_process(stores: Path, variant: str) -> None:
    """Two workers and micro-batches add the same two gradients; only the norm of all of them has another order."""
    for table in SERIES:
        run_ids = open_store(stores / variant).runs.collect()["run_id"].to_list()
        one, two = (rows(stores / name, table, run_ids) for name in (f"{variant}_in_one", variant))
        assert one.height > 0
        if table == "train":
            assert two["grad_norm"].to_list() == pytest.approx(one["grad_norm"].to_list(), rel=1e-6)
            one, two = one.drop("grad_norm"), two.drop("grad_norm")
        assert one.equals(two), table


@pytest.mark.parametrize("variant", ROUNDED)
def test_gradients_are_clipped_by_the_norm_over_all_ranks_and_parts_are_compiled(stores: Path, variant: str) -> None:
    assert losses(stores / variant) == pytest.approx(losses(stores / f"{variant}_in_one"), abs=1e-5)


def test_a_run_that_is_continued_with_shares_has_the_same_bits(stores: Path, config: RunConfig) -> None:
    assert_same_rows(stores / "two", stores / "cut", [config.run_id])


@pytest.mark.parametrize("workers", [2, 4])
def test_a_rank_holds_its_share_of_weights_gradients_and_state(stores: Path, config: RunConfig, workers: int) -> None:
    total, hidden = num_parameters(config.model), num_hidden(config.model)
    kept = 4 * total + 4 * hidden + 8 * (total - hidden)  # weights, a momentum, and two averages of AdamW
    for rank in range(workers):
        found = json.loads((stores / f"bytes-{workers}-{rank}.json").read_text())
        assert kept / workers - SLACK < found["after"] < kept / workers + SLACK
        assert found["with_gradients"] < (kept + 4 * total) / workers + SLACK
