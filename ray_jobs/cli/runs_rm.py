"""`muon runs rm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from muon_core.spelling import counted
from muon_core.store.open import open_storage
from ray_jobs.cli.options import next_command, store_option

if TYPE_CHECKING:
    from analysis.store import Store
    from muon_core.store.storage import Storage
    from muon_core.store.sweeps import SweepRecord


@click.command("rm")
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
def rm_command(names: Sequence[str], yes: bool, store: str) -> None:
    """Remove runs from the store, as ones that were imported by mistake.

    RUN is a run id or the beginning of one. Sweeps that list it are named before it is asked. It is gone from every
    table at once; `muon compact` frees its place ten minutes later.

    \b
    muon runs rm imported-muon-s42
    muon runs rm imported-muon-s42-38622f27 --yes
    """
    from analysis.store import open_store
    from muon_core.store.ledger import read_alive
    from muon_core.store.removal import remove_run

    opened, storage = open_store(store), open_storage(store)
    runs = list(dict.fromkeys(opened.run(name).only or name for name in names))
    if alive := read_alive(storage, runs):
        run, entry = next(iter(alive.items()))
        raise ValueError(f"run {run} is being trained ({entry.who}); `muon sweep stop` ends a sweep")
    listing = [record for record in opened.readable_records() if {run.run_id for run in record.runs} & {*runs}]
    for run in runs:
        click.echo(f"{run}: {_about(opened, run)}; {_listed(listing, run)}", err=True)
    if not yes:
        click.confirm(f"remove {counted(len(runs), 'run')}?", abort=True, err=True)
    emptied = [record.sweep for record in listing if _take_out(storage, record, runs)]
    freed = [item for run in runs for item in remove_run(storage, run)]
    size = sum(item.size for item in freed) / 1e6
    go = f"{counted(len(freed), 'object')} ({size:.1f} MB) {'goes' if len(freed) == 1 else 'go'}"
    click.echo(f"removed {counted(len(runs), 'run')}; {go} with `muon compact`, from ten minutes on")
    for sweep in emptied:
        click.echo(f"sweep {sweep} has no runs left, so `muon sweep ls` does not list it", err=True)
    click.echo(f"next: {next_command('muon runs ls')}", err=True)


def _about(opened: Store, run: str) -> str:
    """Status and last loss of a run, as far as its records tell."""
    rows = opened.run(run).runs.collect()
    if rows.is_empty():
        return "it has lost its records"
    status, loss = rows.row(0, named=True)["status"], rows.row(0, named=True)["last_val_loss"]
    return status if loss is None else f"{status}, val_loss {loss:.4f}"


def _listed(listing: Sequence[SweepRecord], run: str) -> str:
    """Which sweeps list it, and what becomes of that."""
    then = {True: "and will not any more", False: "and would train it again"}
    told = [
        f"sweep {record.sweep} lists it, {then[bool(record.spec.get('imported'))]}"
        for record in listing
        if any(one.run_id == run for one in record.runs)
    ]
    return "; ".join(told) or "no sweep lists it"


def _take_out(storage: Storage, record: SweepRecord, runs: Sequence[str]) -> bool:
    """List `runs` no more in a sweep of imported runs, which nothing makes again; others stay as they were asked.

    Returns: whether no run is left in it.
    """
    from muon_core.store.sweeps import write_sweep

    if not record.is_imported:
        return False
    rest = tuple(run for run in record.runs if run.run_id not in runs)
    write_sweep(storage, record.model_copy(update={"runs": rest}))
    return not rest
