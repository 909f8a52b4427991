"""`muon version`."""

from __future__ import annotations

from importlib.metadata import version

import click


@click.command("version")
def command() -> None:
    """Print the versions that decide a result."""
    for package in ("muon-jobs", "torch", "ray", "polars", "pyarrow"):
        click.echo(f"{package} {version(package)}")
