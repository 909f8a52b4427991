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
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", metavar="SWEEP", help="Sweep that lists the runs.  [default: DIR's name]")
@click.option("--baseline", metavar="OPTIMIZER", help="Its runs are what the others are compared with.")
@store_option
def command(folder: Path, name: str | None, baseline: str | None, store: str) -> int:
    """Bring runs of older projects below DIR, in metrics.json and JSONL files, into the store (docs/import.md).

    Torn and repeated lines are counted. Importing the same files again adds nothing.

    \b
    muon import old_project/experiments
    muon import old_project/experiments --name muon-vs-adamw --baseline adamw

    Exit codes: 0 done; 3 some runs were left out, each named with the reason.
    """
    from analysis.integrity import equal_first_losses
    from analysis.store import open_store
    from analysis.summary import members_of
    from muon_core.legacy.write import import_runs

    root = folder.resolve()
    sweep = name or re.sub(r"[^A-Za-z0-9._-]+", "-", root.name) or "imported"
    storage = open_storage(store)
    check_writable(storage)
    done = import_runs(storage, root, sweep, baseline)
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
