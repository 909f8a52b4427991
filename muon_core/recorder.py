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
from statistics import median
from typing import Any

import torch
from torch import Tensor

from muon_core import environment
from muon_core.code_state import code_state
from muon_core.config.reference import ReferenceConfig
from muon_core.config.run import RunConfig
from muon_core.evaluate import Evaluation
from muon_core.failures import Kind
from muon_core.layout import Layout
from muon_core.lease import Lease
from muon_core.metrics.chance import chance_alignment
from muon_core.metrics.layers import FLAGS, SUBSPACES, layer_metrics
from muon_core.metrics.subspaces import SUBSPACE
from muon_core.model import HiddenMatrix
from muon_core.optim.health import Health, failing
from muon_core.peaks import Peaks
from muon_core.progress import Progress
from muon_core.stopwatch import TRAINING, Stopwatch
from muon_core.store.keys import ROOT
from muon_core.store.parquet import Row
from muon_core.store.storage import Storage
from muon_core.store.writer import ResumePoint, RunWriter, Superseded, head_point
from muon_core.throughput import Throughput

log = logging.getLogger(__name__)
_OF_STEP = ("update_norm", "grad_norm", "grad_norm_peak", *SUBSPACES)
"""What the weights alone do not have."""
_OF_MOMENTUM = tuple(column for column in SUBSPACES if column.startswith("momentum_"))


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


def _measure(
    matrices: list[HiddenMatrix],
    norms: dict[str, Tensor],
    updates: dict[str, Tensor] | None,
    momenta: dict[str, Tensor] | None,
) -> dict[str, tuple[dict[str, Any], list[float]]]:
    """Columns and singular values, with zeros behind, of each matrix by its name."""
    weights = [matrix.parameter.detach() for matrix in matrices]
    changes = [updates[matrix.name] for matrix in matrices] if updates else weights
    averages = [momenta[matrix.name] for matrix in matrices] if momenta else changes
    measured = layer_metrics(weights, changes, averages)
    columns = {"update_norm": torch.stack(torch._foreach_norm(changes)), **norms, **measured.columns}
    table = torch.stack([column.double() for column in columns.values()], dim=1)
    copied = torch.cat([table, measured.spectra], dim=1).tolist()  # all there is to copy from the device
    found: dict[str, tuple[dict[str, Any], list[float]]] = {}
    for matrix, values in zip(matrices, copied, strict=True):
        named: dict[str, Any] = dict(zip(columns, values, strict=False))
        named |= {flag: bool(named[flag]) for flag in FLAGS}
        if momenta is None:
            named |= dict.fromkeys(_OF_MOMENTUM)
        if updates is None:
            named |= dict.fromkeys(_OF_STEP)
        found[matrix.name] = named, values[len(columns) :]
    return found


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
        self._told = False
        self._earlier_s = 0.0
        self._started = self._flushed = time.perf_counter()

    def start(self, matrices: list[HiddenMatrix], facts: Row, point: ResumePoint | None = None) -> None:
        """Write the start record; `facts` are columns of `runs` the config does not hold, `point` what is continued."""
        self._matrices = matrices
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

    def layers(
        self,
        layout: Layout,
        peaks: Peaks,
        updates: dict[str, Tensor] | None = None,
        momenta: dict[str, Tensor] | None = None,
    ) -> None:
        """One `layers` row per hidden matrix and, where they are due, one `spectra` row.

        Args:
            layout: with its matrices whole; where it is shared each rank measures its own, and all call this.
            updates, momenta: by parameter name, the step's change without decay and what the optimizer averages; None
                before the first step, and if it keeps no average.
        """
        if updates and momenta is None and not self._told:
            self._told = True
            log.warning(
                "%s keeps no momentum_buffer and no exp_avg: the columns of its momentum are null; its class may name "
                "what it averages: momentum_key = ...",
                self.config.optimizer.name,
            )
        if self._writer or layout.shared:
            with self.stopwatch.timed("tracking"):
                measured = layout.of_all(_measure(layout.matrices, peaks.of_mine(), updates, momenta))
                for matrix in self._matrices:
                    self._layer(matrix, *measured[matrix.name])

    def _layer(self, matrix: HiddenMatrix, named: dict[str, Any], singular_values: list[float]) -> None:
        where = {"layer": matrix.layer, "projection": matrix.projection}
        rows, cols = matrix.parameter.shape
        k = min(SUBSPACE, rows, cols)
        chance = {"alignment_chance": chance_alignment(rows, k), "right_alignment_chance": chance_alignment(cols, k)}
        self._emit("layers", **where, rows=rows, cols=cols, **chance, **named)
        if self.config.has_spectra(self.step):
            self._emit("spectra", **where, singular_values=singular_values[: min(rows, cols)])

    def health(self, health: Health) -> None:
        """One `health` row per hidden matrix, and a look at whether the optimizer still optimizes."""
        self._health_flag = self._health_flag or failing(self.step, health)  # the first finding stays
        for matrix in self._matrices:
            self._emit("health", layer=matrix.layer, projection=matrix.projection, **health[matrix.name])

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
        if self._storage is None:
            return
        if self._writer is None and not self.overtaken:  # it ended before it could start
            self.start([], {}, head_point(self._storage, self.config.run_id))
        with self._unless_overtaken():
            if self._writer:
                self._end(self._writer, status, error, settle)
        if self.overtaken:  # the run is another attempt's now, and so is its record
            self.status, self.error, self.failure = "stopped", self.overtaken, None

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
        if self._writer is None:
            return
        with self._unless_overtaken():
            self._writer.emit(table, step=self.step, tokens=self.step * self.config.tokens_per_step, **values)
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
