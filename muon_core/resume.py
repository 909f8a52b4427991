"""Saves a run's state while it trains, and takes it up again: rows and weights share one lineage.

A checkpoint is published only after the store has every row up to its step, and carries the number of the last one. The
attempt that takes it up counts from there, so what the dead attempt wrote beyond it is hidden, and the rows are those
of a run that never died. Saving costs the loop a copy of the state; the writing happens in a thread of its own.
"""

from __future__ import annotations

import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from torch import Tensor

from muon_core import checkpoint, distributed, environment
from muon_core.config.run import RunConfig
from muon_core.fit import take_again
from muon_core.statuses import FINISHED
from muon_core.store.parquet import Row
from muon_core.store.reader import read_end, relisting
from muon_core.store.storage import Storage, patiently
from muon_core.store.writer import PATIENCE_S, ResumePoint

if TYPE_CHECKING:
    from muon_core.recorder import Recorder
    from muon_core.state import TrainState


class Saver:
    """Writes checkpoints of one run, off the training path but for a copy of the state. All ranks hold one."""

    def __init__(self, config: RunConfig, storage: Storage | None) -> None:
        self._config, self._storage = config, storage
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._saved_at = time.monotonic()
        self._has_config = False

    def after_step(self, state: TrainState, recorder: Recorder, *, stopping: bool) -> None:
        """Save if a step period, a milestone, the clock or the end of the attempt says so. All ranks call it."""
        if self._storage is None:
            return
        config = self._config.checkpoint
        names = [name for name in [self._milestone(state.step)] if name]
        if config.every_steps and state.step % config.every_steps == 0:
            names.append(checkpoint.LATEST)
        if not names and (stopping or self.clock_says_so()):
            names.append(checkpoint.LATEST)
        due = bool(names) and distributed.rank() == 0
        together = state.layout.shared or recorder.awaits_all
        if not (distributed.agree(due, state.device) if together else due):
            return
        recorder.take_up()  # its rows are of before this state
        if distributed.rank() != 0 and not state.layout.shared:
            return
        with recorder.stopwatch.timed("checkpoint"):
            self.settle()  # at most one copy of the state is in memory, and an error of the last save ends the run here
            copied = state_of(self._config, state, recorder)
            if distributed.rank() != 0 or (point := recorder.barrier()) is None:
                return
            for name in names:
                self._submit(name, state.step, point, copied)
            self._saved_at = time.monotonic()
            if stopping:
                self.settle()

    def finish(self, state: TrainState, recorder: Recorder) -> None:
        """Begin to save the weights of a run that reached its last step; `settle` waits until they are."""
        if self._storage is None or not self._config.checkpoint.model:
            return
        with recorder.stopwatch.timed("checkpoint"):
            weights = state.layout.weights()
            if distributed.rank() == 0 and (point := recorder.barrier()):
                self._submit(checkpoint.MODEL, state.step, point, {"model": weights})

    def settle(self) -> None:
        """Wait for the checkpoint under way; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Let the checkpoint under way end; its failure is no longer anybody's business."""
        self._thread.shutdown()

    def clock_says_so(self) -> bool:
        """Whether a checkpoint is due by the seconds since the last."""
        every = self._config.checkpoint.every_s
        return self._storage is not None and every is not None and time.monotonic() - self._saved_at > every

    def _milestone(self, step: int) -> str | None:
        reached = self._config.milestone(step)
        return None if reached is None else checkpoint.milestone_name(step, reached)

    def _submit(self, name: str, step: int, point: ResumePoint, state: dict[str, Any]) -> None:
        self.settle()
        self._pending = self._thread.submit(self._write, name, step, point, state)

    def _write(self, name: str, step: int, point: ResumePoint, state: dict[str, Any]) -> None:
        storage, config = self._storage, self._config
        assert storage is not None
        if not self._has_config:
            patiently(lambda: checkpoint.write_config(storage, config), PATIENCE_S)
            self._has_config = True
        patiently(lambda: checkpoint.write(storage, config, name, step, point, state), PATIENCE_S)


def state_of(config: RunConfig, state: TrainState, recorder: Recorder) -> dict[str, Any]:
    """A copy of what a checkpoint holds, on rank 0. Noise, batches and dropout are functions of seed and step: there is
    nothing of them."""
    saved = state.layout.saved(state.optimizers)
    rest = {
        "peaks": state.peaks.state_dict(),
        "recorder": recorder.state_dict(),
        "data_hash": state.data.data_hash,
        "environment": _circumstances(config, state),
    }
    copied: dict[str, Any] = _copy(rest) | (saved if state.layout.shared else _copy(saved))
    return copied


def finished(config: RunConfig, storage: Storage) -> Row | None:
    """The end record of a run that is done or diverged, the same on every rank; None for any other run."""
    end = None
    if distributed.rank() == 0:
        end = patiently(lambda: relisting(lambda: read_end(storage, config.run_id)), PATIENCE_S)
    end = distributed.share(end)
    return end if end and end["status"] in FINISHED else None


def restore(config: RunConfig, state: TrainState, recorder: Recorder, storage: Storage) -> ResumePoint | None:
    """Take the run's newest checkpoint up, on every rank the same; returns its resume point, None if there is none.

    Raises: CheckpointError for a checkpoint that does not fit this run or the text it now finds.
    """
    found = None
    if distributed.rank() == 0:
        found = patiently(lambda: checkpoint.newest(storage, config), PATIENCE_S)
    key = distributed.share(found[0].key if found else None)
    if key is None:
        return None
    saved, values = found or (None, patiently(lambda: checkpoint.load(storage, key), PATIENCE_S))
    if values["data_hash"] != state.data.data_hash:
        raise checkpoint.CheckpointError(
            f"checkpoint {key} was trained on other text or tokens than {config.data.corpus} holds now; "
            f"restore the corpus, or remove checkpoints/{config.run_id}/ to train the run from the start"
        )
    try:
        _check_stepped(values["step"], values["optimizers"])
        state.layout.load(state.optimizers, values["model"], values["optimizers"], values.get("kept"))
        state.peaks.load_state_dict(values["peaks"])
        recorder.load_state_dict(values["recorder"])
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise checkpoint.CheckpointError(
            f"checkpoint {key} does not fit the model of {config.run_id}: {type(error).__name__} {reason}; "
            f"remove checkpoints/{config.run_id}/ to train the run from the start"
        ) from error
    state.step = recorder.step = values["step"]
    if "environment" in values:  # checkpoints of early versions have none
        take_again(config, state, values["environment"])
        _note_drift(config, state, values["environment"])
    return saved.resume_point if saved else None


def _check_stepped(step: int, optimizers: dict[str, dict[str, Any]]) -> None:
    """Each step gives every parameter its gradient; without state it would begin anew in silence."""
    if step and (bare := [name for name, values in optimizers.items() if not values]):
        raise ValueError(f"after step {step} it has no optimizer state of {bare[0]}")


def _circumstances(config: RunConfig, state: TrainState) -> dict[str, Any]:
    """What the bits of a run depend on beside its config."""
    world_size = {} if config.reduction == "tree" else {"world_size": distributed.world_size()}
    parallel = "fsdp" if state.layout.shared else "ddp"
    device = environment.device_name(state.device)
    return state.environment | {"device": device, "parallel": parallel} | world_size


def _note_drift(config: RunConfig, state: TrainState, before: dict[str, Any]) -> None:
    """Warn, and keep in the run's record, that its attempts had different environments."""
    earlier = before.pop("resumed_from", {})
    drift = environment.changes({"parallel": "ddp"} | before, _circumstances(config, state))
    if earlier or drift:
        state.environment = state.environment | {"resumed_from": earlier | drift}
    if drift and distributed.rank() == 0:
        changed = ", ".join(f"{name} was {value}" for name, value in drift.items())
        warnings.warn(f"{config.run_id} goes on in another environment ({changed}); its bits may be new", stacklevel=2)


def _copy(value: Any, *at: Any) -> Any:
    """A deep copy on the CPU: training goes on while it is written. Raises ValueError for what none can hold."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(item, *at, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item, *at) for item in value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(
            f"{' '.join(map(str, at))} is a {type(value).__name__}, which no checkpoint can hold: an optimizer keeps "
            "tensors, numbers and texts"
        )
    return value
