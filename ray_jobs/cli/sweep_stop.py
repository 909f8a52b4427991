"""`muon sweep stop`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ray_jobs.cli.options import next_command, store_option

if TYPE_CHECKING:
    from collections.abc import Collection

    from muon_core.store.ledger import Entry
    from muon_core.store.storage import Storage

LOOKS = 3  # a second apart: between two runs nobody trains for a moment


@click.command("stop")
@click.argument("name")
@click.option("--now", is_flag=True, help="Runs under way save themselves at once; else they go to their end.")
@store_option
def stop_command(name: str, now: bool, store: str) -> None:
    """Ask whoever runs the sweep NAME to stop, from any machine that can write to the store.

    It begins no further run, waits for those under way (with --now they save themselves within a step), and ends with
    exit code 130. It hears of this within 5 seconds, on S3 within 20. Running the sweep again continues it.

    \b
    muon sweep stop demo
    muon sweep stop demo --now
    """
    from analysis.store import open_store
    from muon_core.statuses import FINISHED
    from muon_core.store.known import read_known
    from ray_jobs.stop_requests import request_stop

    view = open_store(store).sweep(name)
    assert view.record is not None
    status = next_command(f"muon status {name}")
    runs = {run.run_id for run in view.record.runs}
    alive, statuses = _alive(view.storage, runs), read_known(view.storage).statuses
    if not alive and {statuses.get(run) for run in runs} <= {*FINISHED}:
        click.echo(f"nobody trains a run of {name} now, so there is nothing to stop\nnext: {status}", err=True)
        return
    request_stop(view.storage, name, now=now)
    if not alive:
        click.echo(
            f"asked to stop {name}, of which nobody trains a run now: a call that is starting hears of it, "
            f"a later one does not\nnext: {status}",
            err=True,
        )
        return
    who = ", ".join(sorted({entry.who for entry in alive.values()}))
    how = "saved at once" if now else "trained to the end first"
    click.echo(f"asked to stop {name}; what is under way is {how}: {len(alive)} at {who}", err=True)
    click.echo(f"next: {next_command(f'muon status {name} --watch')}", err=True)


def _alive(storage: Storage, runs: Collection[str]) -> dict[str, Entry]:
    from muon_core.store.ledger import read_alive

    for look in range(LOOKS):
        if look:
            time.sleep(1.0)
        if alive := read_alive(storage, runs):
            return alive
    return {}
