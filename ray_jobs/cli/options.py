"""What several commands share: options, a group that explains itself, and the wording of hints."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from muon_core.spelling import did_you_mean

STORE = "store"  # key of `Context.meta`, which the contexts of a command line share


def _remember(context: click.Context, _: click.Parameter, value: str) -> str:
    context.meta[STORE] = value
    return value


store_option: Callable[[Any], Any] = click.option(
    "--store",
    envvar="MUON_STORE",
    default="results",
    show_default=True,
    show_envvar=True,
    callback=_remember,
    help="Folder or s3://bucket/prefix of the results.",
)
json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")


class Group(click.Group):
    """Answers an unknown command with those there are."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], known)}; the commands are {', '.join(known)}.")
        return super().resolve_command(ctx, args)


class Choice(click.Choice[str]):
    """Answers an unknown value with those there are, and the one it is most like."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx).rstrip(".")
        return f"{message}{did_you_mean(str(value), self.choices)}."


def next_command(command: str) -> str:
    """`command` as the user would type it after this one: on the same store."""
    context = click.get_current_context()
    if context.get_parameter_source("store") is ParameterSource.COMMANDLINE:
        return f"{command} --store {shlex.quote(context.params['store'])}"
    return command
