"""`muon sweep plan` and `muon sweep run`."""

from __future__ import annotations

import functools
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from muon_core.store.open import open_storage
from muon_core.store.reader import read_known, read_statuses
from muon_core.store.storage import Storage, check_writable
from muon_core.store.sweeps import Metric, SweepRecord, SweepRun, read_sweep, write_sweep
from muon_core.tables import FINISHED, last_line
from ray_jobs.address import check_address, check_store, probe
from ray_jobs.cli.main import EXIT_BUDGET, EXIT_FAILED_RUNS
from ray_jobs.cli.options import Group, json_option, next_command, store_option
from ray_jobs.cli.plan_text import render_plan
from ray_jobs.elsewhere import unfinished_alive, wait_for_others
from ray_jobs.money import money
from search_spaces.estimate import speeds
from search_spaces.expand import PlannedRun
from search_spaces.plan import Plan
from search_spaces.plan import plan as make_plan
from search_spaces.spec import SweepSpec, load_spec

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_jobs.admission import Admission
    from ray_jobs.prices import Prices
    from ray_jobs.run_queue import RunState

RESUMABLE = ("running", "stopped", None)  # what a run is recorded as that another process left before its end
JUDGED_RUNS = 300  # the newest runs of the store, by which the speed of the next is judged
SHOWN_FAILURES = 5  # the others are in `muon status`
RETRY = click.option(
    "--retry", type=click.Choice(["failed"]), help="Run failed runs again too; without it they stay as they are."
)


@click.group("sweep", cls=Group)
def command() -> None:
    """Plan and run a sweep file.

    A sweep file names one question, the seeds, and blocks of runs; `search_spaces/demo.yaml` explains the format. A run
    belongs to the store: what is done is not trained again, by whichever sweep it was asked for.

    \b
    muon sweep plan search_spaces/demo.yaml
    muon sweep run search_spaces/demo.yaml
    """


@command.command()
@click.argument("spec", type=click.Path())
@store_option
@RETRY
@click.option(
    "--sd",
    type=float,
    help="Standard deviation, between seeds, of an arm's difference to the baseline at the same seed, in units of the "
    "primary metric.  [default: a measured one]",
)
@json_option
def plan(spec: str, store: str, retry: str | None, sd: float | None, as_json: bool) -> None:
    """Show what `sweep run` would train, what is done, and what difference the seeds can detect. Starts nothing.

    \b
    muon sweep plan search_spaces/demo.yaml
    muon sweep plan search_spaces/demo.yaml --sd 0.01
    muon sweep plan search_spaces/demo.yaml --json
    """
    sweep = load_spec(spec)
    storage = open_storage(store)
    planned = _plan(sweep, storage, retry, sd)
    costs = money(planned, storage)
    if as_json:
        click.echo(json.dumps(planned.to_json() | costs.to_json(), indent=2))
        return
    click.echo(render_plan(planned, costs))
    click.echo(f"next: {_after(planned, spec, retry)}", err=True)


def _plan(sweep: SweepSpec, storage: Storage, retry: str | None, sd: float | None = None) -> Plan:
    """`sweep` beside what `storage` knows of its runs now."""
    statuses, ends = read_known(storage)
    record = read_sweep(storage, sweep.name)
    compare = functools.partial(
        make_plan,
        sweep,
        statuses,
        past=speeds(_newest(ends)),
        listed_before={run.run_id for run in record.runs} if record else (),
        retry_failed=retry == "failed",
        sd=sd,
    )
    planned = compare()
    alive = unfinished_alive(storage, statuses, [run.run_id for run in planned.runs])
    return compare(alive=alive) if alive else planned


def _newest(ends: pa.Table) -> list[dict[str, Any]]:
    """The end records by which speed is judged."""
    columns = ["status", "wall_s", "steps", "config_json", "ended_at"]
    rows: list[dict[str, Any]] = ends.select(columns).sort_by([("ended_at", "descending")])[:JUDGED_RUNS].to_pylist()
    return rows


def _after(planned: Plan, spec: str, retry: str | None) -> str:
    """What to type after having seen the plan."""
    run = f"muon sweep run {shlex.quote(spec)}"
    again = next_command(f"{run} --retry failed")
    if planned.to_run:
        return again if retry else next_command(run)
    show = next_command(f"muon report {planned.spec.name} -o report")
    return f"{show}, or to train the failed runs again {again}" if planned.counts.get("failed") else show


@command.command()
@click.argument("spec", type=click.Path())
@store_option
@RETRY
@click.option("--max-usd", type=click.FloatRange(min=0), help="Spend no more on the sweep; goes over `budget.usd`.")
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
    retry: str | None,
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
    muon sweep run search_spaces/demo.yaml --retry failed
    muon sweep run search_spaces/demo.yaml --limit 1 --in-process

    Exit codes: 0 done; 2 invalid input; 3 finished, but with failed runs or without independent
    seeds; 6 stopped by the budget; 7 cannot reach Ray or the store; 130 interrupted.
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
    planned = _plan(sweep, storage, retry)
    costs = money(planned, storage, max_usd)
    todo = planned.to_run[:limit]
    if todo and address and not yes:
        click.confirm(f"train {len(todo)} runs on the cluster at {address}?", abort=True, err=True)
    if todo and address:
        probe(address)
    write_sweep(storage, sweep_record(planned))
    click.echo(f"{sweep.name}: {_headline(planned)}", err=True)
    for doubt in planned.doubts:
        click.echo(f"odd: {doubt}", err=True)
    if todo and not address and (refusal := costs.refusal()):
        click.echo(f"{refusal}\nnext: {_raise_budget(spec)}", err=True)
        return EXIT_BUDGET
    if todo and not address:
        _prepare_data(todo)

    admission = costs.admission()

    def train(runs: Sequence[PlannedRun]) -> list[RunState]:
        if in_process:
            return _train_here(sweep, runs, storage, costs.prices, admission)
        return _train(sweep, runs, storage, costs.prices, admission, address=address, shared_folder=shared_folder)

    unpaid = _train_all(planned, todo, storage, train, wait=limit is None)
    is_answer = _print_answer(sweep.name, storage)
    if unpaid:
        click.echo(f"{unpaid}\nnext: {_raise_budget(spec)}", err=True)
        return EXIT_BUDGET
    return _conclude(planned, storage, spec) or (0 if is_answer else EXIT_FAILED_RUNS)


def _train_all(
    planned: Plan, todo: Sequence[PlannedRun], storage: Storage, train: Callable[..., list[RunState]], *, wait: bool
) -> str | None:
    """Train `todo` and, with `wait`, what other processes had begun and left; until all runs have an end.

    Others may come while this one trains: their runs are left to them in passing, and looked at here. Returns how the
    budget ended it, if it did.
    """
    begin, trained = time.monotonic(), 0
    unsettled = [run for run in planned.runs if run in planned.elsewhere or run in todo]
    while True:
        states = train(todo) if todo else []
        left = {state.run_id for state in states if state.status == "held"}
        unpaid = [state.error for state in states if state.error and state.error.startswith("budget:")]
        trained += sum(state.status not in ("held", "left out") for state in states)
        if unpaid or not wait:
            break
        left |= wait_for_others(storage, [run.run_id for run in unsettled], lambda line: click.echo(line, err=True))
        statuses = read_statuses(storage) if left else {}
        todo = [run for run in unsettled if run.run_id in left and statuses.get(run.run_id) in RESUMABLE]
        if not todo:
            break
    if trained:
        click.echo(f"trained {trained} runs in {time.monotonic() - begin:.0f} s", err=True)
    return unpaid[0] if unpaid else None


def _raise_budget(spec: str) -> str:
    """What to type to go on after the budget is spent."""
    return f"raise budget.usd, or {next_command(f'muon sweep run {shlex.quote(spec)} --max-usd X')}"


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
    others = f", {len(planned.elsewhere)} trained by another process" if planned.elsewhere else ""
    return f"{len(planned.runs)} runs ({counts}), {len(planned.to_run)} to train{others}"


def sweep_record(planned: Plan) -> SweepRecord:
    """What the store keeps of a sweep: the question, the file as read, and its runs with the names of their arms."""
    spec = planned.spec
    return SweepRecord(
        sweep=spec.name,
        question=spec.question,
        spec=spec.model_dump(mode="json"),
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
    prices: Prices,
    admission: Admission,
    *,
    address: str | None,
    shared_folder: bool,
) -> list[RunState]:
    """Run `runs` on Ray; how each ended is in the store."""
    if address:
        os.environ["RAY_ADDRESS"] = address  # Ray decides at import whether it is private
    from ray_jobs.cli.progress import Display  # Ray and torch load only when something is trained
    from ray_jobs.launch import run_on_ray

    with Display(len(runs)) as display:
        return run_on_ray(
            [run.config for run in runs],
            storage,
            sweep.resources,
            max_restarts=sweep.retries.infrastructure,
            prices=prices,
            admission=admission,
            watch=display.update,
            address=address,
            shared_folder=shared_folder,
        )


def _train_here(
    sweep: SweepSpec, runs: Sequence[PlannedRun], storage: Storage, prices: Prices, admission: Admission
) -> list[RunState]:
    """Run `runs` in this process; how each ended is in the store."""
    from ray_jobs.cli.progress import Display
    from ray_jobs.in_process import run_here

    with Display(len(runs), on_ray=False) as display:
        return run_here(
            [run.config for run in runs],
            storage,
            sweep.resources,
            prices=prices,
            admission=admission,
            watch=display.update,
        )


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
