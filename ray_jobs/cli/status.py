"""`muon status`."""

from __future__ import annotations

import json

import click

from ray_jobs.cli.options import json_option, store_option


@click.command("status")
@click.argument("sweep", required=False)
@store_option
@json_option
def command(sweep: str | None, store: str, as_json: bool) -> None:
    """Show the runs of SWEEP, or of the whole store: status, steps, losses, and why a run failed."""
    import polars as pl

    from analysis.tables import open_store

    opened = open_store(store)
    view = opened.sweep(sweep) if sweep else opened
    columns = ["run_id", "status", "attempts", "steps", "final_val_loss", "wall_s", "error"]
    last_line = pl.col("error").str.strip_chars().str.split("\n").list.last()
    runs = view.runs.select(columns).with_columns(error=last_line).sort("run_id").collect()
    if as_json:
        click.echo(json.dumps(runs.to_dicts(), indent=2))
        return
    for row in runs.iter_rows(named=True):
        loss = "" if row["final_val_loss"] is None else f"val {row['final_val_loss']:.4f}"
        wall = "" if row["wall_s"] is None else f"{row['wall_s']:.0f} s"
        steps = "" if row["steps"] is None else f"step {row['steps']}"
        tries = f"attempt {row['attempts']}" if row["attempts"] > 1 else ""
        parts = [f"{row['status']:9s}", row["run_id"], steps, loss, wall, tries, row["error"] or ""]
        click.echo("  ".join(part for part in parts if part))
    counts = runs["status"].value_counts().sort("status").iter_rows()
    click.echo(", ".join(f"{count} {status}" for status, count in counts) or "no runs", err=True)
