"""Parameter names: what they address, and the values a run refuses."""

from pathlib import Path
from typing import Any

import pytest

from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.presets import PRESETS
from muon_core.config.run import DataConfig, RunConfig
from muon_core.data.corpus import corpus_sha256
from search_spaces.errors import SpecError
from search_spaces.parameters import locate_corpus, parameters, parse_assignment, resolve
from search_spaces.run_file import resolve_run


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("alpha", ("optimizer", "alpha")),
        ("optimizer.alpha", ("optimizer", "alpha")),
        ("steps", ("steps",)),
        ("seed", ("seed",)),
        ("model.num_layers", ("model", "num_layers")),
        ("data.seq_len", ("data", "seq_len")),
        ("seeds.noise", ("seeds", "noise")),
        ("tracking.eval_every", ("tracking", "eval_every")),
    ],
)
def test_resolve_finds_the_field(name: str, path: tuple[str, ...]) -> None:
    assert resolve(name, "orthonoise") == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "alpha",
            "'alpha' is no parameter of muon, only of orthonoise, isotropic, damped; remove it or change the optimizer",
        ),
        ("moment", "unknown parameter 'moment'. Did you mean 'momentum'?"),
        ("num_layers", "unknown parameter 'num_layers'. Did you mean 'model.num_layers'?"),
        ("model", "'model' is a group of parameters; set them one by one, such as 'model.d_model'"),
        ("optimizer", "'optimizer' is a group of parameters; set them one by one, such as 'optimizer.embedding_lr'"),
        ("data.corpus_sha256", "unknown parameter 'data.corpus_sha256'. Did you mean 'data.corpus'?"),
    ],
)
def test_resolve_says_why_a_name_has_no_field(name: str, message: str) -> None:
    with pytest.raises(ValueError, match="parameter") as caught:
        resolve(name, "muon")
    assert str(caught.value) == message


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_plain_names_never_mean_two_fields(optimizer: str) -> None:
    assert not set(OPTIMIZERS[optimizer].model_fields) & set(RunConfig.model_fields)
    paths = list(parameters(optimizer).values())
    own = [path for path in paths if path[0] == "optimizer"]
    assert len(own) == 2 * len(set(own))  # plain and dotted
    assert len(paths) - len(own) == len({*paths} - {*own})


def test_presets_leave_the_optimizer_to_the_block() -> None:
    assert not [name for name, preset in PRESETS.items() if "optimizer" in preset]


@pytest.mark.parametrize(
    ("text", "assignment"),
    [
        ("alpha=1e-3", ("alpha", 0.001)),
        ("nesterov=false", ("nesterov", False)),
        ("anneal=off", ("anneal", "off")),
        ("adam_betas=[0.9, 0.99]", ("adam_betas", [0.9, 0.99])),
        ("seeds.noise=", ("seeds.noise", None)),
        ("data.corpus=a=b.txt", ("data.corpus", "a=b.txt")),
    ],
)
def test_parse_assignment_reads_as_a_sweep_file_would(text: str, assignment: tuple[str, object]) -> None:
    assert parse_assignment(text) == assignment


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha", "--set 'alpha': write key=value, such as alpha=1e-3"),
        ("=3", "--set '=3': write key=value, such as alpha=1e-3"),
        ("x=*y", "--set 'x=*y': anchors and aliases (&name, *name) are not read; write the value out"),
    ],
)
def test_parse_assignment_refuses_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_assignment(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            {"stepz": 1, "lrr": 2},
            "unknown parameter 'stepz'. Did you mean 'steps'?\nunknown parameter 'lrr'. Did you mean 'lr'?",
        ),
        ({"steps": "200"}, "steps must be a whole number, got '200'; remove the quotes: 200"),
        ({"steps": 200.0}, "steps must be a whole number, got 200.0; write 200"),
        ({"steps": 0, "lr": -1}, "lr must be greater than 0, got -1\nsteps must be greater than 0, got 0"),
        ({"nesterov": "off"}, "nesterov must be true or false, got 'off'; write false"),
        ({"lr": float("nan")}, "lr must be a finite number, got .nan"),
        (
            {"adjust": "orignal"},
            "adjust must be 'original', 'match_rms_adamw' or 'none', got 'orignal'. Did you mean 'original'?",
        ),
        ({"adam_betas": [0.9]}, "adam_betas has too few values, got [0.9]"),
        ({"adam_betas": [0.9, 1.5]}, "adam_betas[1] must be less than 1, got 1.5"),
        ({"data.seq_len": {"a": 1}}, "data.seq_len must be a whole number, got {a: 1}"),
        ({"micro_batches": 3}, "batch_size 16 must be a multiple of micro_batches 3"),
        ({"model.num_kv_heads": 3}, "num_kv_heads 3 must divide num_heads 4"),
    ],
)
def test_a_run_refuses_values_in_plain_words(assignments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_run("tiny", None, assignments)
    assert str(caught.value) == message


def test_locate_corpus_makes_content_the_identity(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text("The same words in two places.\n" * 50)
    here, there = (
        locate_corpus(DataConfig(corpus="../" + folder + "/text.txt"), tmp_path / "here")
        for folder in ("here", "there")
    )
    assert here.corpus == str(tmp_path / "here" / "text.txt")
    assert here.corpus_sha256 == corpus_sha256(here.corpus)
    assert RunConfig(data=here).run_id == RunConfig(data=there).run_id
    assert RunConfig(data=here).run_id != RunConfig().run_id


def test_locate_corpus_leaves_the_embedded_one_alone(tmp_path: Path) -> None:
    assert locate_corpus(DataConfig(), tmp_path) == DataConfig()
