"""`muon report`."""

from __future__ import annotations

from pathlib import Path

import click

from ray_jobs.cli.main import EXIT_FAILED_RUNS
from ray_jobs.cli.options import next_command, store_option


@click.command("report")
@click.argument("sweep")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("report"),
    show_default=True,
    help="Folder to write; files of an earlier report there are replaced.",
)
@click.option(
    "--metric", default="effective_rank", show_default=True, help="Column of the layers table for the heatmaps."
)
@store_option
def command(sweep: str, output: Path, metric: str, store: str) -> int:
    """Write the answer of SWEEP: one HTML page that works offline, with the data of every figure beside it.

    \b
    muon report demo -o report
    muon report demo -o report --metric stable_rank

    Exit codes: 0 done; 2 invalid input; 3 written, but runs that should be independent are not.
    """
    from analysis.store import open_store

    view = open_store(store).sweep(sweep)  # before the import below: altair and the SVG renderer take a second
    from analysis.report.build import write_report

    report = write_report(view, output, metric=metric)
    click.echo(f"report: {report.page}")
    if dropped := report.summary.dropped_text:
        click.echo(f"dropped: {dropped}", err=True)
    click.echo(f"next: {next_command(f'muon runs ls --sweep {sweep}')}", err=True)
    for error in report.summary.errors:
        click.echo(f"error: {error}", err=True)
    return EXIT_FAILED_RUNS if report.summary.errors else 0
