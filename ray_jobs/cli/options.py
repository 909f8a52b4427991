"""What several commands share: options, a group that explains itself, and the wording of hints."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import Any

import click
from click.core import ParameterSource

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
            near = _did_you_mean(args[0], known) or "."
            ctx.fail(f"no command {args[0]!r}; the commands are {', '.join(known)}{near}")
        return super().resolve_command(ctx, args)


class Choice(click.Choice[str]):
    """Answers an unknown value with those there are, and the one it is most like."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx).rstrip(".")
        return message + (_did_you_mean(str(value), self.choices) or ".")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    from search_spaces.explain import did_you_mean  # which loads pydantic, that a help text need not wait for

    return did_you_mean(word, known)


def next_command(command: str) -> str:
    """`command` as the user would type it after this one: on the same store."""
    context = click.get_current_context()
    if context.get_parameter_source("store") is ParameterSource.COMMANDLINE:
        return f"{command} --store {shlex.quote(context.params['store'])}"
    return command
