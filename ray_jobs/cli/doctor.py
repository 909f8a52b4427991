"""`muon doctor`."""

from __future__ import annotations

import json
import os

import click

from ray_jobs.address import check_address
from ray_jobs.cli.main import EXIT_UNREACHABLE
from ray_jobs.cli.options import json_option, next_command, store_option


@click.command("doctor")
@click.option(
    "--address", envvar="RAY_ADDRESS", show_envvar=True, help="Ray cluster to look over; default: this machine alone."
)
@store_option
@json_option
def command(address: str | None, store: str, as_json: bool) -> int:
    """Look this machine over, or a cluster and each of its nodes: what is wrong, and what to do about it.

    A line each for Python, packages, GPUs with their driver, disk, shared memory, open files, the store, the clock, and
    ports that Ray listens on. With an address also whether the cluster answers and takes the token of this process; all
    its nodes are asked at once, for a minute at most, and read and write the store with their own credentials.

    --json gives an object with ok, and checks: a list of objects with where (`here` or a node's address), check, ok and
    text.

    \b
    muon doctor
    muon doctor --store s3://bucket/prefix
    muon doctor --address auto --store s3://bucket/prefix

    Exit codes: 0 all is well; 7 something is wrong.
    """
    if address == "local":  # Ray's own word for none
        address = None
    if address:
        check_address(address)
        os.environ["RAY_ADDRESS"] = address  # Ray decides at import whether it is private
    else:
        os.environ.pop("RAY_ADDRESS", None)
    click.echo("loading Ray ...", err=True)
    from ray_jobs.doctor import look_over_cluster, look_over_machine

    found = []
    for where, check in look_over_cluster(address, store, _say) if address else look_over_machine(store):
        found.append((where, check))
        if not as_json:
            place = f"{where:<16}" if address else ""
            click.echo(f"{'OK' if check.is_ok else 'wrong':<7}{place}{check.name:<15}{check.text}")
    wrong = sum(not check.is_ok for _, check in found)
    if as_json:
        told = [{"where": where, "check": check.name, "ok": check.is_ok, "text": check.text} for where, check in found]
        click.echo(json.dumps({"ok": not wrong, "checks": told}, indent=2))
    again = next_command(f"muon doctor{f' --address {address}' if address else ''}")
    if wrong:
        click.echo(f"{wrong} of {len(found)} checks found something wrong\nnext: mend it, then {again}", err=True)
        return EXIT_UNREACHABLE
    run = f"muon sweep run search_spaces/demo.yaml{f' --address {address}' if address else ''}"
    click.echo(f"next: {next_command(run)}", err=True)
    return 0


def _say(line: str) -> None:
    click.echo(line, err=True)
