"""What the terminal shows while text is tokenized."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from ray_jobs.cli.text import clock_text, short_count

if TYPE_CHECKING:
    from muon_core.data.prepare import Progress

HEARTBEAT_S = 10.0


class _Clock(TimeElapsedColumn):
    """The time that has passed, while nothing tells how much is left."""

    def render(self, task: Task) -> Text:
        return Text() if task.total else super().render(task)


class DataProgress:
    """A context manager to be handed to `prepare_set` as `report`: a live line on a terminal, elsewhere one each ten
    seconds. Speed and time left are of this call, whatever an earlier one did.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._bar = Bar(
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            _Clock(),
            console=self._console,
            transient=True,
            disable=not self._console.is_interactive,
        )
        self._task = self._bar.add_task("", total=None)
        self._first: Progress | None = None
        self._begin = self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line about what cannot be followed; on a terminal the time goes on below it."""
        self._console.print(f"{text} ...", highlight=False, soft_wrap=True)

    def __call__(self, progress: Progress) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._begin = progress, now
        share = 100 * progress.read_bytes / max(1, progress.total_bytes)
        line = f"read {share:.0f} %  {describe(progress, self._first, now - self._begin)}"
        if self._console.is_interactive:
            self._bar.update(self._task, completed=progress.read_bytes, total=progress.total_bytes, description=line)
        elif now - self._spoke > HEARTBEAT_S:
            self._spoke = now
            self._console.print(line, highlight=False, soft_wrap=True)


def describe(progress: Progress, first: Progress, elapsed_s: float) -> str:
    """Documents, tokens, and since `first`: megabytes of text a second, and the time left."""
    known = f"{short_count(progress.documents)} documents  {short_count(progress.tokens)} tokens"
    read = progress.read_bytes - first.read_bytes
    if elapsed_s < 1 or read <= 0:
        return known
    speed = (progress.text_bytes - first.text_bytes) / 1e6 / elapsed_s
    left = (progress.total_bytes - progress.read_bytes) / read * elapsed_s
    return f"{known}  {speed:.1f} MB/s  ETA {clock_text(left)}"
