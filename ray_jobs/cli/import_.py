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
@click.argument("source", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--name", metavar="SWEEP", help="Sweep that lists the runs.  [default: PATH's name]")
@click.option(
    "--baseline", metavar="OPTIMIZER", help="It, or the arm of that name, is what the others are compared with."
)
@click.option("--optimizer", metavar="NAME", help="Optimizer of runs whose logs name none.")
@click.option(
    "--map", "maps", multiple=True, metavar="MEANING=COLUMN,...", help="What columns mean, where that is not guessed."
)
@click.option("--dry-run", is_flag=True, help="Show what would be imported, and write nothing.")
@store_option
def command(
    source: Path,
    name: str | None,
    baseline: str | None,
    optimizer: str | None,
    maps: tuple[str, ...],
    dry_run: bool,
    store: str,
) -> int:
    """Bring runs that other programs logged in PATH, a file or a folder, into the store (docs/import.md).

    Read are tables (CSV, JSON lines, Parquet), logs of W&B, Lightning, Ray Tune, Hugging Face's Trainer,
    modded-nanogpt, nanochat and llm.c, and metrics.json and JSONL files of the older project.
    How columns are read is shown first; --map corrects it, as in --map step=iter,val_accuracy=acc:percent.
    Torn and repeated lines are counted, and the verdict is printed. Importing the same files again adds nothing, and
    a log that has grown adds what is new.

    \b
    muon import table.csv --dry-run
    muon import table.csv --map val_loss=metric_a,elapsed_s=time:minutes
    muon import old_project/experiments --name muon-vs-adamw --baseline adamw

    Exit codes: 0 done; 3 some runs were left out, each named with the reason.
    """
    from analysis.store import open_store
    from muon_core.legacy.runs import read_runs, run_files
    from muon_core.legacy.write import write_runs
    from ray_jobs.cli.import_logs import read_shown, show_runs, sweep_name, tell_others
    from ray_jobs.cli.import_text import tell_import

    root = source.resolve()
    sweep = name or re.sub(r"[^A-Za-z0-9._-]+", "-", sweep_name(root)) or "imported"
    older = run_files(root) if root.is_dir() else {}
    if older and (maps or optimizer):
        raise click.UsageError(f"--map and --optimizer are for logs of other tools; {source} is of the older project.")
    unread: dict[str, str] = {}
    if older:
        tell_others(root, {path for paths in older.values() for path in paths})
    runs = read_runs(root, older, unread) if older else read_shown(root, maps, optimizer, unread)
    if dry_run:
        show_runs(list(runs), unread, baseline)
        return EXIT_FAILED_RUNS if unread else 0
    storage = open_storage(store)
    check_writable(storage)
    done = write_runs(storage, runs, sweep, baseline, unread)
    tell_import(done, open_store(storage).sweep(sweep))
    return EXIT_FAILED_RUNS if done.damaged else 0
