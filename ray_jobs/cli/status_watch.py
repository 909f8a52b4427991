"""`muon status --watch`: looks at the store every few seconds until all runs have come to their end."""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ray_jobs.cli.standing_text import run_lines, summary_lines
from ray_jobs.elsewhere import look_every

if TYPE_CHECKING:
    from analysis.standing import Follower, Standing
    from muon_core.store.storage import Storage


def watch(follower: Follower, storage: Storage, *, as_json: bool) -> Standing:
    """Show how the runs stand until all have come to their end; returns how they stand then.

    On a terminal it redraws, elsewhere it prints a line when a status changed; as JSON it prints an object a look.
    """
    console = Console(highlight=False)
    live = None if as_json or not console.is_interactive else Live(console=console, auto_refresh=False, transient=True)
    shown: AbstractContextManager[object] = live or nullcontext()
    before: dict[str, str] = {}
    with shown:
        while True:
            standing = follower.look()
            statuses = {run.run_id: run.status for run in standing.runs}
            if as_json:
                click.echo(json.dumps(standing.to_json()))
            elif live:
                live.update(_screen(standing, console), refresh=True)
            elif statuses != before:
                click.echo(f"{time.strftime('%H:%M:%S')}  {summary_lines(standing)[0]}")
            before = statuses
            sys.stdout.flush()
            if standing.is_over:
                return standing
            time.sleep(look_every(storage))


def _screen(standing: Standing, console: Console) -> Group:
    """As many lines as the terminal has, but for one that the cursor stands in."""
    head = summary_lines(standing)
    rows = run_lines(standing, limit=max(3, console.height - len(head) - 3))
    return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in (*head, "", *rows)))
