"""The `muon` command: exit codes, one-line errors, and the list of commands, each loaded when it is called."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import click

from muon_core.storage import StoreError

# 0 done, 1 internal error, 2 usage or invalid input, 3 finished with failed runs, 7 Ray or the store is out of reach
EXIT_USAGE, EXIT_FAILED_RUNS, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 2, 3, 7, 130

# name -> (module, help); the help stands here so that `muon --help` imports none of them
COMMANDS = {
    "pretrain": ("ray_jobs.cli.pretrain", "Train one run, in this process or on N workers."),
    "sweep": ("ray_jobs.cli.sweep", "Plan and run a sweep file: seeds x optimizers x parameters."),
    "status": ("ray_jobs.cli.status", "Show how far the runs of a sweep are."),
    "report": ("ray_jobs.cli.report", "Write a sweep's answer as one HTML page with its data beside it."),
    "version": ("ray_jobs.cli.version", "Print the versions that decide a result."),
}


class _Lazy(click.Group):
    """Commands are imported when called: torch, ray and altair take seconds that `--help` must not cost."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            ctx.fail(f"no command {args[0]!r}; the commands are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Compare optimizers honestly: sweeps on Ray, results in Parquet, answers with intervals.

    \b
    muon sweep plan search_spaces/demo.yaml     what would run, and what it could detect
    muon sweep run  search_spaces/demo.yaml     run it; the same command continues it
    muon report demo -o report                  the answer as a page

    Results go to the folder in MUON_STORE (default: results).
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point: expected errors become one line on stderr and an exit code, never a traceback."""
    logging.basicConfig(level=os.environ.get("MUON_LOG_LEVEL", "warning").upper(), format="%(message)s")
    try:
        code = cli.main(arguments, prog_name="muon", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; finished runs are kept, the same command continues", EXIT_INTERRUPTED)
    except StoreError as error:
        _fail(str(error), EXIT_USAGE)
    except ConnectionError as error:
        _fail(f"cannot reach Ray: {error}", EXIT_UNREACHABLE)
    except ValueError as error:  # by convention the user's input; our own invariants are assertions
        _fail(str(error), EXIT_USAGE)


def _fail(message: str, code: int) -> None:
    if os.environ.get("MUON_LOG_LEVEL", "").lower() == "debug":
        logging.getLogger(__name__).debug("", exc_info=True)
    click.echo(f"muon: {' '.join(message.split())}", err=True)
    sys.exit(code)
