"""What is kept of what a process prints: by Python and by C, while a run trains, when it fails, run by run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muon_core.store.folder import Folder
from muon_core.store.keys import next_start
from muon_core.store.run_log import LogReader
from ray_jobs.run_output import FLUSH_EVERY_S, run_output

pytestmark = pytest.mark.slow

HEADER = """\
import ctypes, logging, os, sys, time, warnings
from muon_core.store.folder import Folder
from muon_core.store.keys import next_start
from ray_jobs.run_output import run_output
storage, c = Folder(sys.argv[1]), ctypes.CDLL(None)
def run(name):
    return run_output(storage, name, next_start(), rank=1, whole_process=True)
"""


def printed(store: Path, run: str) -> str:
    return b"".join(piece.data for piece in LogReader(Folder(store), run).read()).decode()


def process(script: str, store: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HEADER + script, str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_runs_of_a_worker_have_each_their_own_of_all_that_is_written(tmp_path: Path) -> None:
    script = """
for name in ("first", "second"):
    print("between")
    with run(name):
        print(f"{name} prints")
        c.printf(b"printf of C\\n")
        os.write(2, b"descriptor 2\\n")
        logging.warning("logged")
        warnings.warn("warned")
with run("quiet"):
    pass
print("after")
"""
    out, err = process(script, tmp_path).communicate(timeout=60)
    for name in ("first", "second"):
        lines = printed(tmp_path, name).splitlines()
        assert sorted(lines) == sorted(
            [
                f"{name} prints",
                "printf of C",
                "descriptor 2",
                "WARNING:root:logged",
                "warning: warned (UserWarning, <string>:16)",
            ]
        )
    assert out == "between\nbetween\nafter\n"
    assert err.count("printf of C") == 2
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"first", "second"}


def test_a_run_that_fails_has_its_traceback_and_raises(tmp_path: Path) -> None:
    def fail() -> None:
        with run_output(Folder(tmp_path), "r", next_start()):
            print("before")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert printed(tmp_path, "r").startswith("before\nTraceback (most recent call last):\n")
    assert printed(tmp_path, "r").endswith("RuntimeError: boom\n")


def test_what_a_killed_worker_printed_is_there_but_for_the_last_seconds(tmp_path: Path) -> None:
    child = process("with run('r'):\n    print('alive', flush=True)\n    time.sleep(600)\n", tmp_path)
    deadline = time.monotonic() + 60
    while "alive" not in printed(tmp_path, "r") and time.monotonic() < deadline:
        time.sleep(FLUSH_EVERY_S / 10)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert printed(tmp_path, "r") == "alive\n"


def test_more_than_a_file_in_memory_holds_arrives_whole(tmp_path: Path) -> None:
    """The file is exchanged while the process prints."""
    script = """
import ray_jobs.run_output
ray_jobs.run_output.FILE_BYTES, ray_jobs.run_output.DRAIN_EVERY_S = 4096, 0.01
with run("r"):
    for number in range(40_000):
        print(f"{number:08d}")
"""
    _, err = process(script, tmp_path).communicate(timeout=120)
    assert printed(tmp_path, "r") == "".join(f"{number:08d}\n" for number in range(40_000))
    assert err == printed(tmp_path, "r")


def test_a_terminal_still_has_what_is_kept(tmp_path: Path) -> None:
    script = """
logging.basicConfig(format="%(message)s")
with run_output(storage, "r", next_start()):
    print("printed")
    logging.warning("logged")
    warnings.warn("warned")
    sys.stdout.writelines(["a", "b\\n"])
print("after")
logging.warning("logged after")
"""
    out, err = process(script, tmp_path).communicate(timeout=60)
    assert out == "printed\nab\nafter\n"
    assert err == "logged\nwarning: warned (UserWarning, <string>:13)\nlogged after\n"
    assert printed(tmp_path, "r") == "printed\nlogged\nwarning: warned (UserWarning, <string>:13)\nab\n"


@pytest.mark.parametrize("whole_process", [False, True])
def test_what_a_plan_has_said_is_in_the_log_of_each_run_and_not_on_the_terminal(
    tmp_path: Path, whole_process: bool
) -> None:
    script = f"""
from muon_core.config.optimizers import MuonConfig
from muon_core.optim.build import build_optimizers
from ray_jobs.run_output import OURS
from torch import nn
for name in ("first", "second"):
    with run_output(storage, name, next_start(), whole_process={whole_process}):
        print("before", flush=True)
        model = nn.ModuleDict({{"blocks": nn.Linear(2, 2, bias=False)}})
        build_optimizers(
            model.named_parameters(), MuonConfig(clipping="all"), noise_seed=1, patterns=[("*", "hidden")]
        )
        warnings.warn_explicit("of ours", UserWarning, str(OURS / "resume.py"), 1)
        print("after", flush=True)
"""
    _, err = process(script, tmp_path).communicate(timeout=120)
    assert "clipping" not in err
    for name in ("first", "second"):
        before, odd, ours, after = printed(tmp_path, name).splitlines()
        assert (before, ours, after) == ("before", "warning: of ours", "after")
        assert odd.startswith("odd: clipping all at norm 1 under muon: Muon's updates have a fixed size, and ")
        assert odd.endswith("adamw_only clips where it matters")


def test_a_store_that_takes_nothing_fails_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("in the place of the folder")
    with run_output(Folder(tmp_path), "r", next_start()):
        print("printed")
    assert capsys.readouterr().out == "printed\n"
    assert os.listdir(tmp_path) == ["logs"]
