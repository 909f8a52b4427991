"""What the terminal shows while one run trains in this process."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from muon_core.progress import Progress
from ray_jobs.cli.text import short_count

HEARTBEAT_S = 10.0


class RunProgress:
    """A context manager to be handed to `train` as `report`: one live line with the time left on a terminal, elsewhere
    a line at every evaluation, at the last step, and every ten seconds."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)  # as it is now: progress is no output of a run
        self._bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_interactive,
        )
        self._task = self._bar.add_task("", total=None)
        self._shown: float | None = None
        self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> bool:
        """Show where the run stands; never asks it to stop."""
        if self._console.is_interactive:
            self._bar.update(self._task, completed=progress.step, total=progress.steps, description=_numbers(progress))
        elif self._is_due(progress):
            self._shown, self._spoke = progress.val_loss, time.monotonic()
            text = f"step {progress.step}/{progress.steps}  {_numbers(progress)}"
            self._console.print(text, highlight=False, soft_wrap=True)
        return True

    def _is_due(self, progress: Progress) -> bool:
        news = progress.val_loss != self._shown or progress.step == progress.steps
        return news or time.monotonic() - self._spoke > HEARTBEAT_S


def _numbers(progress: Progress) -> str:
    """Tokens, losses in nats per token, and speed; what is not known yet is left out."""
    known = {"train": progress.train_loss, "val": progress.val_loss}
    losses = [f"{name} {value:.4f}" for name, value in known.items() if value is not None]
    speed = [] if progress.tokens_per_s is None else [f"{progress.tokens_per_s:,.0f} tokens/s"]
    return "  ".join([f"{short_count(progress.tokens)} tokens", *losses, *speed])
