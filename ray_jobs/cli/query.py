"""`muon query`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from ray_jobs.cli.options import json_option, next_command, store_option

if TYPE_CHECKING:
    import polars as pl


@click.command("query")
@click.argument("sql")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="CSV on stdout, with a header.")
@click.option("--sweep", metavar="NAME", help="Only this sweep's runs; each table then has block and role.")
@store_option
def command(sql: str, as_json: bool, as_csv: bool, sweep: str | None, store: str) -> None:
    """Answer one SQL query over the result tables: runs, val, train, layers and more (docs/tables.md).

    The table on the terminal has six digits and cuts long texts; --json and --csv have all of both.

    \b
    muon query "SELECT optimizer, seed, final_val_loss FROM runs ORDER BY final_val_loss"
    muon query "SELECT step, AVG(val_loss) AS loss FROM val GROUP BY step ORDER BY step" --csv
    muon query "SELECT block, AVG(final_val_loss) AS loss FROM runs GROUP BY block" --sweep demo
    muon query "SHOW TABLES"
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv contradict each other; give one of them.")
    from analysis.sql import query
    from analysis.store import open_store

    opened = open_store(store)
    print_frame(query(opened.sweep(sweep) if sweep else opened, sql), as_json=as_json, as_csv=as_csv)
    if not (as_json or as_csv):
        then = "SELECT * FROM runs" if sql.strip().upper().startswith("SHOW") else "SHOW TABLES"
        click.echo(f"next: {next_command(f'muon query {shlex.quote(then)}')}", err=True)


def print_frame(frame: pl.DataFrame, *, as_json: bool = False, as_csv: bool = False) -> None:
    """The rows to stdout; how many there are to stderr, where people read."""
    import polars as pl

    from ray_jobs.cli.text import frame_text, terminal_width

    if as_json:
        click.echo(frame.write_json())  # NaN and infinity, which JSON has not, become null
    elif as_csv:
        nested = [name for name, dtype in frame.schema.items() if isinstance(dtype, (pl.List, pl.Struct))]
        if nested:
            raise ValueError(f"CSV has no lists, as {', '.join(nested)} holds; use --json")
        click.echo(frame.write_csv(), nl=False)
    else:
        click.echo(frame_text(frame, terminal_width()))
        click.echo(f"{frame.height} row{'' if frame.height == 1 else 's'}", err=True)
