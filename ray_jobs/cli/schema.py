"""`muon schema`."""

from __future__ import annotations

import json

import click

from search_spaces.schema import json_schema


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of the sweep file. An editor that knows it completes names, checks values, and shows type,
    range, default and meaning of what the pointer is on.

    \b
    muon schema > sweep.schema.json

    Editors with the YAML language server (VS Code: the YAML extension) want this line first in a sweep file:

    \b
    # yaml-language-server: $schema=sweep.schema.json

    docs/parameters.md holds the same as tables. What joins several fields only `muon sweep plan` checks.
    """
    click.echo(json.dumps(json_schema(), indent=2))
