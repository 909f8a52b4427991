"""`muon sweep confirm`: the file of a sweep that tries the best arms of another one on fresh seeds."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_jobs.cli.options import next_command, store_option
from ray_jobs.cli.sweep_records import sweep_spec
from search_spaces.confirm import follow_up, fresh_seeds
from search_spaces.write_yaml import as_sweep_yaml

if TYPE_CHECKING:
    from analysis.arms import ArmSummary
    from analysis.summary import Summary


@click.command("confirm")
@click.argument("name")
@store_option
@click.option("--top", type=click.IntRange(min=1), required=True, help="So many of the best arms.")
@click.option(
    "--fresh-seeds", "count", type=click.IntRange(min=1), required=True, help="So many seeds, none used before."
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), help="The file to write.  [default: NAME-confirm.yaml]"
)
def confirm_command(name: str, store: str, top: int, count: int, output: str | None) -> None:
    """Write a sweep file that tries the best arms of a sweep on seeds that had no part in choosing them.

    The best arm of many is partly the luckiest one. The file has the baseline and the controls too; its seeds are the
    next whole numbers after the largest that the sweep has. Arms are ranked by their difference to the baseline at the
    same seeds, those that lost none of their runs first.

    \b
    muon sweep confirm demo --top 1 --fresh-seeds 3
    muon sweep confirm demo --top 2 --fresh-seeds 5 -o demo-again.yaml
    """
    from analysis.store import open_store
    from analysis.summary import summarize

    view = open_store(store).sweep(name)
    record = view.record
    assert record is not None
    if record.is_imported:
        raise ValueError(f"sweep {name!r} was imported, it has no file whose arms could be run again")
    spec, summary = sweep_spec(record), summarize(view)
    best = _best(summary, top)
    names = record.arm_names()
    runs = {names[run.block, run.arm]: run.run_id for run in record.runs}
    used = {*spec.seeds, *(run.seed for run in record.runs if run.seed is not None)}
    sweep = follow_up(spec, [runs[arm.arm] for arm in best], fresh_seeds(used, count))
    path = Path(output or f"{sweep.name}.yaml")
    _write(
        path,
        f"# Written by `muon sweep confirm {name} --top {top} --fresh-seeds {count}`.\n{as_sweep_yaml(sweep)}",
    )
    for arm in best:
        click.echo(f"{arm.arm}: {summary.metric} {arm.mean:.4f}, {len(arm.values)} of {arm.planned} seeds", err=True)
    if all(arm.comparison and _effect(arm, summary) >= 0 for arm in best):
        click.echo(f"no arm has a better estimate than {summary.baseline}: confirmed would be the least bad", err=True)
    for gate in (gate.name for gate in spec.gates if gate not in sweep.gates):
        click.echo(f"gate {gate} is left out: it is about blocks that the file does not have", err=True)
    click.echo(path)
    click.echo(f"next: {next_command(f'muon sweep plan {shlex.quote(str(path))}')}", err=True)


def _best(summary: Summary, top: int) -> Sequence[ArmSummary]:
    """The `top` best arms. Raises ValueError where there are not so many with results."""
    known = [
        arm
        for arm in summary.arms
        if arm.role == "candidate" and arm.copy_of is None and arm.values and arm.verdict != "invalid"
    ]
    if not known:
        raise ValueError(
            f"no candidate of sweep {summary.sweep!r} has a result yet; run the file that `muon sweep show "
            f"{summary.sweep}` prints first"
        )
    if top > len(known):
        raise ValueError(f"--top {top}: only {len(known)} arms of sweep {summary.sweep!r} have results; ask for fewer")
    return sorted(known, key=lambda arm: (bool(arm.casualties), arm.comparison is None, _effect(arm, summary)))[:top]


def _effect(arm: ArmSummary, summary: Summary) -> float:
    """The difference to the baseline, without one the mean; the smaller the better, whatever the goal."""
    effect = arm.comparison.difference if arm.comparison else arm.mean or math.inf
    return effect if summary.goal == "min" else -effect


def _write(path: Path, text: str) -> None:
    """Raises ValueError where there is a file already, or no folder for it."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ValueError(f"{path} is there already; name another file with -o") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path}: there is no such folder; make it, or name another file with -o") from error
