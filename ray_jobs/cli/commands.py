"""The list of commands, each loaded when it is called, and the line on stderr that an error becomes."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import re
import sys
from typing import NoReturn

import click

from muon_core.store.storage import StoreClosed, StoreError, StoreUnavailable
from ray_jobs.cli.main import EXIT_INTERNAL, EXIT_UNREACHABLE, EXIT_USAGE
from ray_jobs.cli.options import STORE, Group

LOG_LEVELS = ("debug", "info", "warning", "error")

# name -> (module, help); the help stands here so that `muon --help` imports none of them
COMMANDS = {
    "pretrain": ("ray_jobs.cli.pretrain", "Train one run, in this process or on N workers."),
    "sweep": ("ray_jobs.cli.sweep", "Plan and run a sweep file: seeds x optimizers x parameters."),
    "status": ("ray_jobs.cli.status", "Show how far runs are, and why one failed."),
    "logs": ("ray_jobs.cli.logs", "Show what a run printed, also while it trains."),
    "failures": ("ray_jobs.cli.failures", "Show what runs died of, each way once, and what that cost."),
    "runs": ("ray_jobs.cli.runs", "List runs, show one, compare two, or remove some."),
    "query": ("ray_jobs.cli.query", "Answer a question to the tables, asked in SQL."),
    "report": ("ray_jobs.cli.report", "Write a sweep's answer as one HTML page with its data beside it."),
    "gates": ("ray_jobs.cli.gates", "Judge a sweep by its gates; the exit code is the verdict."),
    "anomalies": ("ray_jobs.cli.anomalies", "Show what stands out in a sweep's matrices, and what is normal there."),
    "cost": ("ray_jobs.cli.cost", "Show what runs took and cost, and what of it was in vain."),
    "import": ("ray_jobs.cli.import_", "Bring runs that other tools or projects logged into the store."),
    "export": ("ray_jobs.cli.export", "Write a sweep's curves as CSV, for W&B or for TensorBoard."),
    "compact": ("ray_jobs.cli.compact", "Rewrite ended runs into few objects that read fast."),
    "doctor": ("ray_jobs.cli.doctor", "Look a machine or a cluster over: what is wrong, and the remedy."),
    "data": ("ray_jobs.cli.data", "Prepare data sets: text of any size into token shards."),
    "optimizers": ("ray_jobs.cli.optimizers", "List the built-in optimizers, or check one, also your own."),
    "presets": ("ray_jobs.cli.presets", "Show how large the presets are, and what a run of each takes."),
    "schema": ("ray_jobs.cli.schema", "Print the JSON Schema of the sweep file, for editors."),
    "version": ("ray_jobs.cli.version", "Print the versions that decide a result."),
}


class _Lazy(Group):
    """Commands are imported when called: torch, ray and altair take seconds that `--help` must not cost."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BaseException as error:
            if "polars" not in sys.modules:
                raise
            from analysis.read_errors import explain

            if explained := explain(error, ctx.meta.get(STORE, "")):
                # Polars quotes the server's answer, which may name an access key: not even a debug log shows it.
                raise explained from (None if isinstance(error, OSError) else error)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _versions(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and (command := cli.get_command(context, "version")):
        context.invoke(command)
        context.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_versions, help="Same as `muon version`."
)
def cli() -> None:
    """Compare optimizers honestly: sweeps on Ray, results in Parquet, answers with intervals.

    \b
    muon sweep plan search_spaces/demo.yaml   # what would run, and what it could detect
    muon sweep run search_spaces/demo.yaml    # run it; the same command continues it
    muon report demo -o report                # the answer as a page

    Results go to the folder in MUON_STORE (default: results); MUON_LOG_LEVEL=debug adds tracebacks to errors.
    """


def call(arguments: list[str] | None) -> int:
    """Do what `arguments` say, those of this process by default; returns the exit code, or exits with that of an error.

    A sweep or config file with several errors gives a line for each, so that it is corrected in one go.
    """
    try:
        _set_log_level()
        _print_anything()
        _check_names(sys.argv[1:] if arguments is None else arguments)
        code = cli.main(arguments, prog_name="muon", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as asked:
        asked.show()
        sys.exit(EXIT_USAGE)
    except click.UsageError as error:
        _fail(EXIT_USAGE, f"{error.format_message()}{_see(error)}")
    except click.Abort as abort:
        if isinstance(abort.__cause__, KeyboardInterrupt):
            raise abort.__cause__ from None
        _fail(EXIT_USAGE, "not confirmed, nothing was done; --yes skips the question")
    except (StoreUnavailable, StoreClosed) as error:
        _fail(EXIT_UNREACHABLE, str(error))
    except StoreError as error:
        _fail(EXIT_USAGE, str(error))
    except PermissionError as error:
        _fail(EXIT_USAGE, f"{error}; check the permissions")
    except ConnectionError as error:
        _fail(EXIT_UNREACHABLE, f"cannot reach Ray: {error}")
    except ValueError as error:  # by convention the user's input; our own invariants are assertions
        _fail(EXIT_USAGE, *getattr(error, "lines", [str(error)]))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_unwritten()
        _fail(EXIT_INTERNAL, f"cannot write: {error.strerror}; free space, or write elsewhere")
    return code if isinstance(code, int) else 0


def _check_names(arguments: list[str]) -> None:
    """Raises ValueError for bytes that are no UTF-8, which no table or process of Ray could be told."""
    for name in (*arguments, os.environ.get("MUON_STORE", ""), os.getcwd()):
        if re.search("[\ud800-\udfff]", name):
            raise ValueError(f"{name!r} is not UTF-8; rename the file or folder")


def _set_log_level() -> None:
    level = os.environ.get("MUON_LOG_LEVEL") or "warning"
    if level.lower() not in LOG_LEVELS:
        raise ValueError(f"MUON_LOG_LEVEL is {level!r}; set it to {', '.join(LOG_LEVELS[:-1])} or {LOG_LEVELS[-1]}")
    logging.basicConfig(level=level.upper(), format="%(message)s")


def _print_anything() -> None:
    """Letters that the terminal's encoding lacks become question marks, not errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_unwritten() -> None:
    """What could not be written to stdout is given up: Python would try again at exit, and end with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _see(error: click.UsageError) -> str:
    return f" See `{error.ctx.command_path} --help`." if error.ctx else ""


def _fail(code: int, *lines: str) -> NoReturn:
    """End with `code`; each of `lines` is one line on stderr, whatever it quotes."""
    logging.getLogger(__name__).debug("the error was raised here", exc_info=True)
    for line in lines:
        click.echo(f"muon: {' '.join(line.split())}", err=True)
    sys.exit(code)
