"""Options several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

store_option: Callable[[Any], Any] = click.option(
    "--store",
    envvar="MUON_STORE",
    default="results",
    show_default=True,
    show_envvar=True,
    help="Folder of the results.",
)
json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
