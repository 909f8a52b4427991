"""`muon import`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from muon_core.store.open import open_storage
from muon_core.store.storage import check_writable
from ray_jobs.cli.main import EXIT_FAILED_RUNS
from ray_jobs.cli.options import next_command, store_option


@click.command("import")
@click.argument("source", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--name", metavar="SWEEP", help="Sweep that lists the runs.  [default: PATH's name]")
@click.option("--baseline", metavar="OPTIMIZER", help="Its runs are what the others are compared with.")
@click.option("--optimizer", metavar="NAME", help="Optimizer of runs whose files name none.")
@click.option(
    "--map", "maps", multiple=True, metavar="MEANING=COLUMN,...", help="What columns mean, where that is not guessed."
)
@click.option("--dry-run", is_flag=True, help="Show what would be imported, and write nothing.")
@store_option
def command(
    source: Path,
    name: str | None,
    baseline: str | None,
    optimizer: str | None,
    maps: tuple[str, ...],
    dry_run: bool,
    store: str,
) -> int:
    """Bring runs that other programs logged in PATH, a file or a folder, into the store (docs/import.md).

    Read are tables (CSV, JSON lines, Parquet), logs of W&B, Lightning, Ray Tune, Hugging Face's Trainer,
    modded-nanogpt, nanochat and llm.c, and metrics.json and JSONL files of the older project.
    How columns are read is shown first; --map corrects it, as in --map step=iter,val_accuracy=acc:percent.
    Torn and repeated lines are counted. Importing the same files again adds nothing.

    \b
    muon import table.csv --dry-run
    muon import table.csv --map val_loss=metric_a,elapsed_s=time:minutes
    muon import old_project/experiments --name muon-vs-adamw --baseline adamw

    Exit codes: 0 done; 3 some runs were left out, each named with the reason.
    """
    from analysis.integrity import equal_first_losses
    from analysis.store import open_store
    from analysis.summary import members_of
    from muon_core.imports.mapping import parse_map
    from muon_core.imports.read import read_logs
    from muon_core.legacy.write import import_runs, write_runs
    from ray_jobs.cli.import_logs import show_guesses, show_runs

    root, asked = source.resolve(), parse_map(maps)
    sweep = name or re.sub(r"[^A-Za-z0-9._-]+", "-", root.stem if root.is_file() else root.name) or "imported"
    found = None if _is_older_project(root) else read_logs(root, asked, optimizer)
    if found is None and (given := _given(optimizer=optimizer, map=maps, dry_run=dry_run)):
        raise click.UsageError(f"{given} is for logs of other tools; {source} holds files of the older project.")
    if found is not None:
        show_guesses(found)
        if dry_run:
            show_runs(found)
            return EXIT_FAILED_RUNS if found.unread else 0
    storage = open_storage(store)
    check_writable(storage)
    if found is None:
        done = import_runs(storage, root, sweep, baseline)
    else:
        done = write_runs(storage, found.runs, sweep, baseline, found.unread)
    for run in done.new:
        rows = f"{len(run.val)} evaluations, {len(run.layers)} layer rows, {len(run.spectra)} spectra"
        click.echo(f"{run.run_id}  {run.folder}: {rows}")
    for run in done.runs:
        for note in run.notes:
            click.echo(f"{run.folder}: {note}", err=True)
    view = open_store(store).sweep(sweep)
    for warning in equal_first_losses(members_of(view), view.val):
        click.echo(f"warning: {warning}", err=True)
    for place, reason in done.damaged.items():
        click.echo(f"left out: {place}: {' '.join(reason.split())}", err=True)
    click.echo(f"{sweep}: {len(done.new)} runs imported, {len(done.known)} were there already", err=True)
    click.echo(f"next: {next_command(f'muon runs ls --sweep {sweep}')}", err=True)
    return EXIT_FAILED_RUNS if done.damaged else 0


def _is_older_project(root: Path) -> bool:
    """Whether a folder holds runs as the older project wrote them."""
    from muon_core.legacy.runs import run_files

    return root.is_dir() and bool(run_files(root))


def _given(**options: object) -> str:
    """The first of `options` that was given, as it is typed."""
    return next((f"--{name.replace('_', '-')}" for name, value in options.items() if value), "")
