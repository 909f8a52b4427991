"""A line on a terminal that says what the command is at, and how long it has been: elsewhere nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn


@contextmanager
def waiting(text: str, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """Show `text` and the time that passes until the block is left; what is yielded puts another text there."""
    console = console or Console(file=sys.stderr)
    bar = Progress(
        TextColumn("{task.description} ...", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # results are no progress
        disable=not console.is_interactive,
    )
    task = bar.add_task(text, total=None)
    with bar:
        yield lambda other: bar.update(task, description=other)
