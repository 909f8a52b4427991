"""`muon status`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ray_jobs.cli.options import json_option, next_command, store_option
from ray_jobs.cli.standing_text import run_lines, summary_lines

if TYPE_CHECKING:
    from analysis.standing import Standing
    from analysis.store import Store


@click.command("status")
@click.argument("name", required=False)
@store_option
@click.option("--watch", is_flag=True, help="Look again every 2 s (10 s on S3) until all runs have come to their end.")
@json_option
def command(name: str | None, store: str, watch: bool, as_json: bool) -> None:
    """Show how far runs are: those of the sweep NAME, the run whose id NAME begins, or all in the store.

    All is read from the store, from wherever it can be read. A run is `running` while its process gives signs of life,
    and `interrupted` if that went without a word; `planned` is one that its sweep lists and nobody has begun. Losses
    are in nats per token. One run is shown with its traceback and what ended each attempt that failed.

    --json gives a list of objects with run_id, arm, seed, status, attempts, step, steps, val_loss, wall_s, health (how
    the momentum failed, if it did), error (a full traceback), host, pid and silent_s (seconds since the last sign of
    life); of one run also failures: the number, status, failure (its kind) and last step of each such attempt. With
    --watch it is an object a line at each look: sweep, counts, left_s, usd, committed_usd, best, failure, and runs,
    that list.

    \b
    muon status demo
    muon status demo --watch
    muon status muon-s42
    muon status --json
    """
    from analysis.standing import Follower
    from analysis.store import open_store

    opened = open_store(store)
    follower = Follower(_narrowed(opened, name))
    if watch:
        from ray_jobs.cli.status_watch import watch as follow  # loads rich

        standing = follow(follower, opened.storage, as_json=as_json)
    else:
        standing = follower.look()
    if as_json:
        if not watch:
            told = [asdict(run) for run in standing.runs]
            if len(told) == 1:
                told[0]["failures"] = _failures(opened, told[0]["run_id"])
            click.echo(json.dumps(told, indent=2))
        return
    for line in run_lines(standing):
        click.echo(line)
    if len(standing.runs) == 1:
        (run,) = standing.runs
        for each in _failures(opened, run.run_id):
            click.echo(f"attempt {each['attempt']} {each['status']}: {each['failure']}, at step {each['step']}")
        for text in filter(None, (run.health, run.error)):
            click.echo(f"\n{text.rstrip()}")
    for line in summary_lines(standing):
        click.echo(line, err=True)
    click.echo(f"next: {_after(standing, name)}", err=True)


def _after(standing: Standing, name: str | None) -> str:
    """What to type after having seen how runs stand."""
    counts, sweep = standing.counts, standing.sweep
    if "running" in counts:
        return next_command(f"muon status {name} --watch" if name else "muon status --watch")
    if len(standing.runs) == 1 and "planned" not in counts:
        return next_command(f"muon runs show {standing.runs[0].run_id}")
    if "failed" in counts:
        failed = next(run.run_id for run in standing.runs if run.status == "failed")
        return next_command(f"muon failures {sweep}" if sweep else f"muon status {failed}")
    if not standing.runs:
        return next_command("muon sweep ls")
    if sweep and not standing.is_over:
        return f"{next_command('muon sweep run FILE')}, the file that {next_command(f'muon sweep show {sweep}')} prints"
    return next_command(f"muon report {sweep} -o report" if sweep else "muon runs ls")


def _failures(store: Store, run_id: str) -> list[dict[str, Any]]:
    """What ended each attempt at a run that failed, in their order."""
    attempts = store.run(run_id).attempts.drop_nulls("failure").sort("attempt")
    return attempts.select("attempt", "status", "failure", "step").collect().to_dicts()


def _narrowed(store: Store, name: str | None) -> Store:
    """The sweep or run that `name` stands for. Raises ValueError if it is no sweep and begins no run, or several."""
    if name is None:
        return store
    if name in (sweeps := store.sweep_names()):
        return store.sweep(name)
    if not store.runs.collect()["run_id"].str.starts_with(name).any():
        raise ValueError(f"no sweep or run {name!r} in {store.storage.url}; its sweeps: {', '.join(sweeps) or 'none'}")
    return store.run(name)
