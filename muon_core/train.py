"""The training loop: one run from one RunConfig, in one process or on every rank of a process group.

The loop evaluates, steps and records, and knows of nothing above it: whoever runs it hands in where results go and whom
to report to. Every rank walks the same path, because a collective that one rank skips hangs the others: what rank 0
alone decides (go on or stop, which checkpoint to take up) is shared before anybody acts on it. A run that ends other
than by an error of the program, also by diverging, has a result, and its record says which.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from muon_core import distributed, environment, seeds
from muon_core.config.memory import check_fits
from muon_core.config.run import RunConfig
from muon_core.evaluate import Evaluation, evaluate
from muon_core.failures import PREEMPTED, Kind, classify
from muon_core.fit import fit_micro_batches
from muon_core.gradients import ddp_gradients, tree_gradients
from muon_core.lease import HeldElsewhere, Lease, claim
from muon_core.model import next_token_loss
from muon_core.optim.schedules import lr_multiplier
from muon_core.optim.sharding import check_replicas
from muon_core.progress import Progress
from muon_core.recorder import Recorder, start_record
from muon_core.resume import Saver, finished, restore
from muon_core.sources import fetch_source
from muon_core.state import TrainState, autocast, prepare, settle_buckets, start_facts
from muon_core.stopwatch import Stopwatch
from muon_core.store.ledger import LOCAL, Rate
from muon_core.store.parquet import Row
from muon_core.store.storage import OUT_OF_USE, Storage, patiently
from muon_core.store.writer import PATIENCE_S, record_failure
from muon_core.unread import Unread


class Diverged(Exception):
    """The loss is no longer finite, or spiked where that ends a run; raised before the update that would follow."""


class Stopped(Exception):
    """Whoever watches the run asked for its end."""


Report = Callable[[Progress], bool | str]
"""Called on rank 0 before the first evaluation, after it, and after every step. False ends the run as `stopped`; so
does a text, which is recorded as the reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, or `held`: another process trains it. The same on every rank, but for `error`."""

    run_id: str
    status: str
    steps: int
    final: Evaluation | None
    error: str | None = None


def train(
    config: RunConfig,
    storage: Storage | None,
    *,
    report: Report = lambda progress: True,
    device: torch.device | None = None,
    resume: bool = True,
    after: str | None = None,
    failure: Kind = "infrastructure",
    rate: Rate = LOCAL,
    claimed: Callable[[str], None] = lambda attempt: None,
    tokens: Path | None = None,
) -> Outcome:
    """Train `config` to its end and write its rows to `storage` (None: nowhere). All ranks call it alike.

    A run that is finished is not trained again: its outcome is read. Whoever planned it may have looked hours ago. One
    that another process trains is left alone.

    Args:
        report: hears of progress on rank 0 and may end the run.
        resume: continue from what `storage` has of the run: its outcome, or its newest checkpoint. False begins again.
        after: id of an attempt that is known to be over, though its process could not say so.
        failure: what ended that attempt.
        rate: what the machines cost, for the ledger.
        claimed: told on rank 0, before anything is loaded, the id of the attempt that begins.
        tokens: folder with the corpus prepared, where that was done elsewhere; None prepares it if needed.
    Raises: whatever goes wrong, after it was recorded as a failed run. A diverged run is a result, not an error.
    """
    lease, holder = _claim(config, storage, after, failure, rate) if storage else (None, None)
    if holder:
        return Outcome(config.run_id, "held", 0, None, holder)
    if lease:
        claimed(lease.attempt)
    stopwatch = Stopwatch()
    recorder = Recorder(config, storage if distributed.rank() == 0 else None, stopwatch, lease)  # others write nothing
    try:
        if storage and resume and (end := finished(config, storage)):
            if lease:
                lease.withdraw()
            return _outcome_of(end)
        _train(config, storage, recorder, report, device or torch.device("cpu"), tokens, resume=resume)
    finally:
        if lease and recorder.status == "running":
            lease.end("lost", failure="infrastructure")
        elif lease:
            lease.end(recorder.status, failure=recorder.failure, error=recorder.error)
    return Outcome(config.run_id, recorder.status, recorder.step, recorder.final, recorder.error)


def _train(
    config: RunConfig,
    storage: Storage | None,
    recorder: Recorder,
    report: Report,
    device: torch.device,
    tokens: Path | None,
    *,
    resume: bool,
) -> None:
    """Train, and record how the run ended."""
    saver = Saver(config, storage)
    attempt: str | None = None
    try:
        config.check_workers(distributed.world_size())
        check_memory(config, device)
        if storage:
            patiently(lambda: fetch_source(config.optimizer, storage), PATIENCE_S)
        state = prepare(config, device, recorder.stopwatch, tokens)
        facts = start_facts(config, state)
        # The hashes of weights and first batch come before: they prove what the seed gave, not where the run stands.
        point = restore(config, state, recorder, storage) if storage and resume else None
        fit_micro_batches(config, state)
        settle_buckets(config, state)
        facts["environment_json"] = json.dumps(state.environment, sort_keys=True)
        recorder.start(state.layout.all_matrices, facts, point, beside=state.beside)
        attempt = distributed.share(recorder.attempt)
        try:
            _loop(config, state, recorder, saver, report)
        except (Diverged, Stopped):  # on all ranks alike
            recorder.take_up()
            raise
        recorder.take_up()
        saver.finish(state, recorder)
        recorder.end("done", settle=saver.settle)
    except Diverged as reason:
        recorder.end("diverged", str(reason))
    except Stopped as reason:
        recorder.end("stopped", str(reason), "preemption" if str(reason).startswith(PREEMPTED) else None)
    except KeyboardInterrupt:
        recorder.end("stopped", "interrupted")
        raise
    except OUT_OF_USE as error:  # it is not the run that failed: it is there to be continued
        recorder.end("stopped", str(error))
        raise
    except Exception as error:
        kind = classify(error)
        if kind != "infrastructure":  # a worker that died says nothing about this run: it is tried again
            _record_failure(recorder, config, storage, attempt, kind)
        raise
    finally:
        saver.close()


def check_memory(config: RunConfig, device: torch.device) -> None:
    """Raises DoesNotFit, a ValueError of one line, if the run needs more memory than `device` has free."""
    where = "this machine" if device.type == "cpu" else environment.device_name(device)
    check_fits(config, environment.free_memory_bytes(device), where, distributed.world_size())


def _claim(
    config: RunConfig, storage: Storage, after: str | None, failure: Kind, rate: Rate
) -> tuple[Lease | None, str | None]:
    """Rank 0's lease on the run and, on every rank, who holds it in its place."""
    lease, holder = None, None
    if distributed.rank() == 0:
        try:
            lease = patiently(lambda: claim(storage, config.run_id, rate, after=after, failure=failure), PATIENCE_S)
        except HeldElsewhere as held:
            holder = str(held)
    return lease, distributed.share(holder)


def _outcome_of(end: Row) -> Outcome:
    """Of a run whose end record is `end`."""
    loss, accuracy = end["final_val_loss"], end["final_val_accuracy"]
    final = None if loss is None or accuracy is None else Evaluation(loss, accuracy)
    return Outcome(end["run_id"], end["status"], end["steps"] or 0, final, end["error"])


def _record_failure(
    recorder: Recorder, config: RunConfig, storage: Storage | None, attempt: str | None, failure: Kind
) -> None:
    """Record the exception being handled; a rank other than 0 speaks up only if rank 0 does not."""
    text = traceback.format_exc()
    if distributed.rank() == 0:
        recorder.end("failed", text, failure)
    elif storage is not None:
        time.sleep(2)  # rank 0 mostly meets the same error, and its record has the rows before it
        record_failure(storage, config.run_id, start_record(config), text, attempt, failure)


def _loop(config: RunConfig, state: TrainState, recorder: Recorder, saver: Saver, report: Report) -> None:
    """Evaluate, then step until the end; every rank walks the same path."""
    tracking, steps, seconds = config.tracking, config.steps, state.stopwatch.seconds
    main, workers = distributed.rank() == 0, distributed.world_size()
    answer = not main or report(recorder.progress())
    if state.step == 0:  # a run that is taken up again has this evaluation already
        recorder.evaluation(_evaluate(config, state, recorder))
        with state.layout.whole():
            state.peaks.after_step()
            recorder.measure(state.layout, state.peaks)
        answer = not main or report(recorder.progress())
    go_on = answer is True
    unread, waited_s = Unread(), 0.0
    while state.step < steps and distributed.agree(go_on, state.device):
        begin, tracking_s = time.perf_counter(), seconds["tracking"]
        last = state.step + 1 == steps
        track = _is_tracked(config, state.step + 1)
        look = _is_looked_at(config, state.step + 1) or saver.clock_says_so()
        found = _optimizer_step(config, state, recorder, unread, track=track, look=look)
        waited_s += time.perf_counter() - begin - (seconds["tracking"] - tracking_s)
        recorder.step = state.step
        if found:
            recorder.after_step(state.step, *found[-1], state.optimizers.hidden_lr, waited_s / len(found))
            waited_s = 0.0
        if track and state.updates:  # a step that was skipped has nothing to show
            with state.layout.whole():
                left = state.optimizers
                recorder.measure(state.layout, state.peaks, state.updates, left.momenta(), left.look())
        if last or state.step % tracking.eval_every == 0:
            recorder.evaluation(_evaluate(config, state, recorder))
        answer = not main or report(recorder.progress())
        go_on = answer is True and not recorder.overtaken
        distributed.check_whole(workers)  # before this step is saved
        if look or not go_on:
            _judge(config, recorder, state.step, unread.read())
            saver.after_step(state, recorder, stopping=not go_on)
    if state.step < steps:
        raise Stopped(answer if isinstance(answer, str) else "asked to stop")


def _optimizer_step(
    config: RunConfig, state: TrainState, recorder: Recorder, unread: Unread, *, track: bool, look: bool
) -> list[tuple[float, float]]:
    """One optimizer step.

    Returns: with `look`, of all steps since the last look, (train loss in nats per token over the whole batch, global
        gradient norm); else nothing, and nobody waits for the device.
    """
    # Nothing is updated before loss and gradients are known to be finite: a diverged run keeps its last weights. Of
    # steps without a look that is found out at the next, before anything is recorded or saved: the record is the same.
    state.optimizers.set_lr_multiplier(lr_multiplier(config.schedule, state.step, config.steps))
    loss = _gradients(config, state)
    with state.stopwatch.timed("optimizer"):
        unread.add(loss, state.layout.gradient_norm())
    found, wrong = [], False
    if look:
        with state.stopwatch.timed("gradients"):  # what is waited for is their computation
            found = unread.read()
        wrong = _judge(config, recorder, state.step + 1, found)
    with state.stopwatch.timed("optimizer"):
        if wrong:
            recorder.skipped()
            state.updates = {}
        else:
            if track:
                recorder.take_up()  # what is under way holds its copies until then, and this step makes its own
            _update(config, state, track=track)
        state.optimizers.zero_grad()
        state.model.zero_grad()  # of shares, for which optimizers have others
    state.step += 1
    if config.check_replicas_every and not state.layout.shared and state.step % config.check_replicas_every == 0:
        check_replicas(state.model.named_parameters(), state.step)
    return found


def _is_looked_at(config: RunConfig, step: int) -> bool:
    """Whether loss and gradient norm are read once optimizer step `step`, counted from 1, has its gradients.

    Wherever something is recorded or saved of it; and at all steps where their update hangs by it, or where workers
    meet at all steps anyway.
    """
    tracking, spike, save_every = config.tracking, config.spike, config.checkpoint.every_steps
    return (
        step == config.steps
        or any(step % every == 0 for every in (tracking.log_every, tracking.eval_every, save_every) if every)
        or _is_tracked(config, step)
        or spike.action == "end"
        or spike.nonfinite == "skip"
        or distributed.world_size() > 1
    )


def _judge(config: RunConfig, recorder: Recorder, step: int, found: Sequence[tuple[float, float]]) -> bool:
    """Whether the last of `found`, loss and gradient norm of the steps up to `step`, is not finite and to be skipped.

    Raises: Diverged for the first that ends the run.
    """
    wrong: str | None = None
    for done, (loss, grad_norm) in enumerate(found, step - len(found)):
        wrong = None if math.isfinite(loss) else f"train loss {loss}"
        if not wrong and recorder.is_spike(loss) and config.spike.action == "end":
            raise Diverged(f"train loss {loss:.4f} at step {done} spiked by more than {config.spike.above} nats")
        wrong = wrong or (None if math.isfinite(grad_norm) else f"gradient norm {grad_norm}")
        if wrong and config.spike.nonfinite == "end":
            recorder.step = done
            raise Diverged(f"{wrong} at step {done}")
    return wrong is not None


def _update(config: RunConfig, state: TrainState, *, track: bool) -> None:
    """Step the weights, with their norms and those of the gradients."""
    with state.layout.whole(step=True):
        state.peaks.before_step()
        state.updates = state.optimizers.step(
            state.step, keep_updates=track, next_keeps=_is_tracked(config, state.step + 2)
        )
        state.peaks.after_step()


def _is_tracked(config: RunConfig, step: int) -> bool:
    """Whether the matrices are looked at once `step` optimizer steps are done."""
    return config.has_spectra(step) or step % config.tracking.track_every == 0


def _gradients(config: RunConfig, state: TrainState) -> Tensor:
    """Gradients of the mean loss over the step's batch; returns that loss in nats per token, on the device."""
    rank, world_size = distributed.rank(), distributed.world_size()
    num_local = max(1, state.micro_batches // world_size)
    with state.stopwatch.timed("data"):
        windows = state.batches.of(state.step).chunk(num_local)

    def micro_loss(index: int) -> Tensor:
        if (
            config.model.dropout
        ):  # micro-batches are numbered over all ranks, so dropout does not depend on their number
            seeds.seed_dropout(config.stream_seed("dropout"), state.step, rank * num_local + index)
        with autocast(config, state.device):
            return next_token_loss(state.replica, windows[index])

    with state.stopwatch.timed("gradients"):
        if config.reduction == "tree":
            loss = tree_gradients(list(state.model.parameters()), micro_loss, num_local)
        else:
            loss = ddp_gradients(state.replica, micro_loss, num_local)
    with state.stopwatch.timed("data"):
        state.batches.foresee(state.step + 1)  # a GPU has been told all of this step's passes, and computes them
    return loss


def _evaluate(config: RunConfig, state: TrainState, recorder: Recorder) -> Evaluation:
    with state.stopwatch.timed("evaluation"), autocast(config, state.device):
        found = evaluate(
            state.model,
            state.data.validation().to(state.device),
            config.batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            in_step=state.layout.shared,
        )
    if state.step and not math.isfinite(found.val_loss):
        raise Diverged(f"val loss {found.val_loss} after step {state.step}")
    return found
