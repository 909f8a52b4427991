"""`muon report`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from ray_jobs.cli.main import EXIT_FAILED_RUNS
from ray_jobs.cli.options import next_command, store_option

if TYPE_CHECKING:
    from analysis.store import Store

LONG_S = 1.0
"""What a part of a report takes at least for a line of its own where no terminal shows it."""


@click.command("report")
@click.argument("name")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("report"),
    show_default=True,
    help="Folder to write; files of an earlier report there are replaced.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="Column of the layers table to draw by layer and step; may be given again. Default: ranks, alignments, peaks.",
)
@click.option("--seed", type=int, help="Whose layers to draw. Default: the seed at which most arms have values.")
@click.option(
    "--projection",
    "projections",
    multiple=True,
    help="q, k, v, o, up, down, or another of the model; may be given again. Default: all.",
)
@store_option
def command(
    name: str,
    output: Path,
    metrics: tuple[str, ...],
    seed: int | None,
    projections: tuple[str, ...],
    store: str,
) -> int:
    """Write the answer of the sweep NAME, or what is known of the run whose id NAME begins, and print it.

    It is a page, index.html, that needs no network and no script, with the data of every figure beside it. The same as
    Markdown with pictures is report.md, all numbers are in report.json. Sweeps of imported runs and sweeps that still
    train are reported as they stand.

    \b
    muon report demo -o report
    muon report demo -o report --metric stable_rank --metric spectral_norm --projection q --seed 42

    Exit codes: 0 done; 2 invalid input; 3 written, but runs that should be independent are not.
    """
    from analysis.store import open_store
    from ray_jobs.cli.runs import narrowed
    from ray_jobs.cli.waiting import waiting

    with waiting("report: reading runs") as show:
        view = narrowed(open_store(store), name)  # before the imports below: altair and the SVG renderer take a second
        _check_runs(view, name)
        from analysis.figures.heatmap import METRICS
        from analysis.imported import norms_without_peaks
        from analysis.report.build import write_report
        from analysis.report.page import Choice
        from ray_jobs.cli.answer_text import render_summary

        choice = Choice(metrics or (*METRICS, *norms_without_peaks(view)), seed, projections)
        report = write_report(view, output, choice, tell=_Parts(show))
    click.echo(render_summary(report.summary))
    click.echo(f"report: {report.page}")
    if dropped := report.summary.dropped_text:
        click.echo(f"dropped: {dropped}", err=True)
    click.echo(f"next: {next_command(_after(view, name))}", err=True)
    for error in report.summary.errors:
        click.echo(f"error: {error}", err=True)
    return EXIT_FAILED_RUNS if report.summary.errors else 0


def _check_runs(view: Store, name: str) -> None:
    """Raises ValueError for a sweep without runs, of which a page would say nothing."""
    assert view.record is not None
    if not view.record.runs:
        gone = "; `muon runs rm` removed them, and importing their files again brings them back"
        why = gone if view.record.is_imported else ""
        raise ValueError(f"sweep {name!r} lists no runs, so there is nothing to report{why}")


def _after(view: Store, name: str) -> str:
    assert view.record is not None
    return f"muon runs ls --sweep {name}" if view.record.spec else f"muon runs show {view.record.sweep}"


class _Parts:
    """Says what is made: by `show` on a terminal, elsewhere in a line afterwards where it took long."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._is_shown = show, Console(file=sys.stderr).is_interactive
        self._part, self._begin = "", time.monotonic()

    def __call__(self, part: str) -> None:
        took = time.monotonic() - self._begin
        if self._part and took > LONG_S and not self._is_shown:
            click.echo(f"report: {self._part}, {took:.0f} s", err=True)
        self._part, self._begin = part, time.monotonic()
        self._show(f"report: {part}")
