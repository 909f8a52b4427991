"""`muon schema`."""

from __future__ import annotations

import json

import click

from search_spaces.schema import json_schema


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of the sweep file. An editor that knows it completes and checks field names.

    \b
    muon schema > sweep.schema.json

    With the YAML extension of VS Code, put `# yaml-language-server: $schema=sweep.schema.json` first in a sweep file.
    """
    click.echo(json.dumps(json_schema(), indent=2))
