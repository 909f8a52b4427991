"""`muon sweep submit`: the sweep as a job of a cluster, from a machine that is none of its nodes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shlex
import socket
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from ray_jobs.cli.main import EXIT_FAILED_RUNS, EXIT_INTERRUPTED
from ray_jobs.cli.options import next_command, store_option
from ray_jobs.cli.sweep_options import LIMIT, MAX_USD, ONLY, RETRY, SHARED_FOLDER, YES, headline

if TYPE_CHECKING:
    from muon_core.store.storage import Storage
    from ray_jobs.jobs import Job, Jobs
    from search_spaces.plan import Plan
    from search_spaces.spec import SweepSpec

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

    What is sent is this project's code as it is here, the sweep file with those it extends, and its corpora; no
    credentials. The cluster's nodes need what the code depends on, and credentials of their own for the store.

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
    from ray_jobs.sweep_plan import plan_sweep
    from search_spaces.spec import load_spec

    sweep, storage, address = load_spec(spec), open_storage(store), check_url(address)
    if not shared_folder:
        _check_store(storage, address, tunneled=tunnel is not None)
    check_writable(storage)
    planned = plan_sweep(sweep, storage, only=only, retry=retry)
    money(planned, storage, max_usd)
    click.echo(f"{sweep.name}: {headline(planned)}", err=True)
    for doubt in planned.doubts:
        click.echo(f"odd: {doubt}", err=True)
    command = _typed(spec, address, tunnel, shared_folder=shared_folder)
    if not (planned.coming or planned.elsewhere):
        return _nothing_left(planned, command, follow=follow)
    where = f"the cluster of {tunnel}" if tunnel else f"the cluster at {address}"
    if planned.coming and not yes:
        click.confirm(f"train {len(planned.coming[:limit])} runs on {where}?", abort=True, err=True)
    flags = _flags(only, retry, max_usd, limit, shared_folder=shared_folder)
    with _reached(address, tunnel) as reached:
        jobs = Jobs(reached)
        job, begin = _submit_or_join(jobs, sweep, planned, storage, flags, command=command)
        if follow:
            return _follow(jobs, job, begin, where)
    _say_what_next(planned, job)
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


def _flags(
    only: str | None, retry: tuple[str, ...], max_usd: float | None, limit: int | None, *, shared_folder: bool
) -> list[str]:
    """Options of `muon sweep run` in the job."""
    options = [
        *([] if only is None else ["--only", only]),
        *(word for status in retry for word in ("--retry", status)),
        *([] if max_usd is None else ["--max-usd", repr(max_usd)]),
        *([] if limit is None else ["--limit", str(limit)]),
        *(["--shared-folder"] if shared_folder else []),
    ]
    return [*options, "--yes"]


def _typed(spec: str, address: str, tunnel: Path | None, *, shared_folder: bool) -> str:
    """What was typed to submit this sweep to this cluster, without what chooses runs of it, and without its store."""
    words = ["muon", "sweep", "submit", spec]
    if tunnel:
        words += ["--tunnel", str(tunnel)]
    elif address != ADDRESS:
        words += ["--address", address]
    return shlex.join([*words, *(["--shared-folder"] if shared_folder else [])])


def _submit_or_join(
    jobs: Jobs, sweep: SweepSpec, planned: Plan, storage: Storage, flags: list[str], *, command: str
) -> tuple[Job, str]:
    """The job of the sweep, started now unless it runs already, and the end of the line that its log begins with."""
    from ray_jobs.job_package import PROGRAM, content
    from ray_jobs.stop_requests import user_name

    id_ = job_id(sweep.name, storage.place)
    package = _package(sweep, storage, id_, flags, command)
    who = f"{user_name()} on {socket.gethostname()}"
    facts = {"sweep": sweep.name, "store": storage.url, "who": who, "content": content(package)}
    for _ in range(3):  # somebody else may submit it, or forget it, at the same moment
        known = jobs.find(id_)
        if known and not known.is_over:
            _say_joined(known, content(package), command)
            return known, known.metadata.get("begin", "")
        if known:
            jobs.forget(id_)
        begin = secrets.token_hex(4)
        _leave_word(planned, storage, id_)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with tempfile.TemporaryDirectory(prefix="muon-job-") as folder:
            path = Path(folder, "job.zip")
            path.write_bytes(package)
            is_new = jobs.submit(
                id_, f"exec python3 {PROGRAM} {begin}", path, facts | {"begin": begin, "submitted_at": now}
            )
        if is_new and (job := jobs.find(id_)):
            _say_submitted(job, package)
            return job, begin
    raise ConnectionError(f"job {id_} is submitted and removed by others at this moment; try again")


def job_id(sweep: str, place: str) -> str:
    """What the job of a sweep is called: the same for the same sweep and store."""
    return f"muon-{sweep}-{hashlib.sha256(f'{sweep} {place}'.encode()).hexdigest()[:8]}"


def _package(sweep: SweepSpec, storage: Storage, id_: str, flags: list[str], command: str) -> bytes:
    """What is sent: the same bytes for the same file, code and options."""
    from ray_jobs.job_package import PRICES, SWEEP, pack, sent_sweep
    from ray_jobs.same_store import store_environment
    from ray_jobs.sent_job import SentJob

    text, corpora = sent_sweep(sweep)
    environment = store_environment(storage)
    if os.environ.get("MUON_PRICES"):
        environment["MUON_PRICES"] = PRICES
    if level := os.environ.get("MUON_LOG_LEVEL"):
        environment["MUON_LOG_LEVEL"] = level
    arguments = ("sweep", "run", SWEEP, "--store", storage.url, *flags)
    return pack(text, SentJob(arguments, command, _mark(id_), environment, corpora))


def _mark(id_: str) -> str:
    """Key of what a job knows its store by."""
    return f"marks/{id_}"


def _leave_word(planned: Plan, storage: Storage, id_: str) -> None:
    """Tell the store of a job that is to come: what it trains, with which changes to the code, and its mark."""
    from muon_core.store.sweeps import write_sweep
    from ray_jobs.kept_changes import keep_changes
    from ray_jobs.sweep_plan import sweep_record

    write_sweep(storage, sweep_record(planned))
    keep_changes(storage)
    storage.put(_mark(id_), socket.gethostname().encode())


def _say_submitted(job: Job, package: bytes) -> None:
    from muon_core.code_state import code_state

    commit, diff_hash = code_state()
    changes = f" with changes {diff_hash}" if diff_hash else ""
    code = f"commit {commit[:12]}{changes}" if commit else "the installed code"
    click.echo(f"submitted job {job.id}: {code}, {len(package) / 1e6:.1f} MB", err=True)


def _say_joined(job: Job, ours: str, command: str) -> None:
    facts = job.metadata
    since = f"since {facts['submitted_at']}" if "submitted_at" in facts else "already"
    click.echo(
        f"joined job {job.id}, {job.status.lower()} {since}, submitted by {facts.get('who', 'someone')}", err=True
    )
    if facts.get("content") != ours:
        stop = next_command(f"muon sweep stop {facts.get('sweep', 'NAME')}")
        click.echo(
            f"it was sent with another file, code or options than there are here; {stop} ends it, then submit again",
            err=True,
        )


def _follow(jobs: Jobs, job: Job, begin: str, where: str) -> int:
    """Show what the job prints until it is over; returns its exit code."""
    try:
        ended = jobs.follow(job.id, begin, click.echo)
    except KeyboardInterrupt:
        click.echo(f"job {job.id} goes on; {where} does not need this machine", err=True)
        stop = next_command(f"muon sweep stop {job.metadata.get('sweep', 'NAME')}")
        click.echo(f"next: {stop} to end it, or the same command to follow it again", err=True)
        return EXIT_INTERRUPTED
    except ConnectionError as error:
        raise ConnectionError(f"{error}; job {job.id} goes on, the same command follows it again") from error
    if ended.exit_code is None and ended.status == "FAILED":
        lines = ended.message.strip().splitlines() or ["no reason is known"]
        click.echo(f"job {job.id} did not start: {lines[-1][:300]}", err=True)
    else:
        click.echo(f"job {job.id} has ended with exit code {ended.outcome}", err=True)
    return ended.outcome


def _say_what_next(planned: Plan, job: Job) -> None:
    name = planned.spec.name
    run = planned.coming[0].run_id if planned.coming else "RUN"
    watch, logs, stop = (
        next_command(words) for words in (f"muon status {name} --watch", f"muon logs {run}", f"muon sweep stop {name}")
    )
    click.echo(f"next: {watch}; {logs}; {stop}", err=True)
