"""`muon anomalies`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ray_jobs.cli.options import json_option, next_command, store_option

if TYPE_CHECKING:
    import polars as pl

    from analysis.anomalies import Anomalies

TOP = 20


@click.command("anomalies")
@click.argument("name")
@click.option("--top", type=click.IntRange(1), default=TOP, show_default=True, help="Regions to show at most.")
@store_option
@json_option
def command(name: str, top: int, store: str, as_json: bool) -> None:
    """Show what stands out in the hidden matrices of the sweep NAME, and what is normal there; the worst first.

    It looks for sudden shifts and spikes (also between tracked steps), collapsed ranks, seeds of an arm that disagree,
    layers unlike the others, frozen and runaway momenta, and values that are not finite. A row is a region: layers of
    a projection over a stretch of steps, with the worst value in it. The score is its distance from normal in robust
    standard deviations, from 8 on (docs/results.md).

    --json gives an object with what was looked at, notes on what was not, and regions with all they are known by.

    \b
    muon anomalies demo
    muon anomalies demo --top 5
    muon anomalies demo --json
    """
    from analysis.anomalies import anomalies
    from analysis.departures import THRESHOLD
    from analysis.store import open_store

    found = anomalies(open_store(store).sweep(name))
    shown = found.regions.head(top)
    if as_json:
        facts = {"sweep": name, "threshold": THRESHOLD, "runs": found.runs, "matrices": found.matrices}
        facts |= {"steps": found.steps, "found": found.regions.height, "notes": found.notes}
        click.echo(json.dumps(facts | {"regions": _plain(shown)}, indent=2))
        return
    click.echo(_text(found, shown, top))
    click.echo(f"next: {next_command(_after(name, shown))}", err=True)


def _after(name: str, shown: pl.DataFrame) -> str:
    from analysis.queries import layer_metrics

    if shown.is_empty():
        return f"muon status {name}"
    if (metric := shown["metric"][0]) in layer_metrics():
        return f"muon report {name} --metric {metric}"
    return f"muon runs show {shown['run_id'][0]}"


def _text(found: Anomalies, shown: pl.DataFrame, top: int) -> str:
    from ray_jobs.cli.text import frame_text, terminal_width

    runs = f"{found.runs} run{'s' if found.runs > 1 else ''}"
    over = f"{runs}, {found.matrices} matrices, up to {found.steps} tracked steps"
    lines = [frame_text(_table(shown), terminal_width()), ""] if shown.height else []
    if not found.runs:
        lines.append("no run has tracked its hidden matrices, so there is nothing to look at")
    elif shown.is_empty():
        lines.append(f"nothing stands out in {over}")
    else:
        count = found.regions.height
        stand = f"{count} regions stand" if count > 1 else "1 region stands"
        lines.append(f"{stand} out in {over}" + (f", the first {shown.height} shown (--top)" if count > top else ""))
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _table(regions: pl.DataFrame) -> pl.DataFrame:
    """What the terminal has room for."""
    import polars as pl

    def span(low: str, high: str) -> pl.Expr:
        apart = pl.concat_str(low, pl.lit("-"), high)
        return pl.when(pl.col(low) == pl.col(high)).then(pl.col(low).cast(pl.String)).otherwise(apart)

    return regions.select(
        pl.col("score").round(1),
        "kind",
        pl.col("run_id").alias("run"),
        pl.concat_str("projection", pl.lit(" "), span("layer_from", "layer_to")).alias("layers"),
        span("step_from", "step_to").alias("steps"),
        "metric",
        pl.col("value").round_sig_figs(4),
        pl.col("normal").round_sig_figs(4),
    )


def _plain(regions: pl.DataFrame) -> list[dict[str, object]]:
    """Rows for JSON, which has no NaN."""
    import polars as pl

    return regions.with_columns(pl.col("value", "normal").fill_nan(None)).to_dicts()
