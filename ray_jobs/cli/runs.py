"""`muon runs ls|show|diff`, and `rm` from `runs_rm`."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import click

from ray_jobs.cli.options import Group, json_option, next_command, store_option
from ray_jobs.cli.runs_rm import rm_command

if TYPE_CHECKING:
    import polars as pl

    from analysis.store import Store

FOLDER = "imported_from"
"""Field of an imported run's config (`muon_core.legacy.arms`)."""
LISTED = ("status", "run_id", "optimizer", "lr", "alpha", "seed", "steps", "final_val_loss", "wall_s")
PARTS = ("data", "gradients", "optimizer", "tracking", "evaluation", "checkpoint")
"""Where a run's time goes: columns `<part>_s` of the runs table."""
OUTCOME = ("status", "health", "error", "steps", "tokens", "final_val_loss", "last_val_loss", "best_val_loss",
           "final_val_accuracy", "loss_spikes", "skipped_steps", "attempts", "wall_s", "train_s",
           "tokens_per_s", "mfu", "peak_memory_bytes")  # fmt: skip
LONG = ("health", "error")
"""Of the outcome, texts that are shown whole."""
CIRCUMSTANCES = ("device", "world_size", "commit", "diff_hash", "data_hash", "init_hash", "first_batch_hash")
"""What a run was computed with, beside its environment."""


@click.group("runs", cls=Group)
def command() -> None:
    """List runs, show one, compare two, or remove some.

    \b
    muon runs ls --where "optimizer = 'muon' AND final_val_loss < 4"
    muon runs show muon-s42
    muon runs diff muon-s42 adamw-s42
    muon runs rm imported-muon-s42
    """


command.add_command(rm_command)


@command.command("ls")
@click.option("--where", metavar="EXPR", help="Only runs for which this SQL condition on the runs table holds.")
@click.option("--sweep", metavar="NAME", help="Only this sweep's runs.")
@store_option
@json_option
def list_command(where: str | None, sweep: str | None, store: str, as_json: bool) -> None:
    """List the runs of the store. --json has every column of the runs table (docs/tables.md).

    Of imported runs, the folder they were in is shown.

    \b
    muon runs ls
    muon runs ls --sweep demo --where "status <> 'done'"
    muon runs ls --where "alpha > 0.01 AND seed = 42" --json
    """
    import polars as pl

    from analysis.store import open_store
    from ray_jobs.cli.query import print_frame

    opened = open_store(store)
    view = opened.sweep(sweep) if sweep else opened
    runs = _matching(view, where).unique("run_id", keep="first").sort("run_id")
    shown = runs.with_columns(folder=pl.col("config_json").str.json_path_match(f"$.{FOLDER}"))
    more = [name for name in ("health", "folder") if shown[name].count()]
    # Whoever imported runs knows them by their folders, which need the room of what those runs have not.
    listed = [name for name in LISTED if "folder" not in more or shown[name].count()]
    print_frame(runs if as_json else shown.select(*listed, *more), as_json=as_json)
    if not as_json:
        then = "muon status" if runs.is_empty() else f"muon runs show {runs['run_id'][0]}"
        click.echo(f"next: {next_command(then)}", err=True)


@command.command("show")
@click.argument("run")
@store_option
@json_option
def show_command(run: str, store: str, as_json: bool) -> None:
    """Show one run: its outcome, where its time went, its config and its environment.

    RUN is a run id or the beginning of one.

    \b
    muon runs show muon-s42
    muon runs show muon-s42-3f9a1c07 --json
    """
    from analysis.store import open_store

    opened = open_store(store)
    row = find_run(opened, run)
    shown = {
        "run_id": row["run_id"],
        "sweeps": _sweeps(opened, row["run_id"]),
        "started_at": row["started_at"],
        "ended_at": row["ended_at"],
        "outcome": {name: row[name] for name in OUTCOME},
        "seconds": spent(row),
        "config": _parse(row["config_json"]),
        "environment": _environment(row),
    }
    if as_json:
        click.echo(json.dumps(shown, indent=2, default=str))
        return
    _print_run(shown)
    click.echo(f"next: {next_command('muon runs diff ' + row['run_id'] + ' RUN')}", err=True)


@command.command("diff")
@click.argument("one")
@click.argument("other")
@store_option
@json_option
def diff_command(one: str, other: str, store: str, as_json: bool) -> None:
    """Compare two runs: what differs in their config and environment, and how both ended.

    ONE and OTHER are run ids or beginnings of them. --json gives {section: {field: [one, other]}}.

    \b
    muon runs diff muon-s42 adamw-s42
    muon runs diff muon-s42 muon-s137 --json
    """
    from analysis.store import open_store

    opened = open_store(store)
    rows = find_run(opened, one), find_run(opened, other)
    sections = {
        "config": differing(*(_parse(row["config_json"]) for row in rows)),
        "environment": differing(*(_environment(row) for row in rows)),
        "outcome": {name: [row[name] for row in rows] for name in OUTCOME},
    }
    names = [row["run_id"] for row in rows]
    if as_json:
        click.echo(json.dumps({"runs": names, **sections}, indent=2, default=str))
        return
    _print_diff(names, sections)


def find_run(store: Store, text: str) -> dict[str, Any]:
    """Row of the run that `text` names or begins. Raises ValueError if that is no run, several, or a lost one."""
    view = store.run(text)
    rows = view.runs.collect()
    if rows.is_empty():
        raise ValueError(f"run {view.only} has lost its records; run its sweep again")
    return rows.row(0, named=True)


def narrowed(store: Store, name: str) -> Store:
    """The sweep of that name, or the run it begins as a sweep of its own. Raises ValueError for neither."""
    from analysis.members import view_of_run

    is_run = name not in store.sweep_names() and store.runs.collect()["run_id"].str.starts_with(name).any()
    return view_of_run(store, find_run(store, name)) if is_run else store.sweep(name)


def spent(row: dict[str, Any]) -> dict[str, float]:
    """Seconds of a run by part, `other` what no part counts and `wall` all; empty where nothing was counted."""
    parts = {part: row[f"{part}_s"] for part in PARTS if row[f"{part}_s"] is not None}
    wall = row["wall_s"]
    if wall is None:
        return parts
    return parts | {"other": max(0.0, wall - sum(parts.values())), "wall": wall} if parts else {"wall": wall}


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    """Fields, dotted, whose values differ; None where one has no such field."""
    left, right = _flat(one), _flat(other)
    return {
        name: [left.get(name), right.get(name)] for name in left | right if left.get(name) != right.get(name)
    }  # fmt: skip


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return flat


def _named(run_id: str) -> pl.Expr:
    import polars as pl

    return pl.col("run_id") == run_id


def _matching(view: Store, where: str | None) -> pl.DataFrame:
    from analysis.sql import query

    if not where:
        return view.runs.collect()
    return query(view, f"SELECT * FROM runs WHERE ({where})")  # noqa: S608  # the user's question to their own store


def _parse(text: str | None) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text) if text else {}
    return value


def _environment(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in CIRCUMSTANCES} | _parse(row["environment_json"])


def _sweeps(store: Store, run_id: str) -> list[str]:
    return sorted(store.sweep_runs.filter(_named(run_id)).collect()["sweep"].unique())


def _print_run(shown: dict[str, Any]) -> None:
    from ray_jobs.cli.text import record_text, terminal_width

    head = {name: shown[name] for name in ("run_id", "started_at", "ended_at")}
    head["sweeps"] = ", ".join(shown["sweeps"]) or "none"
    outcome = {name: value for name, value in shown["outcome"].items() if name not in LONG}
    sections = {
        "run": head | outcome,
        "seconds": _shares(shown["seconds"]),
        "config": _flat(shown["config"]),
        "environment": _flat(shown["environment"]),
    }
    for title, items in sections.items():
        known = [(f"  {name}", value) for name, value in items.items() if value is not None]
        if known:
            click.echo(f"{title}\n{record_text(known, terminal_width())}")
    for name in LONG:
        if text := shown["outcome"][name]:
            click.echo(f"{name}\n{textwrap.fill(text, terminal_width()) if name == 'health' else text.rstrip()}")


def _shares(seconds: dict[str, float]) -> dict[str, str]:
    wall = seconds.get("wall")
    return {
        part: f"{value:10.1f}" + (f"  {value / wall:6.1%}" if wall else "") for part, value in seconds.items()
    }  # fmt: skip


def _print_diff(names: list[str], sections: dict[str, dict[str, list[Any]]]) -> None:
    import polars as pl

    from ray_jobs.cli.text import cell_text, frame_text, terminal_width

    rows = []
    for title, fields in sections.items():
        shown = [(title, name, *map(cell_text, values)) for name, values in fields.items() if values != [None, None]]
        rows += shown or [(title, "(the same)", "", "")]
    frame = pl.DataFrame(rows, schema=["section", "field", "one", "other"], orient="row")
    click.echo(frame_text(frame, terminal_width()))
    click.echo(f"one: {names[0]}\nother: {names[1]}", err=True)
