"""What `muon import` shows of other tools' logs before it writes: how each column is read, and what is odd."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muon_core.spelling import counted
from ray_jobs.cli.import_text import rows_text
from ray_jobs.cli.text import frame_text, terminal_width

if TYPE_CHECKING:
    from muon_core.imports.read import Guess
    from muon_core.legacy.imported import ImportedRun

_NAMES = 12  # columns or files that a line names


def read_shown(path: Path, maps: tuple[str, ...], optimizer: str | None, unread: dict[str, str]) -> list[ImportedRun]:
    """The runs in `path`, after it is shown how they were read; `unread` gets the reason for each file left out.

    Raises ValueError, in one line, if there are none.
    """
    from muon_core.imports.mapping import parse_map
    from muon_core.imports.read import read_logs

    found = read_logs(path, parse_map(maps), optimizer)
    for guess in found.guesses:
        click.echo(
            "\n  ".join([f"{_places(guess.places)}: {guess.format}", *map(str, guess.readings), *_others(guess)])
        )
    for note, places in found.notes.items():
        click.echo(f"{_places(places)}: {note}", err=True)
    if found.unknown:
        click.echo(f"no logs, and left out: {_some(found.unknown)}", err=True)
    unread |= found.unread
    return found.runs


def sweep_name(path: Path) -> str:
    """What a sweep of the runs in `path` is called: its name, or its folder's where a tool gave that."""
    from muon_core.imports.log import own_name

    if not path.is_file():
        return path.name
    of_a_tool = path.stem in ("metrics", "result", "progress", "trainer_state", "wandb-history")
    return own_name(path) if of_a_tool else path.stem


def tell_others(folder: Path, read: set[Path]) -> None:
    """Name what beside the older project's files, those in `read`, looks like a table or another tool's log."""
    from muon_core.imports.files import candidates

    found = [path for path in candidates(folder) if path not in read and path.suffix not in (".txt", ".log")]
    others = [str(path.relative_to(folder)) for path in found]
    if others:
        click.echo(
            f"not looked at, as others are of the older project: {_some(others)}; import each by itself", err=True
        )


def show_runs(runs: list[ImportedRun], unread: dict[str, str], baseline: str | None) -> None:
    """What would be written, for `--dry-run`: the runs, and the arms that they would be."""
    from muon_core.legacy.write import arms_alone

    for run in runs:
        seed = "no seed" if run.seed is None else f"seed {run.seed}"
        facts = [run.optimizer or "unknown optimizer", seed]
        facts.append(rows_text({table: len(rows) for table, rows in run.series().items()}) or "no rows")
        if run.val and (last := run.val[-1]["val_loss"]) is not None:
            facts.append(f"last val_loss {last}")
        click.echo(f"{run.folder}: {', '.join(facts)}")
        for note in run.notes:
            click.echo(f"{run.folder}: {note}", err=True)
    for place, reason in unread.items():
        click.echo(f"left out: {place}: {' '.join(reason.split())}", err=True)
    wrong = ""
    try:
        arms = arms_alone(runs, baseline)
    except ValueError as error:
        arms, wrong = arms_alone(runs), f"--baseline: {error}"
    if runs:
        click.echo(_arms_text(runs, arms.names))
    for text in filter(None, [*arms.notes, wrong]):
        click.echo(text, err=True)
    click.echo(f"{counted(len(arms.names), 'run')} would be imported; nothing was written", err=True)


def _arms_text(runs: list[ImportedRun], names: dict[str, str]) -> str:
    """A line an arm: its runs, seeds and steps."""
    import polars as pl

    from muon_core.imports.mapping import listed

    rows = []
    for arm in sorted(set(names.values())):
        members = list({run.run_id: run for run in runs if names[run.run_id] == arm}.values())
        seeds = sorted({run.seed for run in members if run.seed is not None})
        steps = [f"{number:,}" for number in sorted({run.steps for run in members if run.steps is not None})]
        rows.append((arm, len(members), listed(map(str, seeds), 8), listed(steps or ["unknown"], 3)))
    return frame_text(pl.DataFrame(rows, schema=["arm", "runs", "seeds", "steps"], orient="row"), terminal_width())


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
