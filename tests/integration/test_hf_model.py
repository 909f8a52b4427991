"""Hugging Face models in the place of ours: tracked, stepped by every optimizer, resumed to the bit, or refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from support.hf_models import GPT2, LLAMA, planned, save, save_pretrained
from support.lion_like import lion_like
from support.saved_runs import train_until

from analysis import volatility
from analysis.store import Store, open_store
from muon_core import gpus
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.run import ModelConfig
from muon_core.config.sizes import flops_per_token, num_parameters, orthogonalizer_flops, parameters
from muon_core.hf_model import HFModel, projection
from muon_core.hf_plan import attention_matrices
from muon_core.optim.muon import Muon
from muon_core.optim.sharding import flops as flops_of_matrix
from muon_core.state import prepare
from muon_core.stopwatch import Stopwatch
from muon_core.store.folder import Folder
from muon_core.tables import projection_order
from muon_core.throughput import COLUMNS
from muon_core.train import train
from ray_jobs.cli.main import main
from search_spaces.expand import expand
from search_spaces.run_file import resolve_run
from search_spaces.spec import load_spec

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[hf]'")
pytestmark = pytest.mark.slow

PROJECTIONS = {"llama": ["q", "k", "v", "o", "up", "down", "gate"], "gpt2": ["o", "up", "down", "qkv"]}
TIMING = ("attempt", "run_id", "step_time_s", "tokens_per_s", "elapsed_s", *COLUMNS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a Llama without its weights, with an output layer of its own, and of a GPT-2 with them."""
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": save(root / "llama", "llama", LLAMA | {"tie_word_embeddings": False}),
        "gpt2": save_pretrained(root / "gpt2", "gpt2", GPT2),
    }


def rows(folder: Path, table: str) -> pl.DataFrame:
    return open_store(folder).table(table).drop(TIMING, strict=False).sort("seq").collect()


def sweep(folder: Path, constants: str) -> Path:
    """The file of a sweep of one run."""
    (folder / "sweep.yaml").write_text(
        f"version: 1\nname: which\nquestion: which\nseeds: [1]\nconstants: {{{constants}, data.seq_len: 32}}\n"
        "blocks: [{name: muon, role: baseline, optimizer: muon}]\n"
    )
    return folder / "sweep.yaml"


def muon(*arguments: str) -> int:
    """Exit code of the command."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_model_learns_and_fills_its_tables(
    tmp_path: Path, small: dict[str, Any], models: dict[str, Path], name: str
) -> None:
    config = planned(small, models[name], steps=24)
    assert train(config, Folder(tmp_path)).status == "done"
    val, layers = rows(tmp_path, "val"), rows(tmp_path, "layers")
    assert val["val_loss"][-1] < val["val_loss"][0] - 0.2
    keys = layers.filter(step=24).select("layer", "projection").rows()
    assert keys == [(layer, kind) for layer in (0, 1) for kind in PROJECTIONS[name]]
    begun = layers.filter(pl.col("step") > 0)
    assert begun.select("update_norm", "left_alignment", "spectral_norm").null_count().sum_horizontal().item() == 0
    if name == "gpt2":  # as outputs x inputs, whichever way its file has them
        assert layers.filter(projection="qkv").select("rows", "cols").unique().rows() == [(96, 32)]
    run = open_store(tmp_path).runs.collect().row(0, named=True)
    assert json.loads(run["environment_json"])["transformers"] == transformers.__version__
    assert run["mfu"] is None


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("name", PROJECTIONS)
def test_every_optimizer_steps_its_matrices(
    tmp_path: Path, small: dict[str, Any], models: dict[str, Path], name: str, optimizer: str
) -> None:
    tracking = {"eval_every": 2, "track_every": 2}
    config = planned(small, models[name], steps=2, optimizer={"name": optimizer}, tracking=tracking)
    assert train(config, Folder(tmp_path)).status == "done"
    last = rows(tmp_path, "layers").filter(step=2)
    assert (last.height, last["update_norm"].min() > 0) == (2 * len(PROJECTIONS[name]), True)  # type: ignore[operator]


def test_an_optimizer_by_reference_steps_its_matrices(
    tmp_path: Path, small: dict[str, Any], models: dict[str, Path]
) -> None:
    flat, tracking = {"warmup_steps": 0, "cooldown": 0.0}, {"eval_every": 2, "track_every": 2}
    config = planned(small, models["gpt2"], steps=2, optimizer=lion_like(), schedule=flat, tracking=tracking)
    assert train(config, Folder(tmp_path)).status == "done"
    last = rows(tmp_path, "layers").filter(step=2)
    assert last["update_norm"].to_list() == pytest.approx(
        [1e-3 * (rows * cols) ** 0.5 for rows, cols in last.select("rows", "cols").iter_rows()], rel=1e-3
    )


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_run_that_died_goes_on_to_the_same_bits(
    tmp_path: Path, small: dict[str, Any], models: dict[str, Path], name: str
) -> None:
    config = planned(
        small, models[name], model={"dropout": 0.1}, micro_batches=2, checkpoint={"every_steps": 2},
        optimizer={"name": "orthonoise", "alpha": 0.1}, activation_checkpointing=True,
    )  # fmt: skip
    train(config, Folder(tmp_path / "whole"))
    train_until(Folder(tmp_path / "cut"), config, 5)
    torch.manual_seed(123)
    assert train(config, Folder(tmp_path / "cut")).status == "done"
    for table in ("train", "val", "layers"):
        assert rows(tmp_path / "whole", table).equals(rows(tmp_path / "cut", table)), table
    plain = config.replace(activation_checkpointing=False)
    train(plain, Folder(tmp_path / "plain"))
    assert rows(tmp_path / "plain", "train").equals(rows(tmp_path / "whole", "train"))


def test_a_sweep_names_a_model_as_seen_from_its_file(tmp_path: Path, models: dict[str, Path]) -> None:
    shutil.copytree(models["llama"], tmp_path / "llama")
    runs = expand(load_spec(sweep(tmp_path, "model: 'hf:./llama'")))
    assert {run.config.model.hf for run in runs} == {str(tmp_path / "llama")}
    assert {run.config.model.num_layers for run in runs} == {2}


def test_pretrained_weights_compute_what_transformers_computes(small: dict[str, Any], models: dict[str, Path]) -> None:
    config = planned(small, models["gpt2"], model={"weights": "pretrained"})
    ours, theirs = HFModel(config.model, 0), transformers.AutoModelForCausalLM.from_pretrained(models["gpt2"])
    tokens = torch.randint(512, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = theirs.eval()(input_ids=tokens).logits
        assert torch.allclose(ours(tokens), logits, rtol=1e-4, atol=1e-5)
        expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        assert ours(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_seeds_decide_random_weights_and_nothing_else_does(small: dict[str, Any], models: dict[str, Path]) -> None:
    config = planned(small, models["llama"]).model
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = HFModel(config, 1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = HFModel(config, 1), HFModel(config, 2)
    for one, same, unlike in zip(first.matrices, again.matrices, other.matrices, strict=True):
        assert torch.equal(one.parameter, same.parameter)
        assert not torch.equal(one.parameter, unlike.parameter)


def test_the_content_is_the_identity(tmp_path: Path, small: dict[str, Any], models: dict[str, Path]) -> None:
    moved = shutil.copytree(models["gpt2"], tmp_path / "elsewhere")
    config = planned(small, models["gpt2"])
    assert planned(small, moved).run_id == config.run_id
    assert planned(small, save(tmp_path / "other", "gpt2", GPT2 | {"layer_norm_epsilon": 1e-6})).run_id != config.run_id
    trained = planned(small, moved, model={"weights": "pretrained"})
    (moved / "model.safetensors").write_bytes((moved / "model.safetensors").read_bytes()[:-4] + b"\0\0\0\1")
    assert planned(small, moved, model={"weights": "pretrained"}).run_id not in (trained.run_id, config.run_id)
    with pytest.raises(ValueError, match="no longer those that were planned; plan the run again"):
        HFModel(trained.model, 0)


def test_a_planned_run_is_a_file_that_gives_the_same_run(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--set", f"model=hf:{models['llama']}", "--set", "data.seq_len=32"]
    assert muon("pretrain", *given, "--dry-run") == 0
    said = capsys.readouterr()
    (tmp_path / "run.yaml").write_text(said.out)
    config = resolve_run(str(tmp_path / "run.yaml"), None, {})
    assert (config.run_id, config.model.vocab_size) == (said.err.strip(), 512)
    save(models["llama"].parent / "changed", "llama", LLAMA | {"rms_norm_eps": 1e-5})
    (tmp_path / "run.yaml").write_text(said.out.replace(f'{models["llama"]}"', f'{models["llama"].parent}/changed"'))
    assert muon("pretrain", str(tmp_path / "run.yaml"), "--dry-run") == 2
    assert "/changed has changed since; remove this line to train it as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["model.hf=./nowhere"],
            "nowhere: no config.json there; give a folder that save_pretrained wrote, or OWNER/NAME",
        ),
        (["model.hf={llama}", "model.d_model=128"], "d_model 128: {llama} has 32; leave it out, hf gives the shape"),
        (["model.hf={llama}", "data.seq_len=128"], "data.seq_len 128: {llama} has 64 positions; lower it"),
        (
            ["model.hf={gpt2}", "data.seq_len=64", "attention_blocks=per_head"],
            "attention_blocks per_head: model.hf {gpt2} has q, k and v in one matrix, inner.transformer.h.0.attn",
        ),
        (
            ["model.hf={llama}", "model.revision=main"],
            "model.revision main: {llama} is a folder, which has none; remove",
        ),
        (
            ["model.hf={llama}", "model.weights=pretrained"],
            "{llama}: no model.safetensors there; set model.weights: random",
        ),
        (["model.hf={gpt2}", "data.seq_len=64", "model.weights=pretrained"], "prepare it first: muon data prepare"),
        (["model.hf={llama}", "model.rope_base=500"], "rope_base 500 is not read with hf"),
        (["model.weights=pretrained"], "weights is of a Hugging Face model; name it with model.hf, or leave it out"),
    ],
)
def test_what_cannot_be_is_one_line(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str], assignments: list[str], message: str
) -> None:
    given = [part for text in assignments for part in ("--set", text.format(**models))]
    assert muon("pretrain", *given, "--dry-run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(**models) in line


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("mixtral", {"num_local_experts": 2}, "is no linear layer's"),
        ("bert", {}, "are both o; only plain decoders"),
        ("granite", {"logits_scaling": 4.0}, "its logits are not hidden states times output weights"),
        ("gemma2", {"head_dim": 8}, "its logits are not hidden states times output weights"),  # near 0 they are
        ("phi", {}, "its logits are not hidden states times output weights"),  # as long as the bias is 0 they are
    ],
)
def test_models_that_would_be_trained_wrongly_are_refused_when_they_are_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, more: dict[str, Any], message: str
) -> None:
    save(tmp_path / name, name, LLAMA | more)
    assert muon("sweep", "plan", str(sweep(tmp_path, f"model: 'hf:./{name}'"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sweep.yaml:5: constants: model.hf /" in line
    assert message in line


def test_a_model_that_looks_ahead_is_refused_when_it_is_built(tmp_path: Path, small: dict[str, Any]) -> None:
    config = planned(small, save(tmp_path, "llama", LLAMA | {"is_causal": False}))
    with pytest.raises(ValueError, match="its tokens see those behind them"):
        HFModel(config.model, 0)


def test_blocks_that_do_not_fit_are_told_where_they_are_asked_for(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "version: 1\nname: which\nquestion: which\nseeds: [1]\n"
        f"constants: {{model: 'hf:{models['gpt2']}', data.seq_len: 32}}\n"
        "blocks:\n  - {name: muon, role: baseline, optimizer: muon}\n"
        "  - {name: cut, optimizer: muon, grid: {attention_blocks: [per_head, merge_qkvo]}}\n"
    )
    assert muon("sweep", "plan", str(tmp_path / "sweep.yaml")) == 2
    one, other = capsys.readouterr().err.splitlines()
    assert "sweep.yaml:8: blocks[cut]: attention_blocks per_head: model.hf /" in one
    assert "sweep.yaml:8: blocks[cut]: attention_blocks merge_qkvo: model.hf /" in other


def test_shapes_that_are_no_heads_are_not_cut(small: dict[str, Any], models: dict[str, Path]) -> None:
    model = HFModel(planned(small, models["llama"]).model, 0, weightless=True)
    model.inner.config.head_dim = 6
    with pytest.raises(ValueError, match=r"has q \(32, 32\), k \(16, 32\), .*, which are no 4 heads of 6; use whole"):
        attention_matrices(model, "merge_qkvo")


def test_without_transformers_it_says_what_to_install(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, "llama", LLAMA | {"rms_norm_eps": 1e-3})
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers; install it with pip install 'muon-jobs\[hf\]'"):
        planned(small, folder)


def test_flops_are_those_of_its_weights_and_of_what_attention_sees(tmp_path: Path, small: dict[str, Any]) -> None:
    llama = planned(small, save(tmp_path / "llama", "llama", LLAMA | {"tie_word_embeddings": False}))
    attention, mlp, norms = 2 * (2 * 32 * 32 + 2 * 16 * 32), 2 * 3 * 48 * 32, 5 * 32
    assert parameters(llama.model) == {"embedding": 2 * 512 * 32, "attention": attention, "mlp": mlp, "norms": norms}
    assert flops_per_token(llama) == 6 * (512 * 32 + attention + mlp + norms) + 12 * 2 * 32 * 32
    assert num_parameters(llama.model) == sum(weight.numel() for weight in HFModel(llama.model, 0).parameters())
    gpt2 = planned(small, save(tmp_path / "gpt2", "gpt2", GPT2))
    weights = num_parameters(gpt2.model)
    assert flops_per_token(gpt2) == 6 * (weights - 64 * 32) + 12 * 2 * 32 * 32  # not those of positions
    iteration = [flops_of_matrix(*shape) for shape in ((96, 32), (32, 32), (128, 32), (32, 128))]
    assert orthogonalizer_flops(gpt2) == 2 * sum(iteration)
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    gemma = planned(small, save(tmp_path / "gemma", "gemma3_text", LLAMA | {"head_dim": 16} | kinds))
    assert flops_per_token(gemma) == 6 * num_parameters(gemma.model) + 12 * 64 * (8 + 32)  # 4 heads of 16


def test_presets_are_told_beside_a_model(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert muon("presets", "88m", f"hf:{models['gpt2']}", "--json") == 0
    ours, theirs = json.loads(capsys.readouterr().out)
    assert ours["parts"].keys() == theirs["parts"].keys()
    assert theirs["parameters"] == sum(weight.numel() for weight in gpt2_weights(models).values())
    assert (theirs["seq_len"], theirs["precision"]) == (64, "bf16")  # no more than it has positions
    assert 0 < theirs["hours"] < ours["hours"]
    assert muon("presets", "hf:./nowhere") == 2
    assert "nowhere: no config.json there" in capsys.readouterr().err


def gpt2_weights(models: dict[str, Path]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(models["gpt2"] / "model.safetensors")


def test_mfu_is_told_where_the_peak_is_known(
    tmp_path: Path, small: dict[str, Any], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gpus, "find", lambda device: gpus.Gpu("any", bf16=2e9, fp32=1e9, memory=2**30, node=None, source="made up")
    )
    config = planned(small, models["llama"], steps=2)
    train(config, Folder(tmp_path))
    (run,) = open_store(tmp_path).runs.collect().rows(named=True)
    assert run["mfu"] == pytest.approx(flops_per_token(config) * run["tokens_per_s"] / 1e9)


@pytest.mark.parametrize(("blocks", "count"), [("merge_qkvo", 1 + 3), ("per_head", 4 + 2 + 2 + 4 + 3)])
def test_attention_is_joined_or_cut_as_ours_is(tmp_path: Path, small: dict[str, Any], blocks: str, count: int) -> None:
    """With heads wider than the model over their number, as Qwen3 and Gemma have them."""
    folder = save(tmp_path / "qwen3", "qwen3", LLAMA | {"head_dim": 16})
    config = planned(small, folder, steps=2, optimizer={"name": "orthonoise", "attention_blocks": blocks})
    state = prepare(config, torch.device("cpu"), Stopwatch())
    optimizer = state.optimizers.hidden
    assert isinstance(optimizer, Muon)
    of_first = [block for block in optimizer.all_blocks if ".0." in block.name]
    assert len(of_first) == count
    if blocks == "merge_qkvo":
        assert {block.name.rpartition(".")[2]: block.shape for block in of_first}["qkvo"] == (64 + 32 + 32 + 64, 32)
    else:
        assert [block.shape for block in of_first if "q_proj" in block.name or "o_proj" in block.name] == (
            [(16, 32)] * 4 + [(32, 16)] * 4
        )
    assert train(config, Folder(tmp_path)).status == "done"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "phi3",
            LLAMA | {"pad_token_id": 0},
            r"has q, k and v in one matrix, inner\.model\.layers\.0\.self_attn",
        ),
        ("deepseek_v3", LLAMA, "has no matrix called k among o, up, down, gate, self_attn_kv_a_proj"),
        ("phi3", LLAMA, "cannot be built: Padding_idx must be within num_embeddings"),
    ],
)
def test_attention_that_cannot_be_joined_or_cut_is_refused(
    tmp_path: Path, small: dict[str, Any], name: str, fields: dict[str, Any], message: str
) -> None:
    folder = save(tmp_path, name, fields)
    with pytest.raises(ValueError, match=message):
        planned(small, folder, optimizer={"name": "muon", "attention_blocks": "per_head"})


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("self_attn.q_proj", "q"),
        ("attn.c_attn", "qkv"),
        ("attention.query_key_value", "qkv"),
        ("attn.c_proj", "o"),
        ("mlp.c_proj", "down"),
        ("attention.dense", "o"),
        ("mlp.dense_4h_to_h", "down"),
        ("mlp.gate_up_proj", "gate_up"),
        ("mlp.gate_proj", "gate"),
        ("mlp.router", "mlp_router"),
    ],
)
def test_layers_are_called_by_what_they_do(inside: str, expected: str) -> None:
    assert projection(inside) == expected


def test_names_of_other_models_sort_behind_ours() -> None:
    assert sorted(["mlp_router", "gate", "down", "q", "a"], key=projection_order) == [
        "q",
        "down",
        "gate",
        "a",
        "mlp_router",
    ]


def test_the_shape_of_ours_has_no_fields_of_theirs() -> None:
    assert set(ModelConfig().model_dump()) == {
        "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "vocab_size", "rope_base", "dropout",
    }  # fmt: skip


def test_the_spread_of_seeds_has_every_projection(
    tmp_path: Path, small: dict[str, Any], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of names that are known and, with none of theirs known, of names that are not."""
    for seed in (1, 2):
        config = planned(small, models["llama"], steps=2, seed=seed)
        train(config, Folder(tmp_path))
    view: Store = open_store(tmp_path)
    members = view.runs.select("run_id", "status", arm=pl.lit("muon"), optimizer=pl.lit("muon")).collect()
    found = volatility.volatility(view, members, "effective_rank").cells
    assert found["projection"].unique(maintain_order=True).cast(pl.String).to_list() == PROJECTIONS["llama"]
    monkeypatch.setattr(volatility, "KNOWN_PROJECTIONS", ("q", "k", "v", "o"))
    unknown = volatility.volatility(view, members, "effective_rank").cells
    assert unknown.with_columns(pl.col("projection").cast(pl.String)).equals(
        found.with_columns(pl.col("projection").cast(pl.String))
    )
