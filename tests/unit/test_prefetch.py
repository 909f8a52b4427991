"""The next step's rows are read and copied while the GPU computes, each once, and are those that were asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.streams import Calls, copy_as_on_a_gpu, two_streams
from torch import Tensor

from muon_core import train as training
from muon_core.config.run import RunConfig
from muon_core.data.batches import TokenData
from muon_core.optim.optimizers import Optimizers
from muon_core.prefetch import Batches
from muon_core.stopwatch import Part, Stopwatch
from muon_core.store.folder import Folder
from muon_core.train import train

CPU = torch.device("cpu")


def read(step: int) -> Tensor:
    return torch.tensor([[step, step + 1]])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What a run asks for, in order, which copies to a CPU as if it were a GPU: reading, passes, update, streams."""
    seen: Calls = []
    copy_as_on_a_gpu(monkeypatch, seen)
    batch, gradients, step = TokenData.batch, training.ddp_gradients, Optimizers.step

    def reading(self: TokenData, seed: int, step: int, size: int, **rank: Any) -> Tensor:
        if rank:  # not the hash of the first batch
            seen.append(("read", step))
        return batch(self, seed, step, size, **rank)

    def passes(*arguments: Any) -> Tensor:
        seen.append("passes")
        return gradients(*arguments)

    def update(self: Optimizers, number: int, **options: Any) -> Any:
        seen.append(("update", number))
        return step(self, number, **options)

    monkeypatch.setattr(TokenData, "batch", reading)
    monkeypatch.setattr(training, "ddp_gradients", passes)
    monkeypatch.setattr(Optimizers, "step", update)
    return seen


def reads(calls: Calls) -> list[int]:
    return [call[1] for call in calls if call[0] == "read"]


def test_a_step_waits_for_its_own_copy_which_another_stream_made_from_pinned_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: Calls = []
    two_streams(monkeypatch, calls)

    class Tokens:
        """Notes what is asked of it."""

        def pin_memory(self) -> "Tokens":
            calls.append("pin")
            return self

        def to(self, device: torch.device, **options: Any) -> Tensor:
            calls.append((device.type, options))
            return torch.ones(1)

    def reading(step: int) -> Any:
        calls.append(("read", step))
        return Tokens()

    batches = Batches(reading, 3, torch.device("cuda", 0))
    batches.foresee(1)
    assert calls == [
        ("read", 1), ("on", "side"), "pin", ("cuda", {"non_blocking": True}), ("side", "records"), ("off", "side"),
    ]  # fmt: skip
    calls.clear()
    batches.of(1)
    assert calls == [("current", "waits", "event of side"), ("rows", "are used on", "current")]
    calls.clear()
    batches.of(2)  # which nobody foresaw
    assert calls == [("read", 2), "pin", ("cuda", {"non_blocking": True})]


def test_rows_are_those_of_the_step_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    side = two_streams(monkeypatch, [])
    batches = Batches(read, 6, CPU)
    batches._stream = side  # type: ignore[assignment]
    assert torch.equal(batches.of(0), read(0))
    batches.foresee(1)
    assert torch.equal(batches.of(3), read(3))  # as after a resume, or a step that was skipped
    assert torch.equal(batches.of(1), read(1))  # what was foreseen for it is not kept
    for step in (4, 5):
        batches.foresee(step)
        assert torch.equal(batches.of(step), read(step))


def test_a_run_reads_each_step_once_between_its_passes_and_the_update(
    calls: Calls, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config.replace(steps=3)
    outcome = train(config, None)
    assert [call for call in calls if call[0] not in ("on", "off", "side", "rows")] == [
        ("read", 0), "passes", ("read", 1), ("update", 0),
        ("current", "waits", "event of side"), "passes", ("read", 2), ("update", 1),
        ("current", "waits", "event of side"), "passes", ("update", 2),
    ]  # fmt: skip
    monkeypatch.undo()
    assert train(config, None).final == outcome.final


def test_a_run_that_is_taken_up_again_reads_what_comes_next(
    calls: Calls, tmp_path: Path, run_config: RunConfig
) -> None:
    config = run_config.replace(steps=6)
    whole = train(config, None)
    calls.clear()
    assert train(config, Folder(tmp_path), report=lambda progress: progress.step < 3).steps == 3
    assert reads(calls) == [0, 1, 2, 3]
    calls.clear()
    assert train(config, Folder(tmp_path)).final == whole.final
    assert reads(calls) == [3, 4, 5]


def test_a_step_that_is_skipped_leaves_the_next_one_its_own(calls: Calls, run_config: RunConfig) -> None:
    config = run_config.replace(
        steps=4, spike={"nonfinite": "skip"}, optimizer=run_config.optimizer.replace(embedding_lr=1e30)
    )
    train(config, None)
    assert [call[1] for call in calls if call[0] == "update"] != [0, 1, 2, 3]
    assert reads(calls) == [0, 1, 2, 3]


def test_what_is_read_ahead_counts_as_data(
    calls: Calls, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Stopwatch.timed

    @contextmanager
    def noted(self: Stopwatch, part: Part) -> Iterator[None]:
        calls.append(("begin", part))
        with timed(self, part):
            yield

    monkeypatch.setattr(Stopwatch, "timed", noted)
    train(run_config.replace(steps=3), None)
    assert [before for before, call in pairwise(calls) if call[0] == "read"] == [("begin", "data")] * 3


def test_a_cpu_reads_a_step_when_it_begins() -> None:
    """It would do so in the time of the step before: there is nobody else to do it."""
    seen: list[int] = []
    batches = Batches(lambda step: seen.append(step) or read(step), 3, CPU)  # type: ignore[func-returns-value]
    batches.of(0)
    batches.foresee(1)
    assert seen == [0]
    batches.of(1)
    assert seen == [0, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_the_rows_while_it_computes() -> None:
    """Of many steps, whose memory is used again: each has its own rows, and nothing is waited for."""
    device = torch.device("cuda", 0)
    batches = Batches(lambda step: torch.full((64, 2049), step), 50, device)
    busy, sums = torch.randn(4096, 4096, device=device), []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(50):
            rows = batches.of(step)
            busy = (busy @ busy).clamp(-1, 1)
            sums.append(rows.sum())
            del rows
            batches.foresee(step + 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(sums).tolist() == [64 * 2049 * step for step in range(50)]
