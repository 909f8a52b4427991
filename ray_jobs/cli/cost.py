"""`muon cost`."""

from __future__ import annotations

import json

import click

from ray_jobs.cli.options import Choice, json_option, next_command, store_option

BY = ("block", "optimizer", "status", "node", "run")


@click.command("cost")
@click.argument("name", required=False)
@click.option("--by", type=Choice(BY), help="What to sum by.  [default: block of a sweep, else optimizer]")
@store_option
@json_option
def command(name: str | None, by: str | None, store: str, as_json: bool) -> None:
    """Show what the runs of the sweep NAME took, or all in the store: hours, GPU hours, USD, and what was in vain.

    It sums the `attempts` table: each attempt from when it took its run over to its last sign of life, at the price of
    its share of the machines as the price table gave it then. Machines that idle, and Ray's start, are not in it. Lost
    is what a later attempt had to do again, and all of an attempt that failed or died before its first step. Prices are
    those of MUON_PRICES, a YAML file, or else of a dated table of ours; local machines cost nothing unless the file
    says otherwise.

    \b
    muon cost demo
    muon cost demo --by run
    muon cost --by node --json
    """
    from analysis.costs import costs, total
    from analysis.store import open_store
    from ray_jobs.cli.text import frame_text, terminal_width

    opened = open_store(store)
    view = opened.sweep(name) if name else opened
    by = by or ("block" if name else "optimizer")
    rows, together = costs(view, by), total(view)
    if as_json:
        click.echo(json.dumps({"by": by, "rows": rows.to_dicts(), "total": together.to_dicts()[0]}, indent=2))
        return
    if rows.is_empty():
        click.echo("no attempt is in the ledger: nothing was trained here since it is kept")
    else:
        click.echo(frame_text(rows, terminal_width()))
        click.echo()
        click.echo(_in_words(together.to_dicts()[0]))
        for source in view.attempts.select("price_source", "price_date").unique().sort("price_source").collect().rows():
            click.echo(f"price: {source[0]}" + (f" ({source[1]})" if source[1] else ""), err=True)
    click.echo(f"next: {next_command(f'muon cost {name} --by run' if name else 'muon sweep ls')}", err=True)


def _in_words(row: dict[str, float | None]) -> str:
    usd = "at a price that is not known" if row["usd"] is None else f"{row['usd']:.4g} USD"
    lost = f"{row['lost_hours']:.3g} h of it in vain"
    return f"together {row['hours']:.3g} h, {row['gpu_hours']:.3g} GPU hours, {usd}; {lost}"
