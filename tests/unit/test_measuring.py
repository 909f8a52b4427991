"""Matrices that are measured beside training: the rows of a run that waits for them, however it ends."""

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.beside import Late, measure_beside
from support.same_rows import assert_same_rows, rows
from support.saved_runs import steps_reported, train_until
from torch import Tensor

from analysis.store import open_store
from muon_core import environment, measuring
from muon_core import train as training
from muon_core.config.memory import memory
from muon_core.config.run import RunConfig
from muon_core.measuring import Snapshot, begin, has_room
from muon_core.state import TrainState
from muon_core.store.folder import Folder
from muon_core.train import train

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "noise": {"name": "orthonoise", "alpha": 0.1, "attention_blocks": "per_head"},
    "adamw": {"name": "adamw"},
    "as_seed": {"name": "isotropic", "mode": "as_seed", "alpha": 1e-3, "rank_threshold": 1.0},
}


@pytest.fixture
def config(run_config: RunConfig) -> RunConfig:
    """Tracked at steps 0, 3, 6 and 8, saved at 4 and 8, evaluated at other steps still."""
    tracking = {"track_every": 3, "eval_every": 5, "spectra_every": 6}
    return run_config.replace(tracking=tracking, checkpoint={"every_steps": 4})


@pytest.fixture
def whole(config: RunConfig, tmp_path: Path) -> Path:
    """The store of the run that waited for every measurement."""
    assert train(config, Folder(tmp_path / "whole")).status == "done"
    return tmp_path / "whole"


def tracked(store: Path, table: str = "layers") -> list[int]:
    """Steps with rows of single matrices; each must have those of all twelve, once."""
    frame = open_store(store).table(table).collect()
    assert frame.group_by("step", "layer", "projection").len()["len"].max() == 1
    steps = frame["step"].value_counts(sort=False).sort("step")
    assert set(steps["count"]) == {12}
    return steps["step"].to_list()


@pytest.mark.parametrize(("name", "late"), [*((name, True) for name in OPTIMIZERS), ("noise", False)])
def test_rows_are_those_of_a_run_that_waits(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, name: str, late: bool
) -> None:
    """Bit for bit and in their order, with measurements that overlap other rows, checkpoints and the next of them."""
    run = config.replace(optimizer=OPTIMIZERS[name])
    assert train(run, Folder(tmp_path / "waits")).status == "done"
    measure_beside(monkeypatch, late=late)
    assert train(run, Folder(tmp_path / "beside")).status == "done"
    assert_same_rows(tmp_path / "waits", tmp_path / "beside", [run.run_id])
    assert (tracked(tmp_path / "beside"), tracked(tmp_path / "beside", "health")) == ([0, 3, 6, 8], [3, 6, 8])


def test_measurements_at_every_step_wait_for_each_other(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config.replace(tracking={"track_every": 1})
    train(run, Folder(tmp_path / "waits"))
    measure_beside(monkeypatch, late=True)
    train(run, Folder(tmp_path / "beside"))
    assert_same_rows(tmp_path / "waits", tmp_path / "beside", [run.run_id])


def test_a_tracked_step_finds_no_copies_of_the_one_before(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes its own, and there is room for those of one."""
    measure_beside(monkeypatch, late=True)
    copies: list[weakref.ref[Tensor]] = []
    found: list[int] = []
    of, update = Snapshot.of, training._update

    def taken(*arguments: Any, **options: Any) -> Snapshot:
        copies.append(weakref.ref((snapshot := of(*arguments, **options)).weights[0]))
        return snapshot

    def looked_at(run: RunConfig, state: TrainState, *, track: bool) -> None:
        found.extend(sum(copy() is not None for copy in copies) for _ in range(track))
        update(run, state, track=track)

    monkeypatch.setattr(Snapshot, "of", taken)
    monkeypatch.setattr(training, "_update", looked_at)
    assert train(config.replace(checkpoint={"every_s": None}), Folder(tmp_path)).status == "done"
    assert (found, len(copies)) == ([0, 0, 0], 4)


@pytest.mark.parametrize(("died_at", "saved_at"), [(1, 0), (3, 0), (4, 0), (5, 4), (7, 4)])
def test_a_run_that_died_with_a_measurement_under_way_has_every_row_once(
    tmp_path: Path, config: RunConfig, whole: Path, monkeypatch: pytest.MonkeyPatch, died_at: int, saved_at: int
) -> None:
    """That of step 3 is in the checkpoint of step 4; before it is saved, and that of step 6, it dies with the run."""
    measure_beside(monkeypatch, late=True)
    train_until(Folder(tmp_path / "killed"), config, died_at)
    assert steps_reported(Folder(tmp_path / "killed"), config)[-1 - (8 - saved_at)] == saved_at
    assert_same_rows(whole, tmp_path / "killed", [config.run_id])


def test_a_run_that_is_stopped_before_its_first_step_has_the_rows_of_its_start(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_beside(monkeypatch, late=True)
    assert train(config, Folder(tmp_path), report=lambda progress: False).status == "stopped"
    assert tracked(tmp_path) == [0]


def test_a_stopped_run_saves_the_rows_of_what_is_under_way(
    tmp_path: Path, config: RunConfig, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_beside(monkeypatch, late=True)
    outcome = train(config, Folder(tmp_path / "stopped"), report=lambda progress: progress.step < 7)
    assert (outcome.status, tracked(tmp_path / "stopped")) == ("stopped", [0, 3, 6])
    assert train(config, Folder(tmp_path / "stopped")).status == "done"
    assert_same_rows(whole, tmp_path / "stopped", [config.run_id])


@pytest.mark.parametrize("saves", [True, False])
def test_a_diverged_run_has_the_rows_of_what_was_under_way(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    measure_beside(monkeypatch, late=True)
    fast = config.optimizer.replace(embedding_lr=1e30)
    run = config.replace(optimizer=fast, checkpoint={"every_steps": 4 if saves else None})
    assert train(run, Folder(tmp_path)).status == "diverged"
    assert tracked(tmp_path) == [0]
    assert open_store(tmp_path).runs.collect()["status"].to_list() == ["diverged"]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "stopped"), (RuntimeError("shapes do not fit"), "failed")]
)
def test_what_breaks_a_run_off_loses_no_rows(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    measure_beside(monkeypatch, late=True)

    def report(progress: Any) -> bool:
        if progress.step == 7:
            raise error
        return True

    with pytest.raises(type(error)):
        train(config, Folder(tmp_path), report=report)
    assert tracked(tmp_path) == [0, 3, 6]
    assert rows(tmp_path, "train", [config.run_id])["step"].to_list() == list(range(1, 8))
    assert open_store(tmp_path).runs.collect()["status"].to_list() == [status]


def test_an_interrupted_wait_is_made_up_for(tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_beside(monkeypatch, late=True)
    asked: list[int] = []
    real = Late.exception

    def interrupted(self: Late, timeout: float | None = None) -> BaseException | None:
        asked.append(1)
        if len(asked) == 3:  # of step 6, at the last
            raise KeyboardInterrupt
        return real(self, timeout)

    monkeypatch.setattr(Late, "exception", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, Folder(tmp_path))
    assert tracked(tmp_path) == [0, 3, 6]


def broken(*matrices: Any) -> None:
    raise ArithmeticError("no convergence")


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("at", [1, 2])
def test_an_error_of_a_measurement_fails_the_run_with_its_traceback(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, late: bool, at: int
) -> None:
    """Of the first, and of the last, when all steps are done."""
    measure_beside(monkeypatch, late=late)
    real, calls = measuring.layer_metrics, []

    def breaking(*matrices: Any) -> Any:
        calls.append(1)
        return broken() if len(calls) == at else real(*matrices)

    monkeypatch.setattr(measuring, "layer_metrics", breaking)
    with pytest.raises(ArithmeticError, match="no convergence"):
        train(config.replace(tracking={"track_every": 100}, checkpoint={"every_s": None}), Folder(tmp_path))
    (run,) = open_store(tmp_path).runs.collect().to_dicts()
    assert run["status"] == "failed"
    assert "in broken\n" in run["error"]
    assert run["error"].endswith("ArithmeticError: no convergence\n")


def test_an_error_of_a_measurement_does_not_hide_what_ended_the_run(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measure_beside(monkeypatch, late=True)
    monkeypatch.setattr(measuring, "layer_metrics", broken)

    def report(progress: Any) -> bool:
        if progress.step == 2:
            raise RuntimeError("shapes do not fit")
        return True

    with pytest.raises(RuntimeError, match="shapes do not fit"), caplog.at_level(logging.WARNING):
        train(config, Folder(tmp_path), report=report)
    assert "no convergence" in caplog.text
    (run,) = open_store(tmp_path).runs.collect().to_dicts()
    assert run["error"].endswith("RuntimeError: shapes do not fit\n")
    assert rows(tmp_path, "train", [config.run_id])["step"].to_list() == [1, 2]


def test_a_run_that_diverged_is_failed_by_an_error_of_its_last_measurement(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_beside(monkeypatch, late=True)
    monkeypatch.setattr(measuring, "layer_metrics", broken)
    fast = config.optimizer.replace(embedding_lr=1e30)
    with pytest.raises(ArithmeticError, match="no convergence"):
        train(config.replace(optimizer=fast), Folder(tmp_path))
    assert open_store(tmp_path).runs.collect()["status"].to_list() == ["failed"]


def test_rows_are_taken_up_as_soon_as_they_are_there(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first row after that, long before the next measurement, while the run goes on."""
    measure_beside(monkeypatch)
    run = config.replace(tracking={"track_every": 100, "flush_every_s": 1e-6}, checkpoint={"every_s": None})
    seen: list[int] = []

    def report(progress: Any) -> bool:
        for thread in threading.enumerate():
            if thread.name.startswith("measure"):
                thread.join()
        if progress.step == 5:
            seen.extend(open_store(tmp_path).layers.collect()["step"].unique())
        return True

    assert train(run, Folder(tmp_path), report=report).status == "done"
    assert seen == [0]
    assert not any(thread.name.startswith("measure") for thread in threading.enumerate())


def test_a_cpu_measures_at_once_and_in_its_own_thread() -> None:
    found = begin(threading.current_thread, torch.device("cpu"), beside=False)
    assert found.done()
    assert found.result() is threading.current_thread()


@pytest.mark.parametrize(("share", "beside"), [(0.99, False), (1.01, True)])
def test_a_run_without_room_for_copies_waits(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, share: float, beside: bool
) -> None:
    device, held = torch.device("cpu"), memory(config)
    free = int(share * (held.peak + held.tracking) / (1 - measuring.SPARE))
    monkeypatch.setattr(environment, "free_memory_bytes", lambda device: free)
    assert not has_room(config, device)  # a CPU never measures beside training
    measure_beside(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert has_room(config, device) == beside
    assert ("there is no room for 0.0" in caplog.text) != beside


class Cuda:
    """Stands for a GPU: takes down what is asked of it, in order, and whether the snapshot is still there."""

    device = torch.device("cuda", 3)

    def __init__(self, patched: pytest.MonkeyPatch, snapshot: "weakref.ref[Tensor]") -> None:
        self.asked: list[str] = []
        self._snapshot = snapshot
        patched.setattr(torch.cuda, "current_stream", lambda device: self)
        patched.setattr(torch.cuda, "stream", self.entered)
        patched.setattr(torch.cuda, "set_device", lambda device: self.asked.append(f"go to {device}"))
        patched.setattr(measuring, "_stream", lambda device: self)

    def record_event(self) -> str:
        self.asked.append("record")
        return "what training has begun"

    def wait_event(self, event: str) -> None:
        self.asked.append(f"wait for {event}")

    @contextmanager
    def entered(self, stream: "Cuda") -> Iterator[None]:
        self.asked.append("enter")
        yield
        self.asked.append("leave")

    def synchronize(self) -> None:
        self.asked.append("synchronize" if self._snapshot() is not None else "too late")


@pytest.mark.parametrize("fails", [False, True])
def test_a_gpu_measures_on_a_stream_of_its_own_and_keeps_the_snapshot_until_it_was_read(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    weight = torch.ones(2, 2)
    cuda = Cuda(monkeypatch, weakref.ref(weight))

    def measure(weight: Tensor) -> float:
        cuda.asked.append("measure")
        return 1 / float(weight.sum() - 4 * fails)

    found = begin(partial(measure, weight), Cuda.device, beside=True)
    del weight
    assert type(found.exception()) is (ZeroDivisionError if fails else type(None))
    expected = ["record", "go to cuda:3", "enter", "wait for what training has begun", "measure", "synchronize"]
    assert cuda.asked[:6] == expected


def everything(snapshot: Snapshot) -> list[Tensor]:
    """All tensors that it holds."""
    kinds = [snapshot.weights, snapshot.norms.values(), snapshot.updates or (), snapshot.momenta or ()]
    if look := snapshot.look:
        kinds += [look.updates.values(), look.gradients.values(), [look.cosines]]
        kinds += [(stack.momentum, stack.above, *stack.columns.values()) for stack in look.stacks]
    return [tensor for kind in kinds for tensor in kind]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "soap", "sgd"])
def test_no_later_step_changes_what_is_to_be_measured(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    measure_beside(monkeypatch, late=True)
    kept: list[tuple[Snapshot, list[Tensor]]] = []
    of = Snapshot.of

    def taken(*arguments: Any, **options: Any) -> Snapshot:
        kept.append((snapshot := of(*arguments, **options), list(map(torch.clone, everything(snapshot)))))
        return snapshot

    monkeypatch.setattr(Snapshot, "of", taken)
    run = config.replace(optimizer=OPTIMIZERS.get(name, {"name": name}))
    assert train(run, Folder(tmp_path)).status == "done"
    assert len(kept) == 4
    for snapshot, before in kept:
        torch.testing.assert_close(everything(snapshot), before, rtol=0, atol=0, equal_nan=True)
