"""`muon sweep ls` and `muon sweep show`: what the store remembers of sweeps."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from muon_core.statuses import counts_text, in_order, status_told
from muon_core.store.keys import parse_sweeps
from muon_core.store.known import read_known
from muon_core.store.storage import Storage
from ray_jobs.cli.options import json_option, next_command, store_option
from ray_jobs.cli.text import table_lines, to_terminal
from ray_jobs.elsewhere import unfinished_alive
from search_spaces.spec import SweepSpec
from search_spaces.write_yaml import as_sweep_yaml

if TYPE_CHECKING:
    from muon_core.store.sweeps import SweepRecord

HEADER = ("sweep", "runs", "status", "recorded (UTC)", "question")


@click.command("ls")
@store_option
@json_option
def list_command(store: str, as_json: bool) -> None:
    """List the sweeps of the store: their runs by status, and when each was last changed.

    `planned` is a run that nobody has started. --json gives a list of objects with sweep, question, imported,
    recorded_at, runs and statuses.

    \b
    muon sweep ls
    muon sweep ls --json
    """
    from analysis.store import open_store

    storage = open_store(store).storage
    sweeps = _sweeps(storage)
    if as_json:
        click.echo(json.dumps(sweeps, indent=2))
        return
    rows = [HEADER, *(_cells(sweep) for sweep in sweeps)]
    for line in table_lines(rows):
        click.echo(to_terminal(line))
    hint = f"muon sweep show {sweeps[0]['sweep']}" if sweeps else "muon runs ls"
    click.echo(f"next: {next_command(hint)}", err=True)


@click.command("show")
@click.argument("name")
@store_option
@json_option
def show_command(name: str, store: str, as_json: bool) -> None:
    """Print the file of a sweep, as it was last run: YAML for `sweep plan` and `sweep run`.

    --json gives an object with sweep, question, imported, spec (the fields of the file, null if it was imported) and
    runs, each with its run_id, block, role, arm and seed.

    \b
    muon sweep show demo > again.yaml
    muon sweep show demo --json
    """
    from analysis.store import open_store

    record = open_store(store).sweep(name).record
    assert record is not None
    if as_json:
        fields = record.model_dump(mode="json", include={"sweep", "question", "runs"})
        spec = None if record.is_imported else record.spec
        click.echo(json.dumps(fields | {"imported": record.is_imported, "spec": spec}, indent=2))
        return
    if record.is_imported:
        raise ValueError(f"sweep {name!r} was imported, it has no file; `muon status {name}` lists its runs")
    click.echo(as_sweep_yaml(sweep_spec(record)), nl=False)
    click.echo(f"next: {next_command(f'muon status {name}')}", err=True)


def sweep_spec(record: SweepRecord) -> SweepSpec:
    """The sweep file. Raises ValueError if this release no longer takes it."""
    try:
        return SweepSpec.model_validate(record.spec)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(
            f"the file of sweep {record.sweep!r} is of a release with other fields ({where}: {first['msg']}); "
            f"`muon sweep show {record.sweep} --json` has it as it was"
        ) from error


def _sweeps(storage: Storage) -> list[dict[str, Any]]:
    """What `--json` shows of each sweep, by name; an imported one whose runs were all removed is none any more."""
    from muon_core.store.sweeps import read_record

    written = {item.key: item.modified for item in storage.stat("sweeps/")}
    statuses = read_known(storage).statuses
    records = [read_record(storage, key) for key in parse_sweeps(written).values()]
    alive = unfinished_alive(storage, statuses, {run.run_id for record in records for run in record.runs})
    found = []
    for (name, key), record in zip(parse_sweeps(written).items(), records, strict=True):
        if record.is_imported and not record.runs:
            continue
        runs = {run.run_id for run in record.runs}
        counts = Counter(status_told(statuses.get(run), alive=run in alive) for run in runs)
        found.append(
            {
                "sweep": name,
                "question": record.question,
                "imported": record.is_imported,
                "recorded_at": datetime.fromtimestamp(written[key], UTC).isoformat(timespec="seconds"),
                "runs": len(runs),
                "statuses": in_order(counts),
            }
        )
    return found


def _cells(sweep: dict[str, Any]) -> tuple[str, ...]:
    recorded = datetime.fromisoformat(sweep["recorded_at"])
    question = "(imported)" if sweep["imported"] else sweep["question"]
    return (
        sweep["sweep"],
        str(sweep["runs"]),
        counts_text(sweep["statuses"]),
        f"{recorded:%Y-%m-%d %H:%M}",
        " ".join(question.split()),
    )
