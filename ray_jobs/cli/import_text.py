"""What `muon import` prints once runs are in the store: which, what was odd, the verdict, and what comes next."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ray_jobs.cli.options import next_command

if TYPE_CHECKING:
    from analysis.store import Store
    from analysis.summary import Summary
    from muon_core.legacy.write import Imported


_ROWS = {"val": "evaluations", "train": "training rows", "layers": "layer rows", "spectra": "spectra"}


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
        rows = ", ".join(f"{run.num_rows[table]:,} {words}" for table, words in _ROWS.items() if run.num_rows[table])
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
    grown = f"{len(done.grown)} have grown, " if done.grown else ""
    if done.grown:
        click.echo("plain Parquet holds rows of grown runs twice until `muon compact`, ten minutes from now", err=True)
    click.echo(f"{sweep}: {len(done.new)} runs imported, {grown}{len(done.known)} were there already", err=True)
    if not done.has_baseline and len(summary.arms) > 1:
        click.echo(_choice(done, summary), err=True)
    click.echo(f"next: {next_command(f'muon report {sweep}')}", err=True)


def _means(summary: Summary) -> str:
    """The arms that nothing compares yet, with their means."""
    import polars as pl

    from ray_jobs.cli.text import frame_text, terminal_width

    rows = [(arm.arm, f"{arm.counts['done']}/{arm.planned}", arm.mean, arm.sd) for arm in summary.arms]
    return frame_text(pl.DataFrame(rows, schema=["arm", "done", summary.metric, "sd"], orient="row"), terminal_width())


def _choice(done: Imported, summary: Summary) -> str:
    """Which optimizers were found, and how one of their arms becomes what the others are compared with."""
    found = ", ".join(f"{name} ({count} {'run' if count == 1 else 'runs'})" for name, count in done.optimizers.items())
    arms = {name: [arm.arm for arm in summary.arms if arm.optimizer == name] for name in done.optimizers}
    alone = [name for name, names in arms.items() if len(names) == 1]
    example = alone[0] if alone else summary.arms[0].arm
    return f"no baseline; optimizers found: {found}. Name one, or an arm: --baseline {shlex.quote(example)}"
