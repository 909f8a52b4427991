"""`muon sweep plan` and `muon sweep run`; `ls` and `show` stand in `sweep_records.py`."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Collection, Sequence

import click
from click.core import ParameterSource

from muon_core.store.open import open_storage
from muon_core.store.reader import read_statuses
from muon_core.store.storage import Storage, check_writable
from muon_core.store.sweeps import Metric, SweepRecord, SweepRun, write_sweep
from muon_core.tables import FINISHED, last_line
from ray_jobs.address import check_address, check_store, probe
from ray_jobs.cli.main import EXIT_FAILED_RUNS
from ray_jobs.cli.options import Group, json_option, next_command, store_option
from ray_jobs.cli.plan_text import render_plan
from ray_jobs.cli.sweep_records import list_command, portable, show_command
from search_spaces.expand import PlannedRun
from search_spaces.plan import Plan
from search_spaces.plan import plan as make_plan
from search_spaces.spec import SweepSpec, load_spec

SHOWN_FAILURES = 5  # the others are in `muon status`
RETRY = click.option(
    "--retry",
    multiple=True,
    type=click.Choice(["failed", "diverged"]),
    help="Run those runs again too; without it they stay as they are. Failed ones go on from their checkpoint, "
    "diverged ones begin anew. May be given twice.",
)
ONLY = click.option(
    "--only",
    metavar="EXPR",
    help="Train only runs for which this SQL condition holds, over their block, role, arm, arm_id, optimizer, seed, "
    "status and parameters.",
)


@click.group("sweep", cls=Group)
def command() -> None:
    """Plan and run a sweep file; list the sweeps of the store, and get the file of one back.

    A sweep file names one question, the seeds, and blocks of runs; `search_spaces/demo.yaml` explains the format. A run
    belongs to the store: what is done is not trained again, by whichever sweep it was asked for.

    \b
    muon sweep plan search_spaces/demo.yaml
    muon sweep run search_spaces/demo.yaml
    muon sweep show demo
    """


command.add_command(list_command)
command.add_command(show_command)


@command.command()
@click.argument("spec", type=click.Path())
@store_option
@ONLY
@RETRY
@click.option(
    "--sd",
    type=float,
    help="Standard deviation, between seeds, of an arm's difference to the baseline at the same seed, in units of the "
    "primary metric.  [default: a measured one]",
)
@json_option
def plan(spec: str, store: str, only: str | None, retry: tuple[str, ...], sd: float | None, as_json: bool) -> None:
    """Show what `sweep run` would train, what is done, and what difference the seeds can detect. Starts nothing.

    \b
    muon sweep plan search_spaces/demo.yaml
    muon sweep plan search_spaces/demo.yaml --sd 0.01
    muon sweep plan search_spaces/demo.yaml --only "optimizer = 'muon' AND seed = 42"
    muon sweep plan search_spaces/demo.yaml --json
    """
    sweep = load_spec(spec)
    planned = _narrowed(make_plan(sweep, read_statuses(open_storage(store)), retry=retry, sd=sd), only)
    if as_json:
        click.echo(json.dumps(planned.to_json(), indent=2))
        return
    click.echo(render_plan(planned))
    click.echo(f"next: {_after(planned, spec, only, retry)}", err=True)


def _narrowed(planned: Plan, only: str | None) -> Plan:
    """`planned`, which starts only what the condition chooses, if there is one."""
    if only is None:
        return planned
    from ray_jobs.cli.only import narrow

    return narrow(planned, only)


def _after(planned: Plan, spec: str, only: str | None, retry: tuple[str, ...]) -> str:
    """What to type after having seen the plan."""
    run = f"muon sweep run {shlex.quote(spec)}" + (f" --only {shlex.quote(only)}" if only else "")
    again = next_command(f"{run} --retry failed")
    if planned.to_run:
        return next_command(" ".join([run, *(f"--retry {status}" for status in retry)]))
    show = next_command(f"muon report {planned.spec.name} -o report")
    return f"{show}, or to train the failed runs again {again}" if planned.counts.get("failed") else show


@command.command()
@click.argument("spec", type=click.Path())
@store_option
@ONLY
@RETRY
@click.option("--limit", type=click.IntRange(min=1), help="Train at most so many runs now.")
@click.option(
    "--address", envvar="RAY_ADDRESS", show_envvar=True, help="Ray cluster to join; default: a private local Ray."
)
@click.option("--shared-folder", is_flag=True, help="All nodes of the cluster share the folder of the results.")
@click.option("--yes", is_flag=True, help="Do not ask before using a cluster.")
@click.option(
    "--in-process",
    is_flag=True,
    help="For a debugger: no Ray is started, one run after another trains in this process. The rows are those of "
    "`workers: 1` on Ray, bit for bit.",
)
@click.pass_context
def run(
    context: click.Context,
    spec: str,
    store: str,
    only: str | None,
    retry: tuple[str, ...],
    limit: int | None,
    address: str | None,
    shared_folder: bool,
    yes: bool,
    in_process: bool,
) -> int:
    """Train what is missing, then print the answer. Run it again to continue after Ctrl-C, a crash, or with more seeds.

    \b
    muon sweep run search_spaces/demo.yaml
    muon sweep run search_spaces/demo.yaml --limit 2
    muon sweep run search_spaces/demo.yaml --only "block = 'adamw' AND seed < 200"
    muon sweep run search_spaces/demo.yaml --retry failed --retry diverged
    muon sweep run search_spaces/demo.yaml --limit 1 --in-process

    Exit codes: 0 done; 2 invalid input; 3 finished, but with failed runs or without independent
    seeds; 7 cannot reach Ray; 130 interrupted.
    """
    sweep = load_spec(spec)
    storage = open_storage(store)
    if in_process:
        _check_in_process(context, sweep)
        address = None
    if address == "local":  # Ray's own word for none
        address = None
        os.environ.pop("RAY_ADDRESS", None)
    if address:
        check_address(address)
        if not shared_folder:
            check_store(storage, address)
    check_writable(storage)
    planned = _narrowed(make_plan(sweep, read_statuses(storage), retry=retry), only)
    todo = planned.to_run[:limit]
    if todo and address and not yes:
        click.confirm(f"train {len(todo)} runs on the cluster at {address}?", abort=True, err=True)
    if todo and address:
        probe(address)
    write_sweep(storage, sweep_record(planned))
    click.echo(f"{sweep.name}: {_headline(planned)}", err=True)
    for doubt in planned.doubts:
        click.echo(f"odd: {doubt}", err=True)
    if todo and not address:
        _prepare_data(todo)
    begin = time.monotonic()
    if todo and in_process:
        _train_here(sweep, todo, storage, planned.finished)
    elif todo:
        _train(sweep, todo, storage, planned.finished, address=address, shared_folder=shared_folder)
    if todo:
        click.echo(f"trained {len(todo)} runs in {time.monotonic() - begin:.0f} s", err=True)
    is_answer = _print_answer(sweep.name, storage)
    return _conclude(planned, storage, spec) or (0 if is_answer else EXIT_FAILED_RUNS)


def _check_in_process(context: click.Context, sweep: SweepSpec) -> None:
    """Raises UsageError if a cluster is asked for too, not only named by RAY_ADDRESS; ValueError for more workers."""
    if context.get_parameter_source("address") == ParameterSource.COMMANDLINE:
        raise click.UsageError("--in-process trains without Ray; leave --address out.")
    from ray_jobs.in_process import check_resources

    check_resources(sweep.resources)


def _conclude(planned: Plan, storage: Storage, spec: str) -> int:
    """Say what failed, now or before, and what to do next; returns the exit code."""
    statuses = read_statuses(storage)
    failed = [run.run_id for run in planned.runs if statuses.get(run.run_id) == "failed"]
    left = [run for run in planned.runs if statuses.get(run.run_id) not in (*FINISHED, "failed")]
    for run_id, error in _errors(storage, failed[:SHOWN_FAILURES]):
        click.echo(f"failed: {run_id}: {last_line(error)}", err=True)
    if failed:
        name = next_command(f"muon status {planned.spec.name}")
        again = next_command(f"muon sweep run {shlex.quote(spec)} --retry failed")
        click.echo(f"{len(failed)} of {len(planned.runs)} runs failed\nnext: {name}, then {again}", err=True)
        return EXIT_FAILED_RUNS
    todo = f"muon sweep run {shlex.quote(spec)}" if left else f"muon report {planned.spec.name} -o report"
    click.echo(f"next: {next_command(todo)}", err=True)
    return 0


def _errors(storage: Storage, failed: Sequence[str]) -> list[tuple[str, str | None]]:
    """(run_id, traceback) of each."""
    import polars as pl

    from analysis.store import open_store

    runs = open_store(storage).runs.filter(pl.col("run_id").is_in(failed)).sort("run_id")
    return list(runs.select("run_id", "error").collect().iter_rows())


def _headline(planned: Plan) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in planned.counts.items() if count)
    return f"{len(planned.runs)} runs ({counts}), {len(planned.to_run)} to train"


def sweep_record(planned: Plan) -> SweepRecord:
    """What the store keeps of a sweep: the question, the file as read, and its runs with the names of their arms."""
    spec = planned.spec
    return SweepRecord(
        sweep=spec.name,
        question=spec.question,
        spec=portable(spec),
        metrics=Metric.model_validate(spec.metrics.model_dump()),
        runs=tuple(
            SweepRun(
                run_id=run.run_id,
                block=block,
                role=role,
                arm=planned.names[run.config.arm_id],
                seed=run.config.seed,
            )
            for run in planned.runs
            for block, role in run.members
        ),
    )


def _train(
    sweep: SweepSpec,
    runs: Sequence[PlannedRun],
    storage: Storage,
    again: Collection[str],
    *,
    address: str | None,
    shared_folder: bool,
) -> None:
    """Run `runs` on Ray, those of `again` from the first step; how each ended is in the store."""
    if address:
        os.environ["RAY_ADDRESS"] = address  # Ray decides at import whether it is private
    from ray_jobs.cli.progress import Display  # Ray and torch load only when something is trained
    from ray_jobs.launch import run_on_ray

    with Display(len(runs)) as display:
        run_on_ray(
            [run.config for run in runs],
            storage,
            sweep.resources,
            again=again,
            max_restarts=sweep.retries.infrastructure,
            watch=display.update,
            address=address,
            shared_folder=shared_folder,
        )


def _train_here(sweep: SweepSpec, runs: Sequence[PlannedRun], storage: Storage, again: Collection[str]) -> None:
    """Run `runs` in this process; how each ended is in the store."""
    from ray_jobs.cli.progress import Display
    from ray_jobs.in_process import run_here

    with Display(len(runs), on_ray=False) as display:
        run_here([run.config for run in runs], storage, sweep.resources, again=again, watch=display.update)


def _prepare_data(runs: Sequence[PlannedRun]) -> None:
    """Tokenize what the runs read, once, before workers would each do it; bad data is an error before Ray starts."""
    from muon_core.data.shards import prepare

    for data, vocab_size in dict.fromkeys((run.config.data, run.config.model.vocab_size) for run in runs):
        click.echo(f"tokens: corpus {data.corpus}, vocabulary {vocab_size}", err=True)
        prepare(data, vocab_size)


def _print_answer(name: str, storage: Storage) -> bool:
    """Print it; returns whether it can be one: runs that share what their seeds should vary give none."""
    from analysis.store import open_store
    from analysis.summary import summarize
    from ray_jobs.cli.answer_text import render_summary

    summary = summarize(open_store(storage).sweep(name))
    click.echo(render_summary(summary))
    return not summary.errors
