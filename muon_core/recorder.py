"""What a run writes when: rows of the result tables, its start and its end.

Rank 0 holds the one recorder that writes; the others' count along, so that all ranks take the same decisions (a loss
spike, a step that is due). Rows go to memory and from there, every few seconds, to the store. An attempt that another
has overtaken writes no more, and the loop leaves where all ranks can.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

from torch import Tensor

from muon_core import distributed, environment
from muon_core.code_state import code_state
from muon_core.config.reference import ReferenceConfig
from muon_core.config.run import RunConfig
from muon_core.evaluate import Evaluation
from muon_core.failures import Kind
from muon_core.layout import Layout
from muon_core.lease import Lease
from muon_core.measuring import Found, Snapshot, UnderWay, begin, rows
from muon_core.model import HiddenMatrix
from muon_core.optim.health import Look, failing
from muon_core.peaks import Peaks
from muon_core.progress import Progress
from muon_core.stopwatch import TRAINING, Stopwatch
from muon_core.store.keys import ROOT
from muon_core.store.parquet import Row
from muon_core.store.storage import Storage
from muon_core.store.writer import ResumePoint, RunWriter, Superseded, head_point
from muon_core.throughput import Throughput

log = logging.getLogger(__name__)


def start_record(config: RunConfig, **facts: Any) -> Row:
    """Columns of the `runs` table known before the first step; `facts` are those the config does not hold."""
    optimizer = config.optimizer.model_dump(mode="json")
    if isinstance(config.optimizer, ReferenceConfig):  # what it calls alike may be something else
        optimizer = {"lr": config.optimizer.lr, "embedding_lr": config.optimizer.embedding_lr}
    commit, diff_hash = code_state()
    parameters = ("lr", "embedding_lr", "alpha", "rank_threshold", "anneal", "noise_norm")
    return {
        "arm_id": config.arm_id,
        "arm": config.arm_label,
        "seed": config.seed,
        "optimizer": config.optimizer.name,
        **{name: optimizer.get(name) for name in parameters},
        "config_json": config.model_dump_json(),
        "commit": commit,
        "diff_hash": diff_hash,
        **facts,
    }


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:  # a run about to diverge
        return math.inf


class Recorder:
    """Turns what the loop sees into rows. With `storage` None (ranks other than 0) it counts and writes nothing.

    Args:
        lease: the right to train the run, for whoever writes; its attempt is the one that is recorded.
    """

    def __init__(
        self, config: RunConfig, storage: Storage | None, stopwatch: Stopwatch, lease: Lease | None = None
    ) -> None:
        self.config, self.stopwatch = config, stopwatch
        self._lease = lease
        self.step = 0
        self.status = "running"
        self.error: str | None = None
        self.failure: Kind | None = None
        """What ended it, if it failed or its node was taken back."""
        self.overtaken: str | None = None
        """Why nobody reads this attempt's rows any more: a newer one has taken the run over. It should stop."""
        self.final: Evaluation | None = None
        self._storage = storage
        self._writer: RunWriter | None = None
        self._matrices: list[HiddenMatrix] = []
        self._throughput: Throughput | None = None
        self._best_val_loss: float | None = None
        self._train_loss: float | None = None
        self._step_time: float | None = None
        self._recent_losses: deque[float] = deque(maxlen=config.spike.window)
        self._loss_spikes = 0
        self._skipped_steps = 0
        self._health_flag: str | None = None
        self._told = self._beside = False
        self._under_way: UnderWay | None = None
        self._held: list[tuple[str, Row]] = []
        self._earlier_s = 0.0
        self._started = self._flushed = time.perf_counter()

    def start(
        self, matrices: list[HiddenMatrix], facts: Row, point: ResumePoint | None = None, *, beside: bool = False
    ) -> None:
        """Write the start record.

        Args:
            facts: columns of `runs` the config does not hold.
            point: what is continued.
            beside: measure matrices while training goes on; all ranks do, or none.
        """
        self._matrices, self._beside = matrices, beside
        if matrices:
            self._throughput = Throughput(self.config, self.stopwatch, matrices[0].parameter.device)
        if self._storage:
            start = start_record(self.config, **facts)
            after = point or ResumePoint(ROOT, 0)
            held = self._lease.attempt if self._lease else None
            self._writer = RunWriter(
                self._storage, self.config.run_id, start, parent=after.attempt, resume_seq=after.seq, attempt=held
            )
        if self._lease:
            self._lease.follow(self.progress)

    @property
    def attempt(self) -> str | None:
        """Id of the attempt that is being recorded, once it has started."""
        return self._writer.attempt.id if self._writer else None

    def barrier(self) -> ResumePoint | None:
        """Wait until the store has every row so far; the resume point for a checkpoint of this moment.

        None if the run was overtaken: then there is nothing to save.
        """
        with self._unless_overtaken():
            return self._writer.barrier() if self._writer else None
        return None

    def state_dict(self) -> dict[str, Any]:
        """Counters that a resumed run carries on."""
        final = [self.final.val_loss, self.final.val_accuracy] if self.final else None
        return {
            "final": final,
            "best_val_loss": self._best_val_loss,
            "recent_losses": list(self._recent_losses),
            "loss_spikes": self._loss_spikes,
            "skipped_steps": self._skipped_steps,
            "health": [self._health_flag],
            "seconds": dict(self.stopwatch.seconds),
            "elapsed_s": self._elapsed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.final = Evaluation(*state["final"]) if state["final"] else None
        self._best_val_loss = state["best_val_loss"]
        self._recent_losses.extend(state["recent_losses"])
        self._loss_spikes = state["loss_spikes"]
        self._skipped_steps = state.get("skipped_steps", 0)
        self._health_flag = state["health"][0]
        self.stopwatch.seconds |= state["seconds"]
        self._earlier_s = state["elapsed_s"]

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` (nats per token) lies far above those of the last steps; counts it, and remembers the loss."""
        recent, spike = self._recent_losses, self.config.spike
        spiked = len(recent) == recent.maxlen and loss > median(recent) + spike.above
        recent.append(loss)
        self._loss_spikes += spiked
        return spiked

    def skipped(self) -> None:
        """Count a step without update."""
        self._skipped_steps += 1

    def after_step(self, step: int, loss: float, grad_norm: float, lr: float | None, step_time: float) -> None:
        """Count the step, and one `train` row at its period. `step_time` in seconds."""
        self.step, self._train_loss, self._step_time = step, loss, step_time
        if self._under_way and not self._under_way.together and self._under_way.found.done():
            self.take_up()  # by itself, and so at any step
        if step % self.config.tracking.log_every == 0 or step == self.config.steps:
            self._emit(
                "train",
                train_loss=loss,
                lr=lr,
                grad_norm=grad_norm,
                step_time_s=step_time,
                tokens_per_s=self.config.tokens_per_step / step_time,
                **(self._throughput.row(step_time) if self._throughput else {}),
                elapsed_s=self._elapsed,
            )

    def evaluation(self, result: Evaluation) -> None:
        """One `val` row."""
        self.final = result
        if self._best_val_loss is None or result.val_loss < self._best_val_loss:
            self._best_val_loss = result.val_loss
        self._emit(
            "val",
            val_loss=result.val_loss,
            val_accuracy=result.val_accuracy,
            val_perplexity=_perplexity(result.val_loss),
            elapsed_s=self._elapsed,
        )

    def measure(
        self,
        layout: Layout,
        peaks: Peaks,
        updates: dict[str, Tensor] | None = None,
        momenta: dict[str, Tensor] | None = None,
        look: Look | None = None,
    ) -> None:
        """Measure the hidden matrices; `take_up` writes their rows, at once unless training goes on meanwhile.

        Args:
            layout: with its matrices whole; where it is shared each rank measures its own, and all call this.
            updates, momenta, look: what the step left; None before the first step, momenta also where none are kept.
        """
        if updates and momenta is None and not self._told:
            self._told = True
            log.warning(
                "%s keeps no momentum_buffer and no exp_avg: the columns of its momentum are null; its class may name "
                "what it averages: momentum_key = ...",
                self.config.optimizer.name,
            )
        self.take_up()  # at most one is under way
        together = layout.shared or (look is not None and look.together)
        layers = layout.shared or self._writer is not None
        if layers or together:
            device = layout.matrices[0].parameter.device
            with self.stopwatch.timed("tracking"):
                snapshot = Snapshot.of(layout, peaks, updates, momenta, look, copied=self._beside)
                found = begin(partial(snapshot.measure, layers=layers), device, beside=self._beside)
            self._under_way = UnderWay(self.step, found, together)
            if not self._beside:
                self.take_up()

    @property
    def awaits_all(self) -> bool:
        """Whether a measurement is under way that all ranks take up together."""
        return self._under_way is not None and self._under_way.together

    def take_up(self) -> None:
        """Write the rows of the measurement under way, if there is one, and those that came after its step.

        Waits for it, and raises what went wrong there. All ranks call it at the same steps.
        """
        if self._under_way is None:
            return
        with self.stopwatch.timed("tracking"):
            under_way = self._under_way
            under_way.found.exception()  # waits; whom Ctrl-C interrupts here may take it up later
            try:
                found = under_way.found.result()
                if under_way.together:
                    found = Found.joined(distributed.gathered(found))
                self._measured(under_way.step, found)
            finally:
                self._let_go()

    def _let_go(self) -> None:
        """Nothing is under way any more, and rows need not wait for it."""
        self._under_way, held, self._held = None, self._held, []
        for table, row in held:
            self._write(table, **row)

    def _measured(self, step: int, found: Found) -> None:
        """Rows of optimizer step `step`, and a look at whether the optimizer still optimizes."""
        if self._writer is None:
            return
        health = found.health()
        self._health_flag = self._health_flag or failing(step, health)  # the first finding stays
        at = {"step": step, "tokens": step * self.config.tokens_per_step}
        for table, row in rows(self._matrices, found, health, spectra=self.config.has_spectra(step)):
            self._write(table, **at, **row)

    def progress(self) -> Progress:
        """Where the run stands."""
        return Progress(
            run_id=self.config.run_id,
            step=self.step,
            steps=self.config.steps,
            train_loss=self._train_loss,
            val_loss=self.final.val_loss if self.final else None,
            tokens=self.step * self.config.tokens_per_step,
            tokens_per_s=self.config.tokens_per_step / self._step_time if self._step_time else None,
            elapsed_s=self._elapsed,
            attempt=self.attempt,
            val_accuracy=self.final.val_accuracy if self.final else None,
        )

    def end(
        self,
        status: str,
        error: str | None = None,
        failure: Kind | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """Close the run's record: every row, then how it ended. `error` says why, where it is not `done`.

        `settle` is called before it says so: it waits for what else must be stored by then.
        """
        self.status, self.error, self.failure = status, error, failure
        self._break_off()
        if self._storage is None:
            return
        if self._writer is None and not self.overtaken:  # it ended before it could start
            self.start([], {}, head_point(self._storage, self.config.run_id))
        with self._unless_overtaken():
            if self._writer:
                self._end(self._writer, status, error, settle)
        if self.overtaken:  # the run is another attempt's now, and so is its record
            self.status, self.error, self.failure = "stopped", self.overtaken, None

    def _break_off(self) -> None:
        """Take up what is still under way when a run ends by an error.

        What other ranks have a part in is left out: it belongs to an attempt that nobody finishes, and the next
        measures it again.
        """
        if self.awaits_all:
            self._let_go()
        try:
            self.take_up()
        except Exception:
            log.warning("what was being measured went wrong as well", exc_info=True)

    def _end(self, writer: RunWriter, status: str, error: str | None, settle: Callable[[], None]) -> None:
        if self._throughput is None:
            writer.end(status=status, error=error)  # how far the attempts before came is in their own records
            return
        device = self._matrices[0].parameter.device
        last, final = self.final, self.final if status == "done" else None
        writer.end(
            settle=settle,
            status=status,
            error=error,
            steps=self.step,
            tokens=self.step * self.config.tokens_per_step,
            final_val_loss=final.val_loss if final else None,
            last_val_loss=last.val_loss if last else None,
            final_val_accuracy=final.val_accuracy if final else None,
            best_val_loss=self._best_val_loss,
            wall_s=self._elapsed,
            train_s=sum(self.stopwatch.seconds[part] for part in TRAINING),
            loss_spikes=self._loss_spikes,
            skipped_steps=self._skipped_steps,
            health=self._health_flag,
            **{f"{part}_s": seconds for part, seconds in self.stopwatch.seconds.items()},
            **self._throughput.total(self.step * self.config.tokens_per_step),
            peak_memory_bytes=environment.peak_memory_bytes(device),
        )

    @property
    def _elapsed(self) -> float:
        return self._earlier_s + time.perf_counter() - self._started

    def _emit(self, table: str, **values: Any) -> None:
        """One row of the step; it waits behind a measurement under way, so that rows are numbered by their steps."""
        row = {"step": self.step, "tokens": self.step * self.config.tokens_per_step, **values}
        if self._under_way:
            self._held.append((table, row))
        else:
            self._write(table, **row)

    def _write(self, table: str, **row: Any) -> None:
        if self._writer is None:
            return
        with self._unless_overtaken():
            self._writer.emit(table, **row)
            if time.perf_counter() - self._flushed > self.config.tracking.flush_every_s:
                self._writer.flush(wait=False)
                self._flushed = time.perf_counter()

    @contextmanager
    def _unless_overtaken(self) -> Iterator[None]:
        """Write no more once another attempt has the run; the loop asks for `overtaken` where all ranks can leave."""
        try:
            yield
        except Superseded as reason:
            self._writer, self.overtaken = None, str(reason)
