"""`muon sweep plan` and `muon sweep run`."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from muon_core.config import RunConfig
from muon_core.results import read_statuses, write_sweep
from muon_core.storage import Storage, check_writable, open_storage
from ray_jobs.cli.main import EXIT_FAILED_RUNS
from ray_jobs.cli.options import json_option, store_option
from search_spaces.expand import PlannedRun
from search_spaces.plan import Plan, render
from search_spaces.plan import plan as make_plan
from search_spaces.spec import SweepSpec, load_spec

if TYPE_CHECKING:
    from ray_jobs.desk import RunState

RETRY = click.option(
    "--retry", type=click.Choice(["failed"]), help="Run failed runs again too; without it they stay as they are."
)


@click.group("sweep")
def command() -> None:
    """Plan and run a sweep file.

    A sweep file names one question, the seeds, and blocks of runs; `search_spaces/demo.yaml` explains the format. A run
    belongs to the store: what is done is not trained again, by whichever sweep it was asked for.
    """


@command.command()
@click.argument("spec", type=click.Path())
@store_option
@RETRY
@json_option
def plan(spec: str, store: str, retry: str | None, as_json: bool) -> None:
    """Show what `sweep run` would train, what is done, and what difference the seeds can detect. Starts nothing."""
    sweep = load_spec(spec)
    planned = make_plan(sweep, read_statuses(open_storage(store)), retry_failed=retry == "failed")
    click.echo(json.dumps(planned.to_json(), indent=2) if as_json else render(planned))


@command.command()
@click.argument("spec", type=click.Path())
@store_option
@RETRY
@click.option("--limit", type=click.IntRange(min=1), help="Train at most so many runs now.")
@click.option(
    "--address", envvar="RAY_ADDRESS", show_envvar=True, help="Ray cluster to join; default: a private local Ray."
)
@click.option("--yes", is_flag=True, help="Do not ask before using a cluster.")
def run(spec: str, store: str, retry: str | None, limit: int | None, address: str | None, yes: bool) -> int:
    """Train what is missing, then print the answer. Run it again to continue after Ctrl-C, a crash, or with more seeds.

    Exit codes: 0 done; 2 invalid input; 3 finished, but with failed runs; 7 cannot reach Ray; 130 interrupted.
    """
    sweep = load_spec(spec)
    storage = open_storage(store)
    check_writable(storage)
    planned = make_plan(sweep, read_statuses(storage), retry_failed=retry == "failed")
    write_sweep(storage, sweep.name, sweep_record(planned))
    todo = planned.to_run[:limit]
    click.echo(f"{sweep.name}: {_headline(planned)}", err=True)
    if todo and address and not yes:
        click.confirm(f"train {len(todo)} runs on the cluster at {address}?", abort=True)
    failed = _train(sweep, todo, storage, address) if todo else []
    _print_answer(sweep.name, storage)
    for state in failed:
        click.echo(f"failed: {state.run_id}: {(state.error or '').strip().splitlines()[-1]}", err=True)
    if failed:
        click.echo(f"next: see `muon status {sweep.name}`, then muon sweep run {spec} --retry failed", err=True)
        return EXIT_FAILED_RUNS
    click.echo(f"next: muon report {sweep.name} -o report", err=True)
    return 0


def _headline(planned: Plan) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in planned.counts.items() if count)
    return f"{len(planned.runs)} runs ({counts}), {len(planned.to_run)} to train"


def sweep_record(planned: Plan) -> dict[str, Any]:
    """What the store keeps of a sweep: the question, the file as read, and its runs with the names of their arms."""
    ids = defaultdict(set)
    for run in planned.runs:
        ids[run.config.arm_label].add(run.config.arm_id)
    return {
        "question": planned.spec.question,
        "spec": planned.spec.model_dump(mode="json"),
        "metrics": planned.spec.metrics.model_dump(mode="json"),
        "runs": [
            {"run_id": run.run_id, "block": block, "role": role, "arm": _arm_name(run.config, ids)}
            for run in planned.runs
            for block, role in run.members
        ],
    }


def _arm_name(config: RunConfig, ids: dict[str, set[str]]) -> str:
    """The readable label, or the id where arms of the sweep share a label (they differ in what labels leave out)."""
    return config.arm_label if len(ids[config.arm_label]) == 1 else config.arm_id


def _train(sweep: SweepSpec, runs: Sequence[PlannedRun], storage: Storage, address: str | None) -> list[RunState]:
    """Run `runs` on Ray; returns those that failed."""
    if address:
        os.environ["RAY_ADDRESS"] = address  # Ray decides at import whether it is private
    from ray_jobs.cli.progress import Display  # Ray and torch load only when something is trained
    from ray_jobs.launch import Resources, run_on_ray

    asked = sweep.resources
    resources = Resources(
        workers=asked.workers,
        cpus_per_worker=asked.cpus_per_worker,
        gpus_per_worker=asked.gpus_per_worker,
        max_concurrent=None if asked.max_concurrent == "auto" else asked.max_concurrent,
    )
    begin = time.monotonic()
    with Display(len(runs)) as display:
        states = run_on_ray(
            [run.config for run in runs],
            storage,
            resources,
            max_restarts=sweep.retries.infrastructure,
            watch=display.update,
            address=address,
        )
    click.echo(f"trained {len(runs)} runs in {time.monotonic() - begin:.0f} s", err=True)
    return [state for state in states if state.state == "failed"]


def _print_answer(name: str, storage: Storage) -> None:
    from analysis.summary import summarize
    from analysis.tables import open_store
    from analysis.terminal import render_summary

    click.echo(render_summary(summarize(open_store(storage.url).sweep(name))))
