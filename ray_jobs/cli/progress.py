"""What the terminal shows while runs train: one live panel on a terminal, a line per event elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from muon_core.pace import time_left
from muon_core.spelling import counted
from muon_core.statuses import counts_text, last_line
from ray_jobs.cli.standing_text import best_text, spent_text
from ray_jobs.cli.text import GAP, aligned, clock_text, short_count
from ray_jobs.retrying import in_words
from ray_jobs.run_queue import RunState

if TYPE_CHECKING:
    from analysis.standing import Follower, Standing

log = logging.getLogger(__name__)
HEARTBEAT_S = 60.0
PATIENCE_S = 5.0  # of who looks at a terminal, at first
HEARTBEAT_RUNS = 3
PANEL_RUNS = 8  # with four lines above, a header and one below, the panel stays below 15 lines
TRUSTED = 0.05  # share of its steps from which on a run is judged by its own pace
LOOK_S = 5.0  # between two looks at the store, or longer where one takes long
COLUMNS = ["run", "step", "tokens", "train loss", "val loss", "tokens/s"]
NOT_DONE = ("waiting", "running", "held", "left out")
TOLD_AS = {"waiting": "planned", "held": "running"}
"""States of a run that its sweep calls otherwise: one that is held is trained by another process."""


class Display:
    """Follows the runs of a sweep; a context manager whose `update` is the launcher's `watch`.

    Runs in this process (not `on_ray`) are shown by lines only: a live panel would paint over a debugger's prompt.

    Args:
        total: how many runs this call trains.
        others: the other runs of the sweep, by status.
        follow: opens what tells the panel of the best arm and the money; it looks from a thread of its own.
        stopping: says why the sweep is to end, as runs that are left out for it say, once somebody has asked for that.
    """

    def __init__(
        self,
        total: int,
        console: Console | None = None,
        *,
        on_ray: bool = True,
        others: Mapping[str, int] | None = None,
        follow: Callable[[], Follower] | None = None,
        stopping: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._total, self._on_ray, self._others = total, on_ray, others or {}
        self._follow, self._stopping = follow, stopping
        self._asked: str | None = None
        self._waits_for: str | None = None
        self._console = console or Console(file=sys.stderr)  # as it is now: progress is no output of a run
        self._states: list[RunState] = []
        self._standing: Standing | None = None
        self._seen: dict[str, tuple[str, int]] = {}
        """Status and starts of each run, as last told."""
        self._left_out: set[str] = set()
        self._closed = threading.Event()
        self._started = self._spoke = time.monotonic()
        self._live: Live | None = None
        if self._console.is_interactive and on_ray:
            # Which asks for the panel at once.
            self._live = Live(get_renderable=self._panel, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
            if self._follow:
                threading.Thread(target=self._look_now_and_then, name="panel", daemon=True).start()
            return self
        runs = counted(self._total, "run")
        opening = f"starting Ray for {runs} ..." if self._on_ray else f"training {runs} in this process ..."
        self._console.print(opening, highlight=False)
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._closed.set()
        if self._live:
            self._live.stop()
            self._say(counts_text(self._counts()))

    def update(self, states: list[RunState]) -> None:
        """Show what changed since the last call."""
        self._states = states
        if (asked := self._stopping()) and asked != self._asked:
            self._asked = asked
            self._left_out.add(_kind(asked))
            self._say(asked)
        changed = [state for state in states if self._seen.get(state.run_id) != (state.status, state.starts)]
        for state in changed:
            self._seen[state.run_id] = state.status, state.starts
            # A panel shows what begins.
            if state.status not in ("waiting", "left out") and (not self._live or state.status != "running"):
                self._say(_event(state))
        waits_for = _waits_for(states)
        if waits_for and waits_for != self._waits_for and not self._live:
            self._say(waits_for)
        self._waits_for = waits_for
        self._say_left_out([state for state in changed if state.status == "left out"])
        if not self._live and time.monotonic() - self._spoke > self._heartbeat():
            running = [_where(state) for state in states if state.status == "running"]
            more = [f"and {len(running) - HEARTBEAT_RUNS} more"] if len(running) > HEARTBEAT_RUNS else []
            self._say("; ".join([counts_text(self._counts()), *running[:HEARTBEAT_RUNS], *more]))

    def _heartbeat(self) -> float:
        """Seconds without news until a line says where runs are: on a terminal few, and more the longer it takes."""
        if not self._console.is_interactive:
            return HEARTBEAT_S
        return min(HEARTBEAT_S, max(PATIENCE_S, (time.monotonic() - self._started) / 10))

    def _say_left_out(self, states: list[RunState]) -> None:
        """A line for each kind of reason: where the first does not fit into a budget, hundreds may not."""
        for state in states:
            kind = _kind(state.error)
            if kind not in self._left_out:
                self._left_out.add(kind)
                self._say(f"left out {state.run_id}, and what follows for that reason: {last_line(state.error)}")

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        done = sum(status not in NOT_DONE for status, _ in self._seen.values())
        clock = f"{clock_text(self._spoke - self._started):>6}"
        self._console.print(f"{clock}  {done:3d}/{self._total}  {text}", highlight=False, soft_wrap=True, markup=False)

    def _counts(self) -> Counter[str]:
        """All runs of the sweep by status."""
        counts = Counter(self._others)
        counts.update(TOLD_AS.get(state.status, state.status) for state in self._states)
        counts["planned"] += self._total - len(self._states)
        return counts

    def _panel(self) -> RenderableType:
        states = self._states
        head = [
            Text.assemble(
                (f"{self._phase(states)}  {clock_text(time.monotonic() - self._started)}", "bold"),
                *([f"  ETA {clock_text(left)}"] if (left := _time_left(states, self._total)) is not None else []),
                f"  {counts_text(self._counts())}",
            ),
            *self._facts(states),
        ]
        running = [state for state in states if state.status == "running"]
        rows = _table(running[:PANEL_RUNS], self._console.width) if running else []
        if len(running) > PANEL_RUNS:
            rows.append(f"and {len(running) - PANEL_RUNS} more")
        lines = [*head, *map(Text, rows)]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        # Whole, for what a cloud refuses comes last.
        waits_for = [Text(self._waits_for, "yellow")] if self._waits_for else []
        return Group(lines[0], *waits_for, *lines[1:])

    def _phase(self, states: list[RunState]) -> str:
        if not states:
            return "starting Ray"
        if all(state.ended_at is not None for state in states) and len(states) == self._total:
            return "ending"
        if self._asked:
            return "stopping"
        return "training" if any(state.progress for state in states) else "starting workers"

    def _facts(self, states: list[RunState]) -> list[Text]:
        found: list[Text] = []
        standing = self._standing
        if standing and (standing.usd or standing.committed_usd):
            found.append(Text(spent_text(standing.usd, standing.committed_usd)))
        if standing and standing.best:
            found.append(Text(best_text(standing.best)))
        failed = [state for state in states if state.status == "failed"]
        if failed:
            last = max(failed, key=lambda state: state.ended_at or 0.0)
            found.append(Text(f"last failure: {last.run_id}: {last_line(last.error)}", "red"))
        elif standing and standing.failure:
            found.append(Text(f"last failure: {standing.failure}", "red"))
        return found

    def _look_now_and_then(self) -> None:
        """The panel does without what the store does not tell; whoever trains there meets its errors."""
        assert self._follow
        follower: Follower | None = None
        pause = 0.0
        while not self._closed.wait(pause):
            begin = time.monotonic()
            try:
                follower = follower or self._follow()
                self._standing = follower.look()
            except Exception as error:
                log.debug("the panel could not look at the store: %r", error)
            pause = max(LOOK_S, 4 * (time.monotonic() - begin))


def _waits_for(states: list[RunState]) -> str | None:
    """What the runs wait for that have no workers."""
    return next((state.waits_for for state in states if state.waits_for), None)


def _kind(reason: str | None) -> str:
    """`budget` of a reason like `budget: ...`."""
    return (reason or "").partition(":")[0]


def _time_left(states: list[RunState], total: int) -> float | None:
    """Seconds until all have ended, at the pace so far; None before any has made a step."""
    took = [s.ended_at - s.first_step_at for s in states if s.status == "done" and s.ended_at and s.first_step_at]
    running = [state for state in states if state.status == "running"]
    paces = [pace for state in running if (pace := _pace(state)) is not None]
    if not running or not (took or paces):
        return None
    usual = fmean(took or [whole for whole, _ in paces])

    def left(state: RunState) -> float:
        whole, share = _pace(state) or (usual, 0.0)
        return (usual if took and share < TRUSTED else whole) * (1 - share)

    to_come = total - sum(state.status != "waiting" for state in states)
    return time_left([left(state) for state in running], [usual] * to_come)


def _pace(state: RunState) -> tuple[float, float] | None:
    """Seconds that all steps of a run under way take, and the share that is done; None before its first step."""
    progress = state.progress
    if progress is None or state.began_at is None or (done := progress.step - (state.began_at_step or 0)) <= 0:
        return None
    return (time.time() - state.began_at) / done * progress.steps, progress.step / progress.steps


def _table(states: list[RunState], width: int) -> list[str]:
    """A header and a line a run, whose id is cut where the terminal is narrow."""
    rows = [COLUMNS, *map(_row, states)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - sum(widths[1:]) - len(GAP) * (len(widths) - 1)
    widths[0] = max(1, min(widths[0], room))
    return [aligned(row, widths, [False] + [True] * (len(COLUMNS) - 1)) for row in rows]


def _row(state: RunState) -> list[str]:
    progress = state.progress
    if progress is None:
        return [state.run_id, "starting", "", "", "", ""]
    numbers = [progress.train_loss, progress.val_loss]
    losses = ["" if x is None else f"{x:.4f}" for x in numbers]
    speed = "" if progress.tokens_per_s is None else f"{progress.tokens_per_s:,.0f}"
    return [state.run_id, f"{progress.step}/{progress.steps}", short_count(progress.tokens), *losses, speed]


def _where(state: RunState) -> str:
    if state.progress is None:
        return f"{state.run_id} starting"
    return f"{state.run_id} step {state.progress.step}/{state.progress.steps}"


def _event(state: RunState) -> str:
    if state.status == "running":
        again = f" again ({in_words(state.failures[-1])}, start {state.starts})" if state.failures else ""
        return f"start {state.run_id}{again}"
    if state.status == "held":
        return f"left to {(state.error or 'another process').removesuffix(' trains it')}: {state.run_id}"
    loss = f"  val loss {state.progress.val_loss:.4f}" if state.progress and state.progress.val_loss is not None else ""
    reason = f"  {last_line(state.error)}" if state.error else ""
    return f"{state.status:8s} {state.run_id}{loss}{reason}"
