"""What the terminal shows while runs train: one live panel on a terminal, a line per event elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from muon_core.statuses import last_line
from ray_jobs.cli.text import short_count
from ray_jobs.retrying import in_words
from ray_jobs.run_queue import RunState

HEARTBEAT_S = 60.0
PANEL_RUNS = 8  # the panel stays below 15 lines


class Display:
    """Follows the runs of a sweep; a context manager whose `update` is the launcher's `watch`.

    Runs in this process (not `on_ray`) are shown by lines only: a live panel would paint over a debugger's prompt.
    """

    def __init__(self, total: int, console: Console | None = None, *, on_ray: bool = True) -> None:
        self._total, self._on_ray = total, on_ray
        self._console = console or Console(file=sys.stderr)  # as it is now: progress is no output of a run
        interactive = self._console.is_interactive and on_ray
        self._live = Live(console=self._console, refresh_per_second=4, transient=True) if interactive else None
        self._seen: dict[str, str] = {}
        self._started = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        runs = f"{self._total} run{'' if self._total == 1 else 's'}"
        opening = f"starting Ray for {runs} ..." if self._on_ray else f"training {runs} in this process ..."
        self._console.print(opening, highlight=False)
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def update(self, states: list[RunState]) -> None:
        """Show what changed since the last call."""
        for state in states:
            if state.status != "waiting" and self._seen.get(state.run_id) != f"{state.status}{state.starts}":
                self._seen[state.run_id] = f"{state.status}{state.starts}"
                self._say(_event(state))
        if self._live:
            self._live.update(self._panel(states))
        elif time.monotonic() - self._spoke > HEARTBEAT_S:
            running = [_where(state) for state in states if state.status == "running"]
            self._say("; ".join(running) or "waiting for workers")

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        clock = int(self._spoke - self._started)
        done = sum(
            state not in ("waiting", "running") for state in (s.rstrip("0123456789") for s in self._seen.values())
        )
        self._console.print(
            f"{clock // 60:3d}:{clock % 60:02d}  {done:3d}/{self._total}  {text}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _panel(self, states: list[RunState]) -> Table:
        counts = Counter(state.status for state in states)
        waiting = self._total - sum(counts.values()) + counts.pop("waiting", 0)
        title = "  ".join(f"{name} {count}" for name, count in sorted(counts.items())) + f"  to come {waiting}"
        table = Table(title=f"{title}{self._eta(states)}", title_justify="left", box=None, pad_edge=False)
        for name in ("run", "step", "tokens", "train loss", "val loss", "tokens/s"):
            table.add_column(name, justify="left" if name == "run" else "right")
        for state in [s for s in states if s.status == "running"][:PANEL_RUNS]:
            table.add_row(*_row(state))
        return table

    def _eta(self, states: list[RunState]) -> str:
        """Time left at the pace so far, counting unfinished runs by their share of steps."""
        done = sum(1.0 if s.ended_at else (s.progress.step / s.progress.steps if s.progress else 0.0) for s in states)
        begun = min((s.first_step_at for s in states if s.first_step_at), default=None)
        if not done or begun is None:
            return ""
        left = (time.time() - begun) / done * (self._total - done)
        return f"  ETA {int(left) // 60}:{int(left) % 60:02d}"


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
    loss = f"  val loss {state.progress.val_loss:.4f}" if state.progress and state.progress.val_loss is not None else ""
    reason = f"  {last_line(state.error)}" if state.error else ""
    return f"{state.status:8s} {state.run_id}{loss}{reason}"
