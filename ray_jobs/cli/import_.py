"""`muon import`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from muon_core.store.open import open_storage
from muon_core.store.storage import check_writable
from ray_jobs.cli.main import EXIT_FAILED_RUNS
from ray_jobs.cli.options import store_option


@click.command("import")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", metavar="SWEEP", help="Sweep that lists the runs.  [default: DIR's name]")
@click.option(
    "--baseline", metavar="OPTIMIZER", help="It, or the arm of that name, is what the others are compared with."
)
@store_option
def command(folder: Path, name: str | None, baseline: str | None, store: str) -> int:
    """Bring runs of older projects below DIR, in metrics.json and JSONL files, into the store (docs/import.md).

    Torn and repeated lines are counted, and the verdict is printed. Importing the same files again adds nothing, and
    a log that has grown adds what is new.

    \b
    muon import old_project/experiments
    muon import old_project/experiments --name muon-vs-adamw --baseline adamw

    Exit codes: 0 done; 3 some runs were left out, each named with the reason.
    """
    from analysis.store import open_store
    from muon_core.legacy.write import import_runs
    from ray_jobs.cli.import_text import tell_import

    root = folder.resolve()
    sweep = name or re.sub(r"[^A-Za-z0-9._-]+", "-", root.name) or "imported"
    storage = open_storage(store)
    check_writable(storage)
    done = import_runs(storage, root, sweep, baseline)
    tell_import(done, open_store(storage).sweep(sweep))
    return EXIT_FAILED_RUNS if done.damaged else 0
