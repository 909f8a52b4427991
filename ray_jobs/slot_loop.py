"""What the workers of a slot do: train the run the queue hands out, say how it ended, and ask for the next."""

from __future__ import annotations

import time
import traceback
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train.torch import get_device

from muon_core import distributed
from muon_core.config.run import RunConfig
from muon_core.data.sharing import fetch
from muon_core.failures import classify
from muon_core.progress import Progress
from muon_core.recorder import start_record
from muon_core.store.ledger import Rate
from muon_core.store.open import open_storage
from muon_core.store.storage import OUT_OF_USE
from muon_core.store.writer import record_failure
from muon_core.train import train
from ray_jobs.retrying import Preempted
from ray_jobs.run_output import run_output
from ray_jobs.run_queue import Task
from ray_jobs.same_store import check_mark
from ray_jobs.slot_settings import SlotSettings
from ray_jobs.workers import forget_previous_run

REPORT_EVERY_S = 0.5  # a report is a round trip to the queue; the display needs no more


def slot_loop(config: dict[str, Any]) -> None:
    """Train run after run until the slot closes. Every rank runs it; a new worker group takes the unfinished run up."""
    settings: SlotSettings = config["settings"]
    slot: str = config["slot"]
    torch.set_num_threads(settings.resources.threads_per_worker)
    queue = settings.find_queue()
    rate, is_first = settings.prices.rate_here(settings.resources), True
    while task := _next_task(queue, slot, rate):
        forget_previous_run()
        _train_task(task, queue, slot, settings, rate, check=is_first)
        is_first = False


def _next_task(queue: Any, slot: str, rate: Rate) -> Task | None:
    """Rank 0 asks the queue, every rank gets the answer."""
    box = [ray.get(queue.next.remote(slot, rate)) if distributed.rank() == 0 else None]
    if distributed.world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def _train_task(task: Task, queue: Any, slot: str, settings: SlotSettings, rate: Rate, *, check: bool) -> None:
    """One run to its end, after a `check` that the store is the sweep's.

    Raises after an unexpected error, so that fresh processes take the next run.
    """
    last_report, evaluated = 0.0, None

    def report(progress: Progress) -> bool | str:
        nonlocal last_report, evaluated
        has_news = progress.val_loss != evaluated or not 1 < progress.step < progress.steps
        if time.monotonic() - last_report < REPORT_EVERY_S and not has_news:
            return True
        last_report, evaluated = time.monotonic(), progress.val_loss
        try:
            answer: bool | str = ray.get(queue.report.remote(slot, task.turn, progress))
            return answer
        except RayError:  # the sweep is gone, which is no fault of this run: it saves itself, to be continued
            return False

    if task.over:
        if distributed.rank() == 0:
            _give_up(task, task.over, queue, slot, settings)
        return
    try:
        config, storage = RunConfig.model_validate_json(task.config), open_storage(settings.store)
        if check:
            check_mark(storage, settings.mark)
        with run_output(storage, config.run_id, task.log, rank=distributed.rank(), whole_process=True):
            outcome = train(
                config,
                storage,
                report=report,
                device=get_device(),
                resume=not task.again,
                after=task.attempt,
                failure=task.failure or "infrastructure",
                rate=rate,
                claimed=lambda attempt: queue.claim.remote(slot, task.turn, attempt),
                tokens=fetch(task.tokens, storage) if task.tokens else None,
            )
    except Exception as error:
        if isinstance(error, OUT_OF_USE):
            ray.get(queue.halt.remote(slot, task.turn, error))
        elif (kind := classify(error)) != "infrastructure":  # of which the slot hears by the worker that died
            ray.get(queue.fail.remote(slot, task.turn, task.starts, kind, traceback.format_exc()))
        raise
    if distributed.rank() == 0 and not ray.get(queue.finish.remote(slot, task.turn, outcome.status, outcome.error)):
        raise Preempted(outcome.error)


def _give_up(task: Task, reason: str, queue: Any, slot: str, settings: SlotSettings) -> None:
    """Record the run as failed."""
    ray.get(queue.finish.remote(slot, task.turn, "failed", reason))  # first, for what follows may fail here too
    config, storage = RunConfig.model_validate_json(task.config), open_storage(settings.store)
    record_failure(storage, config.run_id, start_record(config), reason, task.attempt, task.failure)
