"""Optimizers by reference in sweep files and runs' files: their parameters, what is refused, and what a run is then."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.lion_like import SOURCE

from muon_core.config.reference import ReferenceConfig
from muon_core.config.run import RunConfig
from muon_core.recorder import start_record
from search_spaces.doubts import doubts
from search_spaces.errors import SpecError
from search_spaces.expand import PlannedRun, expand
from search_spaces.run_file import resolve_run
from search_spaces.spec import load_spec

SWEEP = """\
version: 1
name: rivals
seeds: [1, 2]
blocks:
  - {{name: base, role: baseline, optimizer: muon}}
  - {{name: mine, optimizer: "{optimizer}", {rest}}}
"""
LION, CANDIDATE = "./lion_like.py:LionLike", "role: candidate"
OTHERS = """
import torch
from torch.optim import SGD


class Needs(torch.optim.Optimizer):
    def __init__(self, params, lr, hook=print, seed=0, *, warm: "int | None" = None, scale=1, names=("a", "b")):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        raise RuntimeError("there is no step")


class Clashes(torch.optim.Optimizer):
    def __init__(self, params, clipping=1.0):
        super().__init__(params, {})


class Unwritable(torch.optim.Optimizer):
    def __init__(self, params, rule: torch.Tensor):
        super().__init__(params, {})


class muon(torch.optim.Optimizer):
    pass


class Plain:
    pass


def function(params):
    return None
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lion_like.py").write_text(SOURCE)
    (tmp_path / "others.py").write_text(OTHERS)
    (tmp_path / "broken.py").write_text("import torch\nimport nowhere_to_be_found\n")
    (tmp_path / "unfinished.py").write_text("import torch\nclass Lion(\n")
    (tmp_path / "two.py").write_text("import torch\nfrom helper import beta\n")
    (tmp_path / "relative.py").write_text("from .helper import beta\n")
    (tmp_path / "helper.py").write_text("beta = 0.9\n")
    return tmp_path


def runs(folder: Path, optimizer: str = LION, rest: str = CANDIDATE) -> list[PlannedRun]:
    (folder / "sweep.yaml").write_text(SWEEP.format(optimizer=optimizer, rest=rest))
    return expand(load_spec(folder / "sweep.yaml"))


def config(folder: Path, optimizer: str = LION, rest: str = CANDIDATE) -> RunConfig:
    return runs(folder, optimizer, rest)[1].config


def refusal(folder: Path, optimizer: str, rest: str = CANDIDATE) -> str:
    with pytest.raises(SpecError) as caught:
        runs(folder, optimizer, rest)
    (line,) = caught.value.lines
    return line.removeprefix(f"{folder}/").replace(f"{folder}/", "")


def test_parameters_are_those_of_init_with_their_defaults(folder: Path) -> None:
    optimizer = config(folder).optimizer
    assert isinstance(optimizer, ReferenceConfig)
    assert optimizer.parameters == {"lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.0}
    assert (optimizer.name, optimizer.distribution, optimizer.takes) == ("LionLike", None, "hidden")
    given = config(folder, rest="set: {lr: 1, betas: [0.95, 0.98], embedding_lr: 0.03, clipping: adamw_only}").optimizer
    assert isinstance(given, ReferenceConfig)
    assert given.parameters == {"lr": 1.0, "betas": [0.95, 0.98], "weight_decay": 0.0}
    assert (given.embedding_lr, given.clipping) == (0.03, "adamw_only")


def test_parameters_may_be_axes_drawn_and_constants(folder: Path) -> None:
    rates = [
        run.config.optimizer for run in runs(folder, rest="grid: {lr: [0.01, 0.02], optimizer.weight_decay: [0, 0.1]}")
    ]
    assert len(rates) == 2 * 5
    drawn = {run.config.arm_label for run in runs(folder, rest='sample: {n: 3, lr: "loguniform(1e-3, 1e-1)"}')}
    assert len(drawn) == 1 + 3
    (folder / "sweep.yaml").write_text(
        SWEEP.format(optimizer=LION, rest="x: 1").replace(", x: 1", "") + "constants: {betas: [0.5, 0.6]}\n"
    )
    mine = expand(load_spec(folder / "sweep.yaml"))[1].config.optimizer
    assert isinstance(mine, ReferenceConfig)
    assert mine.parameters["betas"] == [0.5, 0.6]


def test_types_follow_from_annotations_and_defaults(folder: Path) -> None:
    """What no file can give keeps its default; `seed` alone is the run's, as everywhere."""
    made = config(folder, "./others.py:Needs", "set: {lr: 0.5, warm: 3, scale: 2.5, names: [b, c], optimizer.seed: 7}")
    assert isinstance(made.optimizer, ReferenceConfig)
    assert made.optimizer.parameters == {"lr": 0.5, "seed": 7, "warm": 3, "scale": 2.5, "names": ["b", "c"]}
    assert made.seed == 1


@pytest.mark.parametrize(
    ("optimizer", "rest", "line"),
    [
        (LION, "set: {lr: fast}", "lr must be a number, got 'fast'"),
        (LION, "set: {beta: 0.9}", "unknown parameter 'beta'. Did you mean 'betas'?"),
        (LION, "set: {betas: [0.9]}", "betas has too few values, got [0.9]"),
        (
            LION,
            "set: {momentum: 0.9}",
            "'momentum' is no parameter of LionLike, only of sgd, muon, orthonoise, isotropic, "
            "damped, nolah, normuon, adamuon; remove it or change the optimizer",
        ),
        (
            LION,
            "set: {lr: -1}",
            "LionLike does not take its parameters: ValueError: lr -1.0 is negative",
        ),
        (
            LION,
            "set: {takes: all, embedding_lr: 0.1}",
            "embedding_lr 0.1 changes nothing under takes all: AdamW steps nothing; remove it",
        ),
        (
            "./others.py:Needs",
            "set: {scale: 2}",
            "'lr' must be set: the __init__ of the optimizer has no default for it",
        ),
        (
            "./lion_like.py:Lion",
            CANDIDATE,
            "optimizer lion_like.py has no class Lion; its optimizers: LionLike",
        ),
        (
            "./lion.py:Lion",
            CANDIDATE,
            "optimizer file lion.py cannot be read: No such file or directory; give its path as seen from the file "
            "that names it",
        ),
        (
            "./others.py:Plain",
            CANDIDATE,
            "optimizer Plain of others.py is a class, no torch.optim.Optimizer; derive it from that",
        ),
        (
            "./others.py:function",
            CANDIDATE,
            "optimizer function of others.py is function, no torch.optim.Optimizer; derive it from that",
        ),
        (
            "./others.py:SGD",
            CANDIDATE,
            "optimizer SGD of others.py is imported from torch.optim.sgd; refer to it there: torch.optim.sgd:SGD",
        ),
        (
            "./others.py:Clashes",
            CANDIDATE,
            "optimizer Clashes.__init__ has a parameter clipping, as the settings around "
            "every optimizer have; rename it in the class",
        ),
        (
            "./others.py:muon",
            CANDIDATE,
            "optimizer muon is the name of a built-in optimizer; rename the class",
        ),
        (
            "./broken.py:Lion",
            CANDIDATE,
            "optimizer broken.py cannot be imported: in line 2 ModuleNotFoundError: No module "
            "named 'nowhere_to_be_found'",
        ),
        (
            "./unfinished.py:Lion",
            CANDIDATE,
            "optimizer unfinished.py cannot be imported: in line 2 SyntaxError: '(' was never closed",
        ),
        (
            "./two.py:Lion",
            CANDIDATE,
            "optimizer two.py imports helper, which lies beside it, and travels alone to "
            "where runs train; put all of it into one file, or install it as a package",
        ),
        (
            "./relative.py:Lion",
            CANDIDATE,
            "optimizer relative.py imports .helper, which lies beside it, and travels alone "
            "to where runs train; put all of it into one file, or install it as a package",
        ),
        (
            "torch.optim:Lion",
            CANDIDATE,
            "optimizer torch.optim has no class Lion; its optimizers: ",
        ),
        (
            "torhc.optim:Muon",
            CANDIDATE,
            "optimizer torhc.optim cannot be imported: ModuleNotFoundError: No module named 'torhc'",
        ),
        (
            "./lion_like.py",
            CANDIDATE,
            "optimizer './lion_like.py' names no class; write ./lion_like.py:Class",
        ),
        (
            "a b:C",
            CANDIDATE,
            "optimizer 'a b:C' is no reference; write package.module:Class or ./file.py:Class",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(folder: Path, optimizer: str, rest: str, line: str) -> None:
    assert refusal(folder, optimizer, rest).startswith(f"sweep.yaml:6: blocks[mine]: {line}")


def test_a_parameter_that_must_be_given_and_cannot_be_is_named(folder: Path) -> None:
    said = refusal(folder, "./others.py:Unwritable")
    assert "Unwritable needs rule, a torch.Tensor, which no file can give; give it a default" in said


def test_a_file_beside_this_project_may_import_it(folder: Path) -> None:
    (folder / "muon_core").mkdir()
    (folder / "muon_core" / "__init__.py").touch()
    source = "from muon_core.optim.muon import Muon\n\n\nclass Mine(Muon):\n    pass\n"
    (folder / "mine.py").write_text(source)
    assert config(folder, "./mine.py:Mine", "set: {lr: 0.5}").arm_label == "Mine-lr0.5"


def test_identity_is_the_class_and_its_source_not_its_place(folder: Path) -> None:
    first = config(folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "renamed.py").write_text(SOURCE)
    moved = config(folder, "elsewhere/renamed.py:LionLike")
    assert first.run_id == moved.run_id
    assert first.run_id.startswith("LionLike-lr0.001-s1-")
    (folder / "lion_like.py").write_text(SOURCE.replace("sign()", "sign().mul(1.0)"))
    assert config(folder).run_id != first.run_id


def test_a_run_is_read_back_without_its_class(folder: Path) -> None:
    made = config(folder, rest="set: {lr: 0.01, takes: all}")
    (folder / "lion_like.py").unlink()
    read = RunConfig.model_validate_json(made.model_dump_json())
    assert read == made
    assert (read.run_id, read.arm_id) == (made.run_id, made.arm_id)
    assert type(read.optimizer) is ReferenceConfig


def test_a_class_of_a_package_is_known_by_its_release(folder: Path) -> None:
    optimizer = config(folder, "torch.optim:Adafactor").optimizer
    assert isinstance(optimizer, ReferenceConfig)
    assert optimizer.distribution is not None
    assert optimizer.distribution.startswith("torch 2.")
    assert "+" not in optimizer.distribution
    assert optimizer.parameters["eps"] == [None, 1e-3]


def test_one_run_takes_a_reference_by_flag_and_by_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    flagged = resolve_run("tiny", LION, {"lr": 0.01})
    (folder / "runs").mkdir()
    (folder / "runs" / "run.yaml").write_text("optimizer: ../lion_like.py:LionLike\nlr: 0.01\n")
    assert resolve_run("runs/run.yaml", None, {}).run_id == flagged.run_id
    (folder / "resolved.yaml").write_text(flagged.model_dump_json(indent=2))
    assert resolve_run("resolved.yaml", None, {}) == flagged
    (folder / "lion_like.py").write_text(f"{SOURCE}\n")
    with pytest.raises(SpecError, match=r"^resolved\.yaml:\d+: LionLike has changed since; remove this line"):
        resolve_run("resolved.yaml", None, {})
    with pytest.raises(SpecError, match=r"^--optimizer: lion_like\.py has no class Lion; its optimizers: LionLike$"):
        resolve_run("tiny", "./lion_like.py:Lion", {})


def test_labels_and_columns_hold_rates_alone(folder: Path) -> None:
    values: dict[str, Any] = json.loads(config(folder).model_dump_json())
    values["optimizer"] |= {"alpha": "a/b", "profile": "x y", "gate": 2, "embedding_lr": 0.5}
    assert RunConfig.model_validate(values).arm_label == "LionLike-lr0.001-elr0.5"
    values["optimizer"]["lr"] = "of its own"
    made = RunConfig.model_validate(values)
    assert made.arm_label == "LionLike-elr0.5"
    assert [start_record(made)[name] for name in ("lr", "embedding_lr", "alpha")] == [None, 0.5, None]
    assert doubts([made]) == []
