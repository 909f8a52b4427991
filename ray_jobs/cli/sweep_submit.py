"""`muon sweep submit`: the sweep as a job of a cluster, from a machine that is none of its nodes."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from muon_core.spelling import counted
from ray_jobs.cli.main import EXIT_FAILED_RUNS, EXIT_INTERRUPTED
from ray_jobs.cli.options import next_command, store_option
from ray_jobs.cli.sweep_options import LIMIT, MAX_USD, ONLY, RETRY, SHARED_FOLDER, YES, headline

if TYPE_CHECKING:
    from muon_core.store.storage import Storage
    from ray_jobs.jobs import Jobs
    from ray_jobs.submission import Sent
    from search_spaces.plan import Plan

ADDRESS = "http://127.0.0.1:8265"


@click.command("submit")
@click.argument("spec", type=click.Path())
@store_option
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    default=ADDRESS,
    show_default=True,
    help="Of Ray's dashboard on the head of the cluster, as it is reached from here.",
)
@click.option(
    "--tunnel",
    type=click.Path(path_type=Path),
    metavar="CLUSTER_YAML",
    help="Reach the dashboard through ssh to the head of the cluster that this file of `ray up` describes.",
)
@click.option("-f", "--follow", is_flag=True, help="Show what the job prints, and end with its exit code.")
@ONLY
@RETRY
@MAX_USD
@LIMIT
@SHARED_FOLDER
@YES
def submit_command(
    spec: str,
    store: str,
    address: str,
    tunnel: Path | None,
    follow: bool,
    only: str | None,
    retry: tuple[str, ...],
    max_usd: float | None,
    limit: int | None,
    shared_folder: bool,
    yes: bool,
) -> int:
    """Have a Ray cluster run the sweep as a job: this machine may go away then. Submitted again, it is joined.

    What is sent is this project's code as it is here, the sweep file with those it extends, its corpora and the files
    of its optimizers; no credentials. The cluster's nodes need what the code depends on, and credentials of their own
    for the store.

    \b
    muon sweep submit search_spaces/demo.yaml --store s3://bucket/prefix
    muon sweep submit search_spaces/demo.yaml --store s3://bucket/prefix --tunnel cluster.yaml --follow

    Exit codes: 0 submitted or joined; 2 invalid input; 7 cannot reach Ray or the store. With --follow those of
    `muon sweep run`; Ctrl-C then leaves the job running and ends with 130.
    """
    from muon_core.store.open import open_storage
    from muon_core.store.storage import check_writable
    from ray_jobs.jobs import Jobs, check_url
    from ray_jobs.money import money
    from ray_jobs.submission import Submission, submit_or_join
    from ray_jobs.sweep_plan import plan_sweep
    from search_spaces.spec import load_spec

    sweep, storage, address = load_spec(spec), open_storage(store), check_url(address)
    if not shared_folder:
        _check_store(storage, address, tunneled=tunnel is not None)
    check_writable(storage)
    planned = plan_sweep(sweep, storage, only=only, retry=retry)
    if planned.missing:
        raise ValueError(f"{spec}: {planned.missing}")
    money(planned, storage, max_usd)
    click.echo(f"{sweep.name}: {headline(planned)}", err=True)
    for doubt in planned.doubts:
        click.echo(f"odd: {doubt}", err=True)
    command = _typed(spec, address, tunnel, shared_folder=shared_folder)
    if not (planned.coming or planned.elsewhere):
        return _nothing_left(planned, command, follow=follow)
    where = f"the cluster of {tunnel}" if tunnel else f"the cluster at {address}"
    if planned.coming and not yes:
        click.confirm(f"train {counted(len(planned.coming[:limit]), 'run')} on {where}?", abort=True, err=True)
    options = _options(only, retry, max_usd, limit, shared_folder=shared_folder)
    with _reached(address, tunnel) as reached:
        jobs = Jobs(reached)
        sent = submit_or_join(
            jobs, Submission(sweep, planned, storage, options, command), partial(click.echo, err=True)
        )
        _say_sent(sent)
        if follow:
            return _follow(jobs, sent, where)
    _say_what_next(planned)
    return 0


def _nothing_left(planned: Plan, command: str, *, follow: bool) -> int:
    """Say so; returns the exit code, with `follow` that of a sweep that was run."""
    name, failed = planned.spec.name, planned.counts.get("failed", 0)
    again = f"{next_command(f'muon failures {name}')}, then {next_command(f'{command} --retry failed')}"
    todo = again if failed else next_command(f"muon report {name} -o report")
    click.echo(f"nothing is left to train\nnext: {todo}", err=True)
    return EXIT_FAILED_RUNS if failed and follow else 0


def _check_store(storage: Storage, address: str, *, tunneled: bool) -> None:
    from ray_jobs.address import check_store, unshared

    if tunneled and storage.is_local:
        raise unshared(storage)
    check_store(storage, urlsplit(address).netloc)


@contextlib.contextmanager
def _reached(address: str, cluster: Path | None) -> Iterator[str]:
    """The address at which the dashboard is reached while the block is entered."""
    if cluster is None:
        yield address
        return
    from ray_jobs.tunnel import tunnel

    with tunnel(cluster) as opened:
        yield opened


def _options(
    only: str | None, retry: tuple[str, ...], max_usd: float | None, limit: int | None, *, shared_folder: bool
) -> list[str]:
    """Options of `muon sweep run` in the job."""
    return [
        *([] if only is None else ["--only", only]),
        *(word for status in retry for word in ("--retry", status)),
        *([] if max_usd is None else ["--max-usd", repr(max_usd)]),
        *([] if limit is None else ["--limit", str(limit)]),
        *(["--shared-folder"] if shared_folder else []),
    ]


def _typed(spec: str, address: str, tunnel: Path | None, *, shared_folder: bool) -> str:
    """What was typed to submit this sweep to this cluster, without what chooses runs of it, and without its store."""
    words = ["muon", "sweep", "submit", spec]
    if tunnel:
        words += ["--tunnel", str(tunnel)]
    elif address != ADDRESS:
        words += ["--address", address]
    return shlex.join([*words, *(["--shared-folder"] if shared_folder else [])])


def _say_sent(sent: Sent) -> None:
    """What became of it: a line, and one more where the job that runs is another than was asked for."""
    from muon_core.code_state import code_state

    job, facts = sent.job, sent.job.metadata
    if sent.is_new:
        commit, diff_hash = code_state()
        changes = f" with changes {diff_hash}" if diff_hash else ""
        code = f"commit {commit[:12]}{changes}" if commit else "the installed code"
        click.echo(f"submitted job {job.id}: {code}, {sent.size / 1e6:.1f} MB", err=True)
        return
    since, who = (facts.get(name, "unknown") for name in ("submitted_at", "who"))
    click.echo(f"joined job {job.id}: {job.status.lower()}, submitted at {since} by {who}", err=True)
    if not sent.is_same:
        stop = next_command(f"muon sweep stop {facts.get('sweep', 'NAME')}")
        other = "it was sent with another file, code or options than there are here"
        click.echo(f"{other}; {stop} ends it, then submit again", err=True)


def _follow(jobs: Jobs, sent: Sent, where: str) -> int:
    """Show what the job prints until it is over; returns its exit code."""
    job = sent.job
    try:
        ended = jobs.follow(job.id, sent.begin, click.echo)
    except KeyboardInterrupt:
        click.echo(f"job {job.id} goes on; {where} does not need this machine", err=True)
        stop = next_command(f"muon sweep stop {job.metadata.get('sweep', 'NAME')}")
        click.echo(f"next: {stop} to end it, or the same command to follow it again", err=True)
        return EXIT_INTERRUPTED
    if ended.exit_code is None and ended.status == "FAILED":
        lines = ended.message.strip().splitlines() or ["no reason is known"]
        click.echo(f"job {job.id} did not start: {lines[-1][:300]}", err=True)
    else:
        click.echo(f"job {job.id} has ended with exit code {ended.outcome}", err=True)
    return ended.outcome


def _say_what_next(planned: Plan) -> None:
    name = planned.spec.name
    run = planned.coming[0].run_id if planned.coming else "RUN"
    watch, logs, stop = (
        next_command(words) for words in (f"muon status {name} --watch", f"muon logs {run}", f"muon sweep stop {name}")
    )
    click.echo(f"next: {watch}; {logs}; {stop}", err=True)
