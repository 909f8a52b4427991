"""`make gpu-check` on a machine without a GPU: what it says there, and its parts and table on a tiny model."""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import check, parts

from muon_core import train as training

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def here(command: list[str], seconds: float) -> str:
    """A part in this process, for the starts of eight would be most of the work; the others answer as they do."""
    assert seconds > 0
    if command[1].endswith("parts.py"):
        name, arguments = command[2], json.loads(command[3])
        if name == "resume":
            arguments[1] = False  # kernels for a CPU take long to compile, and are tested elsewhere
        steps = [7] if name == "speed" else [6] if name in ("resume", "syncs") else []
        return json.dumps(parts.PARTS[name](*arguments, *steps))
    if command[1].endswith("optimizer_step.py"):
        steps = {"ours": [[0.004, 1], [0.001, 1], [0.002, 1]], "torch": [[0.02, 1]] * 3, "compiled": [[0.0015, 1]] * 3}
        return json.dumps(steps | {"first_s": {"compiled": 9.0}, "peak_bytes": {"ours": 2**26, "compiled": 2**25}})
    return "....\n4 passed, 2 deselected in 3.00s"


def test_without_cuda_it_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main() == 2
    assert capsys.readouterr() == (
        "gpu-check: no CUDA device is found here; run it on a machine with an NVIDIA GPU and its driver\n", ""
    )  # fmt: skip


def test_the_table_has_every_part_and_the_last_line_says_it_is_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # which is set for the parts
    monkeypatch.setattr(check, "called", here)
    assert check.check("cpu") == 0
    out, err = capsys.readouterr()
    about, _, _, _, *table, _, verdict = out.splitlines()
    assert about.startswith("device cpu ")
    assert "| torch 2." in about
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    values = {what: (value, beside) for what, value, beside in cells}
    assert list(values) == [
        "tests that need CUDA", "Muon step", "a run taken up again", "waits for the device in a step",
        "muon, no tracking", "adamw, no tracking", "muon, tracking by default", "adamw, tracking by default",
        "Muon step compiled", "a compiled run taken up again",
    ]  # fmt: skip
    assert [line.split(": ")[0] for line in err.splitlines() if line.endswith(" s")] == [
        "gpu tests", "muon step", "a run taken up again", "waits", *list(values)[4:8], "muon step compiled",
        "a compiled run taken up again",
    ]  # fmt: skip
    assert values["Muon step"] == ("2.00 ms", "torch.optim.Muon 20.00 ms, ratio 0.100 (goal <= 0.2)")
    assert values["Muon step compiled"] == (
        "1.50 ms", "not compiled 2.00 ms, ratio 0.750 (goal <= 1); first step 9.0 s longer; 32 MiB beside 64 MiB"
    )  # fmt: skip
    for name in list(values)[4:8]:
        assert re.fullmatch(r"[\d,]+ tokens/s", values[name][0])
        assert re.fullmatch(r"MFU unknown, [\d.]+ GiB, first step -?[\d.]+ s longer", values[name][1])
    for name in ("a run taken up again", "a compiled run taken up again"):
        assert values[name] == ("the same bits", "train losses at most 0 apart")
    assert values["waits for the device in a step"] == ("0", "the most of 4 (goal 0)")
    assert re.fullmatch(r"\d+ s; met", verdict)


def test_what_fails_or_has_no_time_left_has_its_reason_and_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(command: list[str], seconds: float) -> str:
        if "pytest" in command:
            raise check.Part("failed: 1 failed, 3 passed in 2.00s")
        if "speed" in command:
            raise check.Part("no time was left")
        if command[1].endswith("optimizer_step.py"):
            steps = {"ours": [[0.01, 1]], "torch": [[0.02, 1]], "compiled": [[0.02, 1]]}
            return json.dumps(steps | {"first_s": {"compiled": 1.0}, "peak_bytes": {}})
        answers = {"versions": {}, "floor": {"seconds": 0.0008}, "syncs": {"most": 2, "steps": 10}}
        return json.dumps(answers.get(command[2], {"differing": 3, "entries": 1000, "apart": 1e-5}))

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setattr(check, "called", broken)
    assert check.check("cuda") == 1
    out = capsys.readouterr().out
    assert "| gpu tests | failed: 1 failed, 3 passed in 2.00s |  |" in out
    assert "ratio 0.500 (goal <= 0.2); its FLOPs at the peak 0.80 ms |" in out
    assert "| muon, no tracking | no time was left |  |" in out
    assert "| a run taken up again | 3 of 1,000 weights differ | train losses at most 1e-05 apart |" in out
    assert out.splitlines()[-1].endswith(
        "s; missed: gpu tests; Muon step; waits for the device in a step; muon, no tracking; adamw, no tracking; "
        "muon, tracking by default; adamw, tracking by default; Muon step compiled"
    )


def test_a_command_that_fails_or_takes_too_long_is_a_part_without_a_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check.called([sys.executable, "-c", "print(5)"], 60) == "5\n"
    with pytest.raises(check.Part, match=r"^failed: ValueError: no$"):
        check.called([sys.executable, "-c", "raise ValueError('no')"], 60)
    with pytest.raises(check.Part, match=r"^failed: exit code 3$"):
        check.called([sys.executable, "-c", "raise SystemExit(3)"], 60)
    with pytest.raises(check.Part, match=r"^no time was left$"):
        check.called([sys.executable, "-c", "import time; time.sleep(60)"], -5)
    with pytest.raises(check.Part, match=r"^took longer than 2 s$"):
        check.called([sys.executable, "-c", "print('so far', flush=True); import time; time.sleep(60)"], 1.6)
    assert "so far" in capsys.readouterr().err


def test_the_reason_of_a_part_is_its_error_and_no_hint_behind_it() -> None:
    told = "Traceback ...\n  File x\ntorch._inductor.exc.InductorError: no Python.h\n\nSet TORCHDYNAMO_VERBOSE=1\n"
    assert check.reason_in(told) == "torch._inductor.exc.InductorError: no Python.h"
    assert check.reason_in("torch.OutOfMemoryError: CUDA out of memory. Tried to") == (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to"
    )
    assert check.reason_in("....F\n1 failed, 3 passed in 2.00s\n") == "1 failed, 3 passed in 2.00s"
    assert check.reason_in("") == ""


def test_a_torch_without_cuda_on_a_machine_with_a_gpu_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray_jobs.machine.count_gpus", lambda *_: 1)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert check.main() == 2
    assert capsys.readouterr().out == (
        f"gpu-check: torch {torch.__version__} is built without CUDA; install its build for CUDA\n"
    )


def test_tests_that_were_skipped_on_a_gpu_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "called", lambda *_: "=== 2 passed, 1 skipped in 1.00s ===")
    assert check.gpu_tests("cuda", 60) == check.Row("tests that need CUDA", "2 passed, 1 skipped in 1.00s", missed=True)


def test_waits_are_counted_as_cuda_warns_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients: Callable[..., Any] = training._gradients

    def waiting(*arguments: Any) -> Any:
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", UserWarning, stacklevel=1)
        return gradients(*arguments)

    monkeypatch.setattr(training, "_gradients", waiting)
    assert parts.syncs("cpu", 6) == {"most": 1, "steps": 4}


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run it all")
def test_make_gpu_check_ends_with_that_line_and_an_exit_code() -> None:
    assert "\ngpu-check: .venv/.ready\n\t$(BIN)/python tests/gpu/check.py\n" in (ROOT / "Makefile").read_text("utf-8")
    done = subprocess.run([sys.executable, "tests/gpu/check.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("gpu-check: no CUDA device")


def test_a_device_that_cannot_be_asked_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setattr(check, "called", lambda *_: "started\nand died\n")
    assert check.check("cuda") == 1
    assert capsys.readouterr().out == (
        "gpu-check: the device cannot be asked: ended with no result but 'and died'; `muon doctor` looks it over\n"
    )
