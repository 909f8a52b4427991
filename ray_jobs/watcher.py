"""Looks at a sweep on Ray while it trains, from a thread: shows how it stands, and sees when it cannot go on."""

from __future__ import annotations

import threading
import time
from typing import Any, Self

import ray
from ray.exceptions import RayError

from muon_core.store.storage import StoreError
from ray_jobs.admission import Admission
from ray_jobs.autoscaler import what_is_missing
from ray_jobs.connection import RayLost, check_alive
from ray_jobs.places import is_waiting
from ray_jobs.run_queue import RunState, Watch
from ray_jobs.stop_signals import interrupt_main
from search_spaces.spec import Resources

WATCH_EVERY_S = 0.5
TELL_AFTER_S = 20.0  # that no run has workers, which take half of that to start


class Watcher:
    """Calls `watch` from a thread until the block is left, and once more then.

    It is the first to see that the sweep cannot go on, because its Ray died or the store failed, while the block would
    wait for Ray for ever, or train run after run in vain: then the block is interrupted, and `error` says why.
    The queue has a copy of `admission`: who closes this one closes that.
    """

    def __init__(self, queue: Any, watch: Watch, admission: Admission, sweep: str, resources: Resources) -> None:
        self._queue, self._watch, self._admission = queue, watch, admission
        self._sweep, self._resources = sweep, resources
        self._idle_since = self._asked_at = time.monotonic()
        self._waits_for: str | None = None
        self._closed: tuple[str, bool] | None = None
        self._states: dict[str, RunState] = {}
        self._num_ended = 0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._look_now_and_then, daemon=True)
        self.error: RayLost | StoreError | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _look_now_and_then(self) -> None:
        is_last = False
        while not is_last and not isinstance(self.error, RayLost):
            is_last = self._left.wait(WATCH_EVERY_S)
            halted: RayLost | StoreError | None
            try:
                halted = self._ask()
            except RayLost as error:
                halted = error
            except RayError as error:
                halted = RayLost(type(error).__name__)
            else:
                self._watch(self._told())
            if halted and not self.error:
                self.error = halted
                if not is_last:
                    interrupt_main()

    def _told(self) -> list[RunState]:
        """All runs; those that nobody can train say what they wait for."""
        going = [state for state in self._states.values() if state.ended_at is None]
        waiting = [state for state in going if state.is_waiting]
        now = time.monotonic()
        if not waiting or len(waiting) < len(going):
            self._idle_since, self._waits_for = now, None
        elif now - self._idle_since > TELL_AFTER_S and now - self._asked_at > TELL_AFTER_S:
            self._asked_at = now
            self._waits_for = what_is_missing(self._resources) if is_waiting(self._sweep) else None
        for state in waiting:
            state.waits_for = self._waits_for
        return list(self._states.values())

    def _ask(self) -> StoreError | None:
        """Learn what the queue knows, however long a busy machine takes to start it; returns what halted the runs.

        Raises RayLost or RayError.
        """
        if (closed := self._admission.closed) and closed != self._closed:
            self._closed = closed
            self._queue.close_admission.remote(*closed)
        answer = self._queue.look.remote(self._num_ended)
        check_alive()
        while not ray.wait([answer], timeout=WATCH_EVERY_S)[0]:
            check_alive()
        ended, going, halted = ray.get(answer)
        self._num_ended += len(ended)
        self._states |= {state.run_id: state for state in (*ended, *going)}
        error: StoreError | None = halted
        return error
