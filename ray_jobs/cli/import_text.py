"""What `muon import` prints once runs are in the store: which, what was odd, the verdict, and what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from muon_core.spelling import counted
from ray_jobs.cli.options import next_command
from ray_jobs.cli.text import frame_text, terminal_width

if TYPE_CHECKING:
    from analysis.store import Store
    from analysis.summary import Summary
    from muon_core.legacy.write import Imported


_ROWS = {"val": "evaluation", "train": "training row", "layers": "layer row", "spectra": "spectra row"}


def rows_text(num_rows: Mapping[str, int]) -> str:
    """`2 evaluations, 16 layer rows`."""
    return ", ".join(counted(num_rows[table], noun) for table, noun in _ROWS.items() if num_rows[table])


def tell_import(done: Imported, view: Store) -> None:
    """Print all of it; runs and the verdict on stdout.

    Args:
        view: the sweep that lists the runs.
    """
    from analysis.first_losses import equal_first_losses
    from analysis.summary import members_of, summarize_members
    from ray_jobs.cli.answer_text import render_summary

    assert view.record is not None
    sweep = view.record.sweep
    for run in [*done.new, *done.grown]:
        rows = rows_text(run.num_rows)
        click.echo(f"{run.store_id}  {run.folder}: {rows}{' now' if run in done.grown else ''}")
    for run in done.runs:
        for note in run.notes:
            click.echo(f"{run.folder}: {note}", err=True)
    for place, reason in done.damaged.items():
        click.echo(f"left out: {place}: {' '.join(reason.split())}", err=True)
    members = members_of(view)
    summary = summarize_members(view, members)
    if not any(arm.all_values for arm in summary.arms):
        click.echo("no verdict: no run has come to its end with a loss", err=True)
    elif done.has_baseline:
        click.echo(render_summary(replace(summary, warnings=())))
    else:
        click.echo(_means(summary))
    # Without a baseline nothing is compared, so what weakens a comparison is not told.
    warnings = summary.warnings if done.has_baseline else equal_first_losses(members, view.val)
    for text in [*done.notes, *(f"warning: {warning}" for warning in warnings)]:
        click.echo(text, err=True)
    grown = f"{len(done.grown)} {'has' if len(done.grown) == 1 else 'have'} grown, " if done.grown else ""
    there = f"{len(done.known)} {'was' if len(done.known) == 1 else 'were'} there already"
    if done.grown:
        click.echo("plain Parquet holds rows of grown runs twice until `muon compact`, ten minutes from now", err=True)
    click.echo(f"{sweep}: {counted(len(done.new), 'run')} imported, {grown}{there}", err=True)
    if not done.has_baseline and len(summary.arms) > 1:
        click.echo(_choice(done, summary), err=True)
    click.echo(f"next: {next_command(f'muon report {sweep}' if view.record.runs else 'muon runs ls')}", err=True)


def _means(summary: Summary) -> str:
    """The arms that nothing compares yet, with their means."""
    import polars as pl

    rows = [(arm.arm, f"{arm.counts['done']}/{arm.planned}", arm.mean, arm.sd) for arm in summary.arms]
    return frame_text(pl.DataFrame(rows, schema=["arm", "done", summary.metric, "sd"], orient="row"), terminal_width())


def _choice(done: Imported, summary: Summary) -> str:
    """Which optimizers were found, and how one of their arms becomes what the others are compared with."""
    found = ", ".join(f"{name} ({counted(count, 'run')})" for name, count in done.optimizers.items())
    arms = {name: [arm.arm for arm in summary.arms if arm.optimizer == name] for name in done.optimizers}
    alone = [name for name, names in arms.items() if len(names) == 1]
    example = alone[0] if alone else summary.arms[0].arm
    return f"no baseline; optimizers found: {found}. Name one, or an arm: --baseline {shlex.quote(example)}"
