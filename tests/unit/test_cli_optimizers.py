"""`muon optimizers`: the list, and the check of one, built in or by reference."""

import json
from pathlib import Path

import pytest

from muon_core.config.optimizers import OPTIMIZERS
from ray_jobs.cli.main import main
from ray_jobs.cli.optimizers import about

MINE = '''
import torch

class Careless(torch.optim.Optimizer):
    """Halves gradients for itself, and remembers a mean outside of its state."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.means = {}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    mean = self.means.setdefault(param, torch.zeros_like(param))
                    mean.lerp_(param.grad.mul_(0.5), 0.5)
                    param.sub_(mean, alpha=group["lr"])
'''
CHECKS = ["falls on a quadratic", "repeats bitwise", "state dict round trip", "resume identical", "leaves grad alone",
          "None gradients", "2 gloo ranks = 1", "bf16 parameters"]  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["optimizers", *arguments])
    assert isinstance(stop.value.code, int)
    return (stop.value.code, *capsys.readouterr())


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys)
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 1 + len(OPTIMIZERS))
    assert [line.split()[0] for line in lines[1:]] == list(OPTIMIZERS)
    assert lines[1:] == [line.rstrip() for line in lines[1:] if "…" not in line]  # whole in a pipe
    assert [line.split(maxsplit=2)[2] for line in lines[1:]] == [about(config) for config in OPTIMIZERS.values()]
    assert lines[1].endswith("AdamW on the hidden matrices too")
    assert err == "next: muon optimizers check ./my_opt.py:MyOptimizer\n"
    code, out, _ = call(capsys, "--json")
    listed = json.loads(out)
    assert [(one["name"], one["about"]) for one in listed] == [(name, about(c)) for name, c in OPTIMIZERS.items()]
    assert listed[0]["lr"] == OPTIMIZERS["adamw"].model_fields["lr"].default


def test_a_terminal_has_lines_of_its_width(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = call(capsys)[1].splitlines()
    assert max(map(len, lines)) == 80
    assert any(line.endswith("…") for line in lines)


def test_what_is_broken_is_a_warning_with_its_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text, every check a line; the two workers agree on what it does wrong."""
    (tmp_path / "careless.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "check", "./careless.py:Careless", "--set", "lr=0.2")
    assert code == 0
    assert [line[8:32].rstrip() for line in out.splitlines()] == CHECKS
    broken = {line[8:32].rstrip(): line[32:] for line in out.splitlines() if line.startswith("broken")}
    assert broken == {
        "resume identical": "blocks.0.square.weight differs",
        "leaves grad alone": "the gradient of blocks.0.square.weight is another after the step",
        "bf16 parameters": "resume identical: blocks.0.square.weight differs",
    }
    assert err.splitlines()[-4:] == [
        "warning: resume identical is broken: resumes are not exact: an interrupted run ends elsewhere",
        "warning: leaves grad alone is broken: metrics of gradients are of what the step left of them",
        "warning: bf16 parameters is broken: keep the weights in float32, as all precisions of a run do",
        "next: muon pretrain --optimizer ./careless.py:Careless --steps 50",
    ]


def test_a_built_in_one_keeps_everything(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "check", "sgd", "--json")
    told = json.loads(out)
    assert (code, told["optimizer"], told["ok"]) == (0, "sgd", True)
    assert told["checks"] == [{"check": check, "ok": True, "seen": None, "consequence": None} for check in CHECKS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lyon"], "'adamuon' (did you mean 'lion'?)."),
        (["lion", "--set", "momentum=0.9"], "'momentum' is no parameter of lion"),
    ],
)
def test_what_there_is_none_of_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "check", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
