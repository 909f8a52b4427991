"""`muon compact`."""

from __future__ import annotations

import click

from muon_core.store.compaction import compact
from muon_core.store.open import open_storage
from muon_core.store.storage import READER_GRACE_S
from ray_jobs.cli.main import EXIT_FAILED_RUNS
from ray_jobs.cli.options import store_option


@click.command("compact")
@click.argument("sweep", required=False)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=READER_GRACE_S,
    show_default=True,
    metavar="SECONDS",
    help="Objects stay this long after others took their place, so that a reader can finish.",
)
@store_option
def command(sweep: str | None, grace: float, store: str) -> int:
    """Rewrite the rows of ended runs into few objects that read fast, and remove what these replace.

    Of SWEEP's runs, or of all. It may run beside training, readers and itself; when killed, run it again.

    \b
    muon compact
    muon compact demo --grace 0   # nobody is reading: what is replaced goes at once

    Exit codes: 0 done; 3 some runs were left as they are, each named with the reason.
    """
    from analysis.store import open_store

    opened = open_store(store)
    record = opened.sweep(sweep).record if sweep else None
    runs = [run.run_id for run in record.runs] if record else None
    done = compact(open_storage(store), runs, grace_s=grace)
    click.echo(f"finals written   {done.finals}")
    click.echo(f"packs written    {done.packs}")
    click.echo(f"objects removed  {done.removed} ({done.removed_bytes / 1e6:.1f} MB)")
    for name, reason in sorted(done.problems.items()):
        problem = reason if reason.startswith(f"run {name}:") else f"{name}: {reason}"
        click.echo(f"left as it is: {' '.join(problem.split())}", err=True)
    return EXIT_FAILED_RUNS if done.problems else 0
