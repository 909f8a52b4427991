"""`muon version`."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import click

from ray_jobs.cli.options import json_option

PACKAGES = ("muon-jobs", "torch", "ray", "polars", "pyarrow")


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Print the versions that decide a result.

    \b
    muon version
    """
    versions = {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}
    if as_json:
        click.echo(json.dumps(versions, indent=2))
        return
    for name, number in versions.items():
        click.echo(f"{name} {number}")
