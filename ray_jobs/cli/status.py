"""`muon status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from muon_core.statuses import last_line
from ray_jobs.cli.options import json_option, next_command, store_option
from ray_jobs.cli.runs import find_run
from ray_jobs.cli.text import cut, table_lines

if TYPE_CHECKING:
    import polars as pl

    from analysis.store import Store

ERROR_WIDTH = 80  # of a row; the run's own status shows all of it
HEADER = ("status", "run", "step", "val loss", "wall s", "attempts", "trouble")


@click.command("status")
@click.argument("name", required=False)
@store_option
@json_option
def command(name: str | None, store: str, as_json: bool) -> None:
    """Show how far runs are: those of the sweep NAME, the run whose id NAME begins, or all in the store.

    Losses are in nats per token; `missing` is a run that its sweep lists and nobody has started. One run is shown
    with its traceback and what ended each attempt that failed. --json gives a list of objects with run_id, arm, seed,
    status, attempts, step, steps, val_loss, wall_s, health (how the momentum failed, if it did) and error (a full
    traceback); of one run also failures: the number, status, failure (its kind) and last step of each such attempt.

    \b
    muon status demo
    muon status muon-s42
    muon status --json
    """
    from analysis.store import open_store

    opened = open_store(store)
    runs = find_runs(opened, name)
    failures = _failures(opened, runs[0]["run_id"]) if len(runs) == 1 else []
    if as_json:
        click.echo(json.dumps([run | {"failures": failures} for run in runs] if len(runs) == 1 else runs, indent=2))
        return
    for line in table_lines([HEADER, *(_cells(run) for run in runs)]):
        click.echo(line)
    for each in failures:
        click.echo(f"attempt {each['attempt']} {each['status']}: {each['failure']}, at step {each['step']}")
    for text in (runs[0]["health"], runs[0]["error"]) if len(runs) == 1 else ():
        if text:
            click.echo(f"\n{text.rstrip()}")
    click.echo(_counts([run["status"] for run in runs]), err=True)
    click.echo(f"next: {next_command(_after(runs, name if name in opened.sweep_names() else None))}", err=True)


def _after(runs: list[dict[str, Any]], sweep: str | None) -> str:
    """What to type after having seen `runs`, of a sweep or not."""
    if len(runs) == 1 and runs[0]["status"] != "missing":
        return f"muon runs show {runs[0]['run_id']}"
    if failed := [run["run_id"] for run in runs if run["status"] == "failed"]:
        return f"muon status {failed[0]}"
    return f"muon report {sweep} -o report" if sweep else "muon runs ls"


def find_runs(store: Store, name: str | None) -> list[dict[str, Any]]:
    """What `--json` shows of the runs that `name` stands for.

    Raises ValueError if it is no sweep and begins no run, or several.
    """
    import polars as pl

    from analysis.members import sweep_members

    if name in store.sweep_names():
        view = store.sweep(name)
        assert view.record is not None
        runs = sweep_members(view.record, view.runs.collect()).unique("run_id", keep="first", maintain_order=True)
    else:
        runs = store.runs.sort("run_id").collect()
        if name is not None:
            if not runs["run_id"].str.starts_with(name).any():
                sweeps = ", ".join(store.sweep_names()) or "none"
                raise ValueError(f"no sweep or run {name!r} in {store.storage.url}; its sweeps: {sweeps}")
            runs = runs.filter(run_id=find_run(store, name)["run_id"])
    running = runs.filter(pl.col("status") == "running")["run_id"].to_list()
    live = _newest(store, running) if running else {}
    return [_describe(run | live.get(run["run_id"], {})) for run in runs.iter_rows(named=True)]


def _newest(store: Store, running: list[str]) -> dict[str, dict[str, Any]]:
    """Steps done and newest validation loss of runs that have no end record yet."""
    import polars as pl

    def last(table: pl.LazyFrame, *columns: str) -> pl.LazyFrame:
        rows = table.filter(pl.col("run_id").is_in(running)).sort("step")
        return rows.group_by("run_id").agg(pl.col(*columns).last())

    newest = last(store.train, "step").join(last(store.val, "val_loss"), on="run_id", how="full", coalesce=True)
    named = newest.rename({"step": "steps", "val_loss": "final_val_loss"}).collect()
    return {row.pop("run_id"): row for row in named.iter_rows(named=True)}


def _failures(store: Store, run_id: str) -> list[dict[str, Any]]:
    """What ended each attempt at a run that failed, in their order."""
    attempts = store.run(run_id).attempts.drop_nulls("failure").sort("attempt")
    return attempts.select("attempt", "status", "failure", "step").collect().to_dicts()


def _describe(run: dict[str, Any]) -> dict[str, Any]:
    config = json.loads(run["config_json"]) if run["config_json"] else {}
    return {
        "run_id": run["run_id"],
        "arm": run["arm"],
        "seed": run["seed"],
        "status": run["status"],
        "attempts": run["attempts"],
        "step": run["steps"],
        "steps": config.get("steps"),
        "val_loss": run["final_val_loss"],
        "wall_s": run["wall_s"],
        "health": run["health"],
        "error": run["error"],
    }


def _cells(run: dict[str, Any]) -> tuple[str, ...]:
    loss, wall = run["val_loss"], run["wall_s"]
    return (
        run["status"],
        run["run_id"],
        f"{run['step'] or 0}/{run['steps']}" if run["steps"] else "",
        "" if loss is None else f"{loss:.4f}",
        "" if wall is None else f"{wall:.0f}",
        str(run["attempts"] or ""),
        cut(last_line(run["error"] or run["health"]), ERROR_WIDTH),
    )


def _counts(statuses: list[str]) -> str:
    counts = {status: statuses.count(status) for status in dict.fromkeys(sorted(statuses))}
    return ", ".join(f"{count} {status}" for status, count in counts.items()) or "no runs"
