"""Hugging Face models on 2 and 4 gloo workers, whole or in shares: the numbers of one process, and its checkpoints."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.hf_models import GPT2, LLAMA, planned, save, save_pretrained
from support.live_bytes import live_bytes
from support.ranks import run_ranks, start_process
from support.same_rows import assert_same_rows, rows
from support.saved_runs import weights
from torch import nn

from analysis.store import open_store
from muon_core.config.run import RunConfig
from muon_core.fsdp import Shares, _no_view
from muon_core.hf_model import HFModel
from muon_core.store.folder import Folder
from muon_core.tables import SERIES
from muon_core.train import train

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[hf]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*goes on in another environment")]
MODELS = ("llama", "gpt2", "qwen3")
"""An output layer of its own; tied weights, biases, fused matrices and pretrained; norms within attention, in bf16."""


@dataclass(frozen=True)
class Leg:
    """A part of a run of a model, in `store`, up to step `stop_at` or its end."""

    model: str
    store: str
    parallel: str = "fsdp"
    stop_at: int = -1

    def train(self, configs: dict[str, RunConfig], folder: Path) -> None:
        run = configs[self.model].replace(parallel=self.parallel)
        outcome = train(run, Folder(folder / self.store), report=lambda progress: progress.step != self.stop_at)
        assert outcome.status == ("done" if self.stop_at < 0 else "stopped"), outcome


TWO = [
    *(Leg(name, "two") for name in MODELS), Leg("tree", "two", "ddp"), Leg("gpt2", "moves", stop_at=10),
    *(Leg("llama", "moves", parallel, step) for step, parallel in ((5, "ddp"), (10, "fsdp"), (15, "ddp"))),
]  # fmt: skip
FOUR = [Leg("gpt2", "moves", stop_at=15)]


def on_two_and_four(configs: dict[str, RunConfig], folder: Path) -> None:
    """Train all legs that take several ranks."""
    for module in ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"):
        importlib.import_module(module)  # once for all of them, as what transformers imports for a model
    for config in configs.values():
        HFModel(config.model, 0)
    for legs, size in ((TWO, 2), (FOUR, 4)):
        run_ranks(size, folder / f"rendezvous-{size}", on_ranks, legs, configs, folder, start_method="fork")


def on_ranks(rank: int, legs: list[Leg], configs: dict[str, RunConfig], folder: Path) -> None:
    if dist.get_world_size() == 2:
        begin = live_bytes()
        model = HFModel(configs["qwen3"].model, 0)
        whole = live_bytes() - begin
        shares = Shares(model, torch.device("cpu"), "bf16")
        (folder / f"bytes-{rank}.json").write_text(json.dumps([whole, live_bytes() - begin]))
        del shares, model
    for leg in legs:
        leg.train(configs, folder)


@pytest.fixture(scope="module")
def configs(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    root = tmp_path_factory.mktemp("models")
    llama = LLAMA | {"intermediate_size": 49, "vocab_size": 513}
    of_all = {
        "steps": 20, "micro_batches": 2, "checkpoint": {"every_steps": 5},
        "optimizer": {"name": "muon", "ns_dtype": "fp32"}, "tracking": {"eval_every": 10, "track_every": 10},
    }  # fmt: skip
    base, small = small, small | of_all
    gpt2 = save_pretrained(root / "gpt2", "gpt2", GPT2 | {"n_layer": 4})
    return {
        "llama": planned(small, save(root / "llama", "llama", llama | {"tie_word_embeddings": False})),
        "gpt2": planned(small, gpt2, model={"weights": "pretrained"}),
        "qwen3": planned(
            small, save(root / "qwen3", "qwen3", LLAMA | {"head_dim": 8}),
            steps=4, tracking={"eval_every": 2, "track_every": 2}, precision="bf16", activation_checkpointing=True,
        ),
        "tree": planned(base, gpt2, reduction="tree", micro_batches=2),
    }  # fmt: skip


@pytest.fixture(scope="module")
def stores(configs: dict[str, RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the stores whose runs one process, two and four have trained, some of them in turn."""
    folder = tmp_path_factory.mktemp("hf_fsdp")
    for leg in (*(Leg(name, "one") for name in MODELS), Leg("tree", "one", "ddp"), Leg("gpt2", "moves", stop_at=5)):
        leg.train(configs, folder)
    process = start_process(on_two_and_four, configs, folder)
    process.join()
    assert process.exitcode == 0
    for name in ("gpt2", "llama"):
        Leg(name, "moves").train(configs, folder)
    return folder


def losses(store: Path, run: RunConfig) -> list[float]:
    frame = open_store(store).train.filter(run_id=run.run_id).sort("step").collect()
    assert frame["step"].to_list() == list(range(1, run.steps + 1))
    return frame["train_loss"].to_list()


@pytest.mark.parametrize("store", ["two", "moves"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_losses_of_twenty_steps_are_those_of_one_process(
    stores: Path, configs: dict[str, RunConfig], name: str, store: str
) -> None:
    """Also where the run moves on its way: 1 -> fsdp 2 -> fsdp 4 -> 1, and ddp 2 -> fsdp 2 -> ddp 2 -> 1."""
    expected = losses(stores / "one", configs[name])
    assert expected[-1] < expected[0] - 0.3
    assert losses(stores / store, configs[name]) == pytest.approx(expected, abs=1e-5)


def test_under_bf16_with_checkpoints_rows_have_the_bits_of_one_process(
    stores: Path, configs: dict[str, RunConfig]
) -> None:
    """Two workers and micro-batches add the same two gradients, and norms within attention are read in fp32 by both."""
    run_ids = [configs["qwen3"].run_id]
    for table in SERIES:
        one, two = (rows(stores / name, table, run_ids).drop("grad_norm", strict=False) for name in ("one", "two"))
        assert one.height > 0
        assert one.equals(two), table  # but the norm of all gradients, whose sum has another order


def test_under_tree_two_workers_have_the_bits_of_one(stores: Path, configs: dict[str, RunConfig]) -> None:
    assert_same_rows(stores / "one", stores / "two", [configs["tree"].run_id])


def test_what_is_saved_has_the_names_of_one_process(stores: Path, configs: dict[str, RunConfig]) -> None:
    """Also those of a weight that has two."""
    one, two = (weights(Folder(stores / name), configs["gpt2"]) for name in ("one", "two"))
    assert {"inner.lm_head.weight", "inner.transformer.wte.weight"} <= one.keys()
    assert {name: weight.shape for name, weight in one.items()} == {name: weight.shape for name, weight in two.items()}
    assert torch.equal(two["inner.lm_head.weight"], two["inner.transformer.wte.weight"])


def test_what_a_part_returns_is_no_view() -> None:
    """As GPT-2's linear layers return: torch warns that what adds to it in place would lose FSDP's hook."""
    base = torch.ones(2, 3, requires_grad=True).exp()
    view, (inside, other) = _no_view(nn.Identity(), (), base.view(3, 2)), _no_view(nn.Identity(), (), (base[0], None))
    assert not view._is_view()
    assert not inside._is_view()
    assert torch.equal(view, base.view(3, 2))
    assert other is None
    assert _no_view(nn.Identity(), (), base) is base


def test_a_rank_holds_its_share(stores: Path) -> None:
    for rank in range(2):
        whole, held = json.loads((stores / f"bytes-{rank}.json").read_text())
        assert whole / 2 <= held < 0.55 * whole
