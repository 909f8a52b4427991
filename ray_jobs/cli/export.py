"""`muon export`."""

from __future__ import annotations

from pathlib import Path

import click

from muon_core.spelling import counted
from ray_jobs.cli.options import Choice, store_option

FORMATS = ("csv", "wandb-jsonl", "tensorboard")


@click.command("export")
@click.argument("name")
@click.option("--to", "format", type=Choice(FORMATS), required=True, help="What to write.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File of a csv, folder of the others.  [default: NAME.csv, NAME-wandb-jsonl, NAME-tensorboard]",
)
@store_option
def command(name: str, format: str, output: Path | None, store: str) -> None:
    """Write the curves of the sweep NAME, or of the run whose id NAME begins, as files of other tools.

    csv is one table; wandb-jsonl a folder a run with wandb-history.jsonl and config.yaml; tensorboard a folder a run
    with event files, which Trackio imports too. `muon import` reads csv and wandb-jsonl again, to the last digit; event
    files keep 32 bits of a value.

    \b
    muon export demo --to csv
    muon export demo --to tensorboard -o events
    """
    from analysis.store import open_store
    from ray_jobs.cli.runs import narrowed
    from ray_jobs.export import WRITERS

    target = output or Path(f"{name}.csv" if format == "csv" else f"{name}-{format}")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"{target} is there already; give another place with -o, or remove it")
    count = WRITERS[format](narrowed(open_store(store), name), target)
    if not count:
        raise ValueError(f"{name} has no evaluations or training rows yet, so nothing was written")
    click.echo(target)
    click.echo(f"{counted(count, 'run')} of {name} as {format}", err=True)
