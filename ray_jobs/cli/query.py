"""`muon query`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_jobs.cli.options import json_option, next_command, store_option

if TYPE_CHECKING:
    import polars as pl


class _Query(click.Command):
    """Takes a query that begins with a comment for what it is, not for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        return super().parse_args(
            ctx, [f" {text}" if text[:2] == "--" and text[2:3].isspace() else text for text in args]
        )


@click.command("query", cls=_Query)
@click.argument("sql", required=False)
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), metavar="F", help="The query is in this file.")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="CSV on stdout, with a header.")
@click.option("--sweep", metavar="NAME", help="Only this sweep's runs; each table then has block and role.")
@store_option
def command(sql: str | None, file: Path | None, as_json: bool, as_csv: bool, sweep: str | None, store: str) -> None:
    """Answer one SQL query over the result tables: runs, val, train, layers and more (docs/tables.md).

    SQL - reads it from stdin.
    The table on the terminal has six digits and cuts long texts; --json and --csv have all of both.

    \b
    muon query "SELECT optimizer, seed, final_val_loss FROM runs ORDER BY final_val_loss"
    muon query "SELECT step, AVG(val_loss) AS loss FROM val GROUP BY step ORDER BY step" --csv
    muon query "SELECT block, AVG(final_val_loss) AS loss FROM runs GROUP BY block" --sweep demo
    muon query "SHOW TABLES"
    muon query "DESCRIBE TABLE runs"
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv contradict each other; give one of them.")
    asked = _asked(sql, file)
    from analysis.sql import query
    from analysis.store import open_store

    opened = open_store(store)
    print_frame(query(opened.sweep(sweep) if sweep else opened, asked), as_json=as_json, as_csv=as_csv)
    if not (as_json or as_csv):
        then = "DESCRIBE TABLE runs" if asked.strip().upper().startswith("SHOW") else "SHOW TABLES"
        click.echo(f"next: {next_command(f'muon query {shlex.quote(then)}')}", err=True)


def _asked(sql: str | None, file: Path | None) -> str:
    """The query, from wherever it was given. Raises click.UsageError for none, two, or a file that cannot be read."""
    if (sql is None) == (file is None):
        raise click.UsageError('Give one query: as text ("SHOW TABLES"), - for stdin, or --file F.')
    if file is None:
        return sys.stdin.read() if sql == "-" else sql or ""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def print_frame(frame: pl.DataFrame, *, as_json: bool = False, as_csv: bool = False) -> None:
    """The rows to stdout; how many there are to stderr, where people read."""
    import polars as pl

    from muon_core.spelling import counted
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
        click.echo(counted(frame.height, "row"), err=True)
