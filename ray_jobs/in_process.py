"""The twin of `run_on_ray` without Ray: the same runs, one after another in this process.

It is for a debugger, which sees nothing of what other processes do, and for tests that want results and not Ray. Rows
are the same bit for bit as those of one worker on Ray.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from muon_core.config.run import RunConfig
from muon_core.failures import classify
from muon_core.progress import Progress
from muon_core.recorder import start_record
from muon_core.store.keys import next_start
from muon_core.store.ledger import Rate
from muon_core.store.storage import OUT_OF_USE, Storage
from muon_core.store.writer import record_failure
from muon_core.train import train
from ray_jobs.admission import Admission
from ray_jobs.retrying import exhausted
from ray_jobs.run_output import run_output
from ray_jobs.run_queue import RunState, Watch
from ray_jobs.searching import Search
from ray_jobs.stop_signals import stop_signals
from ray_jobs.terms import Terms
from ray_jobs.workers import forget_previous_run
from search_spaces.spec import Resources

WATCH_EVERY_S = 0.5
HERE = "this process"  # in the place of a slot's name


def run_here(
    runs: Sequence[RunConfig],
    storage: Storage,
    resources: Resources,
    terms: Terms | None = None,
    *,
    watch: Watch = lambda states: None,
) -> list[RunState]:
    """Train `runs` in order, then what `terms.search` chooses, and return their states; how each ended is in the
    store, if it began.

    `watch` is called in this thread, between two steps.

    Raises: ValueError for more than one worker, or a GPU that is not there; KeyboardInterrupt after the run at which
        Ctrl-C or SIGTERM came was stopped; StoreUnavailable or StoreUnwritable if the store failed under a run.
    """
    check_resources(resources)
    device = torch.device("cuda", 0) if resources.gpus_per_worker else torch.device("cpu")
    states: list[RunState] = []
    terms = terms or Terms()
    admission, rate = terms.admission, terms.prices.rate_here(resources)
    with _threads(resources.threads_per_worker), stop_signals() as signals:
        for run in _in_turn(runs, terms.search):
            state = RunState(run.run_id, HERE)
            states.append(state)
            if reason := admission.refuse(run.run_id, rate):
                state.end("left out", reason)
            else:
                admission.start(run.run_id)
                reporter = _Reporter(states, watch, signals, admission)
                _train(run, storage, state, device, rate, reporter, terms)
                admission.end(run.run_id, state.status, state.error, whole=state.is_whole(state.status))
            if terms.search:
                terms.search.note(state.status)
            watch(states)
            if signals:
                raise KeyboardInterrupt
    return states


def _in_turn(runs: Sequence[RunConfig], search: Search | None) -> Iterator[RunConfig]:
    """`runs`, then those that `search` chooses when the one before has ended."""
    yield from runs
    while search and (chosen := search.next()):
        yield chosen.config


class _Reporter:
    """Keeps the state of the newest run up to date and lets `watch` see it now and then; stops at a signal."""

    def __init__(self, states: list[RunState], watch: Watch, signals: list[int], admission: Admission) -> None:
        self._states, self._watch, self._signals, self._admission = states, watch, signals, admission
        self._watched = 0.0

    @property
    def is_stopping(self) -> bool:
        """Whether a signal has come."""
        return bool(self._signals)

    def claimed(self, attempt: str) -> None:
        """The run is this process's: that is shown before its model and data are made, which may take long."""
        self._states[-1].attempt = attempt
        self._show()

    def __call__(self, progress: Progress) -> bool | str:
        state = self._states[-1]
        state.advance(progress)
        state.reason = self._admission.stop(progress)
        if time.monotonic() - self._watched > WATCH_EVERY_S:
            self._show()
        return state.reason or not self._signals

    def _show(self) -> None:
        self._watch(self._states)
        self._watched = time.monotonic()


def _train(
    run: RunConfig,
    storage: Storage,
    state: RunState,
    device: torch.device,
    rate: Rate,
    report: _Reporter,
    terms: Terms,
) -> None:
    """One run to its end, tried again where it may be; one that fails has said so in the store."""
    while state.ended_at is None:
        forget_previous_run()
        state.start()
        # What a start has begun the next one goes on with.
        resume = run.run_id not in terms.again or state.is_begun
        try:
            with run_output(storage, run.run_id, next_start()):
                outcome = train(
                    run,
                    storage,
                    report=report,
                    device=device,
                    resume=resume,
                    rate=rate,
                    claimed=report.claimed,
                )
        except OUT_OF_USE as error:
            state.end("stopped", str(error))
            raise
        except Exception as error:
            kind, text = classify(error), traceback.format_exc()
            state.fail(kind)
            if report.is_stopping or exhausted(terms.retries, state.failures):
                state.end("failed", text)
                record_failure(storage, run.run_id, start_record(run), text, state.attempt, kind)
        else:
            state.end(outcome.status, state.reason if outcome.status == "stopped" and state.reason else outcome.error)


def check_resources(resources: Resources) -> None:
    """Raises ValueError for what takes Ray to offer, or a GPU that is not there."""
    if resources.workers > 1:
        raise ValueError(f"resources.workers is {resources.workers}: without Ray a run has one; set it to 1")
    if resources.gpus_per_worker and not torch.cuda.is_available():
        raise ValueError(f"a run needs {resources.gpus_per_worker:g} GPUs, this machine has 0; ask for none")


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute with so many threads, as a worker of a slot does."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
