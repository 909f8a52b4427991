"""What `muon import` shows of other tools' logs before it writes: how each column is read, and what is odd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from muon_core.imports.read import Guess, ReadLogs

_NAMES = 12  # columns or files that a line names


def show_guesses(found: ReadLogs) -> None:
    """The columns and their meanings to stdout, a block for logs that are alike; the rest to stderr."""
    for guess in found.guesses:
        click.echo(f"{_places(guess.places)}: {guess.format}")
        for reading in guess.readings:
            click.echo(f"  {reading}")
        for line in _others(guess):
            click.echo(f"  {line}")
    for note, places in found.notes.items():
        click.echo(f"{_places(places)}: {note}", err=True)
    if found.unknown:
        click.echo(f"no logs, and left out: {_some(found.unknown)}", err=True)


def show_runs(found: ReadLogs) -> None:
    """What would be written, for `--dry-run`."""
    for run in found.runs:
        seed = "no seed" if run.seed is None else f"seed {run.seed}"
        last = run.val[-1]["val_loss"] if run.val else None
        rows = f"{len(run.val):,} evaluations, {len(run.train):,} training rows"
        click.echo(f"{run.folder}: {run.optimizer or 'unknown optimizer'}, {seed}, {rows}, last val_loss {last}")
        for note in run.notes:
            click.echo(f"{run.folder}: {note}", err=True)
    for place, reason in found.unread.items():
        click.echo(f"left out: {place}: {' '.join(reason.split())}", err=True)
    click.echo(f"{len(found.runs):,} runs would be imported; nothing was written", err=True)


def _others(guess: Guess) -> list[str]:
    lines = []
    if guess.config:
        lines.append(f"parameters: {_some(sorted(guess.config))}")
    if guess.left_out:
        lines.append(f"left out: {_some(sorted(guess.left_out))}")
    return lines


def _places(places: list[str]) -> str:
    return places[0] if len(places) == 1 else f"{len(places):,} logs, as {places[0]}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more
