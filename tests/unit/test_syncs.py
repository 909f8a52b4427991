"""A step waits for the device once an event that is recorded, and not otherwise.

On a CPU nothing has to be waited for, so what would be waited for on a GPU is counted: numbers that Python reads of
tensors. A test on a GPU has CUDA itself refuse them.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.beside import measure_beside
from support.streams import copy_as_on_a_gpu
from torch import Tensor

from analysis.store import open_store
from muon_core import measuring
from muon_core import train as training
from muon_core.config.run import RunConfig
from muon_core.recorder import Recorder
from muon_core.store.folder import Folder
from muon_core.train import train
from muon_core.unread import Unread, to_device

READS = ("item", "tolist", "cpu", "numpy", "nonzero", "__float__", "__int__", "__bool__", "__index__", "__array__")
FAR = {"log_every": 6, "eval_every": 100, "track_every": 100}


def reader() -> str:
    """Whose code reads: the nearest frame that is not in this file."""
    frame = sys._getframe(2)
    return Path(frame.f_code.co_filename).as_posix()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who read a tensor in the main thread, call by call; torch's optimizers read their own counts, on the CPU."""
    seen: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, **options: Any) -> Any:
            where, waits = reader(), threading.current_thread() is threading.main_thread()
            if waits and "/torch/optim/" not in where:
                seen.append(where)
            return original(self, *args, **options)

        return read

    for name in READS:
        monkeypatch.setattr(Tensor, name, counted(name))
    return seen


def reads_of_steps(config: RunConfig, seen: list[str], storage: Folder | None = None) -> list[int]:
    """Reads within each optimizer step but the first and the last, from report to report."""
    counts = []

    def report(progress: Any) -> bool:
        counts.append(len([where for where in seen if "/muon_core/" in where]))
        seen.clear()
        return True

    assert train(config, storage, report=report).status == "done"
    return counts[3:-1]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_step_reads_nothing_but_one_copy_where_it_is_logged(
    reads: list[str], run_config: RunConfig, name: str
) -> None:
    config = run_config.replace(optimizer={"name": name}, steps=14, tracking=FAR)
    assert reads_of_steps(config, reads) == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0]  # steps 2 to 13


@pytest.mark.parametrize("name", ["orthonoise", "adamw"])
def test_a_tracked_step_that_is_measured_beside_the_next_reads_no_more_than_a_logged_one(
    reads: list[str], run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nor do the steps in which its rows are taken up."""
    measure_beside(monkeypatch)
    config = run_config.replace(optimizer={"name": name}, steps=14, tracking=FAR | {"log_every": 100, "track_every": 4})
    assert reads_of_steps(config, reads, Folder(tmp_path)) == [0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]  # steps 2 to 13
    assert sorted(set(open_store(tmp_path).health.collect()["step"])) == [4, 8, 12, 14]


def test_a_tracked_step_on_a_cpu_reads_what_it_measures(
    reads: list[str], run_config: RunConfig, tmp_path: Path
) -> None:
    config = run_config.replace(steps=6, tracking=FAR | {"track_every": 4})
    assert reads_of_steps(config, reads, Folder(tmp_path))[2] > 1


def test_a_step_that_copies_the_rows_of_the_next_one_reads_no_more(
    reads: list[str], run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_as_on_a_gpu(monkeypatch, [])
    assert reads_of_steps(run_config.replace(steps=9, tracking=FAR), reads) == [0, 0, 0, 0, 1, 0, 0]


def test_a_read_that_is_added_is_counted(
    reads: list[str], run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = training._gradients

    def looked_at(*arguments: Any) -> Tensor:
        loss = gradients(*arguments)
        training.math.isfinite(loss)  # which asks it for a float
        return loss

    monkeypatch.setattr(training, "_gradients", looked_at)
    train(run_config.replace(steps=4, tracking=FAR), None)
    assert len([where for where in reads if where == Path(__file__).as_posix()]) == 4


@pytest.mark.parametrize("log_every", [1, 3, 50])
def test_rows_do_not_depend_on_when_losses_are_read(run_config: RunConfig, log_every: int) -> None:
    """The run ends on the same bits."""
    config = run_config.replace(tracking=FAR | {"log_every": log_every}, steps=7)
    every = run_config.replace(tracking=FAR | {"log_every": 1}, steps=7)
    assert train(config, None).final == train(every, None).final


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_run_that_diverges_between_two_looks_is_told_where(run_config: RunConfig, log_every: int) -> None:
    fast = run_config.optimizer.replace(embedding_lr=1e30)
    config = run_config.replace(optimizer=fast, tracking=FAR | {"log_every": log_every}, steps=40)
    outcome = train(config, None)
    assert (outcome.status, outcome.steps, outcome.error) == ("diverged", 1, "gradient norm nan at step 1")


def test_a_run_that_is_stopped_between_two_looks_goes_on_bit_for_bit(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(tracking=FAR | {"log_every": 100}, steps=9)
    stopped = train(config, Folder(tmp_path), report=lambda progress: progress.step < 4)
    assert (stopped.status, stopped.steps) == ("stopped", 4)
    resumed = train(config, Folder(tmp_path))
    assert (resumed.status, resumed.final) == ("done", train(config, None).final)


def test_values_are_read_in_their_order_and_once() -> None:
    unread = Unread()
    assert unread.read() == []
    for loss in (3.0, 2.0):
        unread.add(torch.tensor(loss, requires_grad=True), torch.tensor(10 * loss))
    assert unread.read() == [(3.0, 30.0), (2.0, 20.0)]
    assert unread.read() == []


def test_tokens_go_to_a_gpu_from_pinned_memory() -> None:
    class Tokens:
        """Notes what is asked of it."""

        def __init__(self) -> None:
            self.asked: list[Any] = []

        def pin_memory(self) -> "Tokens":
            self.asked.append("pin")
            return self

        def to(self, device: torch.device, **options: Any) -> "Tokens":
            self.asked.append((device.type, options))
            return self

    tokens = Tokens()
    to_device(tokens, torch.device("cuda", 0))  # type: ignore[arg-type]
    assert tokens.asked == ["pin", ("cuda", {"non_blocking": True})]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_sees_no_step_wait(run_config: RunConfig) -> None:
    config = run_config.replace(steps=14, tracking=FAR)

    def report(progress: Any) -> bool:
        quiet = progress.step not in (0, 5, 11, 13)  # the step after it is logged, or the last
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        return True

    try:
        assert train(config, None, report=report, device=torch.device("cuda", 0)).status == "done"
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_sees_no_tracked_step_wait(run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread, in which CUDA would refuse it as well, begins once the step is done."""
    go, real = threading.Event(), measuring._on_stream

    def held(*arguments: Any) -> Any:
        assert go.wait(60)
        return real(*arguments)

    def quietly(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*arguments, **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return called

    def report(progress: Any) -> bool:
        go.set()
        for thread in threading.enumerate():
            if thread.name.startswith("measure"):
                thread.join()
        if progress.step in (3, 7, 11, 13):  # what begins in the next step waits for its end
            go.clear()
        return True

    device = torch.device("cuda", 0)
    measuring._stream(device)  # which waits, once
    monkeypatch.setattr(measuring, "_on_stream", held)
    monkeypatch.setattr(training, "_update", quietly(training._update))
    monkeypatch.setattr(Recorder, "measure", quietly(Recorder.measure))
    config = run_config.replace(steps=14, tracking=FAR | {"track_every": 4}, optimizer={"name": "muon"})
    assert train(config, Folder(tmp_path), report=report, device=device).status == "done"
    assert sorted(set(open_store(tmp_path).health.collect()["step"])) == [4, 8, 12, 14]
