"""`muon sweep plan` and `muon sweep run`; the other commands stand in modules named after them, `sweep_stop.py`."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

import click
from click.core import ParameterSource

from muon_core.failures import divergence
from muon_core.spelling import counted
from muon_core.statuses import EARLY, ENDED, last_line
from muon_core.store.known import read_known
from muon_core.store.open import open_storage
from muon_core.store.storage import Storage, check_writable
from ray_jobs.address import check_address, check_store, probe
from ray_jobs.breaker import sweep_breaker
from ray_jobs.cli.confirm import confirm_command
from ray_jobs.cli.main import EXIT_BUDGET, EXIT_FAILED_RUNS, EXIT_INTERRUPTED
from ray_jobs.cli.options import Group, json_option, next_command, store_option
from ray_jobs.cli.plan_text import render_plan
from ray_jobs.cli.sweep_options import LIMIT, MAX_USD, ONLY, RETRY, SHARED_FOLDER, YES, headline
from ray_jobs.cli.sweep_records import list_command, show_command
from ray_jobs.cli.sweep_stop import stop_command
from ray_jobs.cli.sweep_submit import submit_command
from ray_jobs.machine import misfit
from ray_jobs.money import money
from ray_jobs.sent_job import check_sent, sent_job
from ray_jobs.sweep_plan import plan_sweep, sweep_record
from search_spaces.errors import Problems
from search_spaces.plan import Plan
from search_spaces.spec import SweepSpec, load_spec

SHOWN_FAILURES = 5  # the others are in `muon failures`


@click.group("sweep", cls=Group)
def command() -> None:
    """Plan, run and stop a sweep; list the sweeps of the store, get the file of one back, or one to confirm it.

    A sweep file names one question, the seeds, and blocks of runs; `search_spaces/demo.yaml` explains the format. A run
    belongs to the store: what is done is not trained again, by whichever sweep it was asked for.

    \b
    muon sweep plan search_spaces/demo.yaml
    muon sweep run search_spaces/demo.yaml
    muon sweep show demo
    """


command.add_command(list_command)
command.add_command(show_command)
command.add_command(submit_command)
command.add_command(stop_command)
command.add_command(confirm_command)


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
def plan(
    spec: str, store: str, only: str | None, retry: tuple[str, ...], sd: float | None, as_json: bool
) -> None:  # fmt: skip
    """Show what `sweep run` would train, what is done, and what difference the seeds can detect. Starts nothing.

    \b
    muon sweep plan search_spaces/demo.yaml
    muon sweep plan search_spaces/demo.yaml --sd 0.01
    muon sweep plan search_spaces/demo.yaml --only "optimizer = 'muon' AND seed = 42"
    muon sweep plan search_spaces/demo.yaml --json
    """
    sweep = load_spec(spec)
    storage = open_storage(store)
    planned = plan_sweep(sweep, storage, only=only, retry=retry, sd=sd)
    costs = money(planned, storage)
    if planned.coming and not os.environ.get("RAY_ADDRESS") and (needs := misfit(sweep.resources)):
        planned = dataclasses.replace(planned, doubts=(*planned.doubts, needs))
    if as_json:
        click.echo(json.dumps(planned.to_json() | costs.to_json(), indent=2))
        return
    click.echo(render_plan(planned, costs))
    click.echo(f"next: {_after(planned, spec, only, retry)}", err=True)


def _after(planned: Plan, spec: str, only: str | None, retry: tuple[str, ...]) -> str:
    """What to type after having seen the plan."""
    if planned.missing:
        return f"{planned.spec.prepare}, then {_run_command(spec, only, retry)}"
    if planned.coming:
        return _run_command(spec, only, retry)
    again = _run_command(spec, only, ["failed"])
    show = next_command(f"muon report {planned.spec.name} -o report")
    return f"{show}, or to train the failed runs again {again}" if planned.counts.get("failed") else show


def _run_command(spec: str, only: str | None, retry: Sequence[str]) -> str:
    """What trains the sweep."""
    run = _command(spec) + (f" --only {shlex.quote(only)}" if only else "")
    return next_command(" ".join([run, *(f"--retry {status}" for status in retry)]))


def _command(spec: str) -> str:
    """What runs the sweep, or what submits this job again."""
    job = sent_job()
    return job.command if job else f"muon sweep run {shlex.quote(spec)}"


@command.command()
@click.argument("spec", type=click.Path())
@store_option
@ONLY
@RETRY
@MAX_USD
@LIMIT
@click.option(
    "--address", envvar="RAY_ADDRESS", show_envvar=True, help="Ray cluster to join; default: a private local Ray."
)
@SHARED_FOLDER
@YES
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
    max_usd: float | None,
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

    Exit codes: 0 done; 2 invalid input; 3 finished, but with failed runs, with runs that `breaker` or `stop`
    left out, or without independent seeds; 6 stopped by the budget; 7 cannot reach Ray or the store; 130
    interrupted, or stopped by `muon sweep stop`.
    """
    from muon_core.store.sweeps import write_sweep
    from ray_jobs.searching import Search
    from ray_jobs.stop_requests import SweepStopped
    from ray_jobs.sweep_run import Place, is_unpaid, train_all

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
    check_sent(storage)
    check_writable(storage)
    planned = plan_sweep(sweep, storage, only=only, retry=retry)
    if planned.missing:
        raise ValueError(f"{spec}: {planned.missing}")
    costs = money(planned, storage, max_usd)
    breaker = sweep_breaker(planned, storage)
    left_out = {run.run_id: reason for run in planned.to_run if (reason := breaker.refuse(run.run_id))}
    todo = [run for run in planned.to_run if run.run_id not in left_out][:limit]
    to_choose = planned.to_choose[: limit - len(todo) if limit else None]
    coming = (*todo, *to_choose)
    if coming and address and not yes:
        click.confirm(f"train {counted(len(coming), 'run')} on the cluster at {address}?", abort=True, err=True)
    if coming and address:
        probe(address)
        os.environ["RAY_ADDRESS"] = address  # Ray decides at import whether it is private
        from ray_jobs.cluster import check_cluster

        check_cluster(address)
    if coming and not (address or in_process) and (needs := misfit(sweep.resources)):
        raise ValueError(needs)

    write_sweep(storage, sweep_record(planned))
    click.echo(f"{sweep.name}: {headline(planned)}", err=True)
    for doubt in planned.doubts:
        click.echo(f"odd: {doubt}", err=True)
    if coming and not address and (refusal := costs.refusal()):
        click.echo(f"{refusal}\nnext: {_raise_budget(spec)}", err=True)
        return EXIT_BUDGET
    place = Place(address, shared_folder=shared_folder, in_process=in_process)
    search = Search(planned.spec, storage, len(to_choose)) if to_choose else None
    try:
        ended = train_all(planned, todo, storage, costs, breaker, place, _say, wait=limit is None, search=search)
    except SweepStopped as stopped:
        click.echo(f"{sweep.name}: {stopped}\nnext: {_run_command(spec, only, retry)}", err=True)
        return EXIT_INTERRUPTED
    if search:
        planned = plan_sweep(sweep, storage)
        write_sweep(storage, sweep_record(planned))  # with what other calls chose meanwhile
    left_out |= ended.kept
    is_answer = _print_answer(sweep.name, storage)
    if planned.dropped:
        click.echo(f"dropped: {planned.dropped_text}", err=True)
    for reason, count in Counter(reason for reason in left_out.values() if not is_unpaid(reason)).items():
        click.echo(f"left out: {counted(count, 'run')}: {reason}", err=True)
    if unpaid := next(filter(is_unpaid, left_out.values()), None):
        click.echo(f"{unpaid}\nnext: {_raise_budget(spec)}", err=True)
        return EXIT_BUDGET
    return _conclude(planned, storage, spec, ended.failed) or (0 if is_answer else EXIT_FAILED_RUNS)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _raise_budget(spec: str) -> str:
    """What to type to go on after the budget is spent."""
    return f"raise budget.usd, or {next_command(f'{_command(spec)} --max-usd X')}"


def _check_in_process(context: click.Context, sweep: SweepSpec) -> None:
    """Raises UsageError if a cluster is asked for too, not only named by RAY_ADDRESS; ValueError for what takes Ray."""
    if context.get_parameter_source("address") == ParameterSource.COMMANDLINE:
        raise click.UsageError("--in-process trains without Ray; leave --address out.")
    if sweep.early_stopping:
        problems = Problems(sweep.source)
        problems.add(
            ("early_stopping",),
            "goes through Ray Tune, which --in-process does without, so all runs would be complete; drop one of them",
        )
        raise problems.error()
    from ray_jobs.in_process import check_resources

    check_resources(sweep.resources)


def _conclude(planned: Plan, storage: Storage, spec: str, failed_now: Mapping[str, str | None]) -> int:
    """Say what failed, now or before, and what to do next; returns the exit code."""
    statuses = read_known(storage).statuses
    failed = [run.run_id for run in planned.runs if statuses.get(run.run_id) == "failed"]
    refused = _refused(planned, storage, statuses)
    ended = (*ENDED, *([EARLY] if planned.spec.early_stopping else []))
    left = [run for run in planned.runs if statuses.get(run.run_id) not in ended]
    recorded = _errors(storage, failed[:SHOWN_FAILURES])
    unrecorded = {run_id: error for run_id, error in failed_now.items() if run_id not in failed}
    failed += unrecorded
    for run_id, error in [*recorded, *unrecorded.items()][:SHOWN_FAILURES]:
        click.echo(f"failed: {run_id}: {last_line(error)}", err=True)
    for run_id, error in refused[:SHOWN_FAILURES]:
        click.echo(f"failed: {run_id}: diverged, which `stop` counts as failed: {error}", err=True)
    if failed or refused:
        name = next_command(f"muon failures {planned.spec.name}")
        again = next_command(f"{_command(spec)} --retry {'failed' if failed else 'diverged'}")
        count = len(failed) + len(refused)
        click.echo(f"{count} of {counted(len(planned.runs), 'run')} failed\nnext: {name}, then {again}", err=True)
        return EXIT_FAILED_RUNS
    if left or planned.to_choose:
        todo = _command(spec)
    elif planned.search:
        todo = f"muon sweep confirm {planned.spec.name} --top 1 --fresh-seeds 3"
    else:
        todo = f"muon report {planned.spec.name} -o report"
    click.echo(f"next: {next_command(todo)}", err=True)
    return 0


def _refused(planned: Plan, storage: Storage, statuses: dict[str, str]) -> list[tuple[str, str | None]]:
    """(run_id, reason) of the runs that diverged in a way which `stop` counts as failed."""
    ways = {rule.when for rule in planned.spec.stop}
    diverged = [run.run_id for run in planned.runs if ways and statuses.get(run.run_id) == "diverged"]
    found = _errors(storage, diverged) if diverged else []
    return [(run_id, reason) for run_id, reason in found if divergence(reason) in ways]


def _errors(storage: Storage, failed: Sequence[str]) -> list[tuple[str, str | None]]:
    """(run_id, traceback or reason) of each."""
    import polars as pl

    from analysis.store import open_store

    runs = open_store(storage).runs.filter(pl.col("run_id").is_in(failed)).sort("run_id")
    return list(runs.select("run_id", "error").collect().iter_rows())


def _print_answer(name: str, storage: Storage) -> bool:
    """Print it; returns whether it can be one: runs that share what their seeds should vary give none."""
    from analysis.store import open_store
    from analysis.summary import summarize
    from ray_jobs.cli.answer_text import render_summary

    summary = summarize(open_store(storage).sweep(name))
    click.echo(render_summary(summary))
    return not summary.errors
