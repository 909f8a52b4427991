"""`muon failures`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ray_jobs.cli.options import json_option, next_command, store_option
from ray_jobs.cli.text import cut, terminal_width

if TYPE_CHECKING:
    from analysis.failures import Deaths

SHOWN_RUNS = 3
SHOWN_LINES = 12  # of a traceback, its end; `muon status RUN` has all of it


@click.command("failures")
@click.argument("name", required=False)
@store_option
@json_option
def command(name: str | None, store: str, as_json: bool) -> None:
    """Show what runs of the sweep NAME died of, or of all in the store: what died alike is told once.

    It groups attempts that failed, were lost or diverged by the type and words of their error, without numbers, ids
    and paths, and by the place in the code. The kinds are program, out_of_memory, infrastructure (a worker or its node
    died), preemption, hang, and diverged. A process that the kernel killed for want of memory is infrastructure, for
    nobody can tell. Lost are the hours and USD of what failed, and of steps that were done again.

    --json gives a list of objects with signature, kind, attempts, runs, since_done (of them have a result by now),
    lost_hours, lost_usd, last_at and error.

    \b
    muon failures demo
    muon failures --json
    """
    from analysis.failures import deaths
    from analysis.store import open_store

    opened = open_store(store)
    groups = deaths(opened.sweep(name) if name else opened)
    if as_json:
        click.echo(json.dumps([asdict(group) for group in groups], indent=2, default=str))
        return
    click.echo("\n\n".join(map(_text, groups)) or "no attempt failed, was lost or diverged")
    click.echo(f"next: {_after(groups, name)}", err=True)


def _after(groups: list[Deaths], name: str | None) -> str:
    """What to type after having seen `groups`."""
    if not groups:
        return next_command(f"muon status {name}" if name else "muon status")
    hint = next_command(f"muon logs {groups[0].runs[0]}")
    if any(group.kind != "diverged" and group.since_done < len(group.runs) for group in groups):
        return f"{hint}; to train what failed again {next_command('muon sweep run SPEC --retry failed')}"
    return hint


def _text(group: Deaths) -> str:
    """Some lines about a group: what, how often, whom, what it cost, and the end of a traceback."""
    width = terminal_width()
    times = "once" if group.attempts == 1 else f"{group.attempts} times"
    runs = ", ".join(group.runs[:SHOWN_RUNS])
    more = f" and {len(group.runs) - SHOWN_RUNS} more" if len(group.runs) > SHOWN_RUNS else ""
    done = f", {group.since_done} of them done since" if group.since_done else ""
    price = "at a price that is not known" if group.lost_usd is None else f"{group.lost_usd:.4g} USD"
    last = f", the last {group.last_at:%Y-%m-%d %H:%M} UTC" if group.last_at else ""
    lines = [
        cut(f"{times}, {group.kind}: {group.signature}", width),
        f"  {runs}{more}{done}{last}",
        f"  lost {group.lost_hours:.3g} h, {price}",
    ]
    told = (group.error or "").rstrip().splitlines()
    if len(told) > 1:  # one line is the signature over again
        lines += ["  ..."] if len(told) > SHOWN_LINES else []
        lines += [f"  {line}".rstrip() for line in told[-SHOWN_LINES:]]
    return "\n".join(lines)
