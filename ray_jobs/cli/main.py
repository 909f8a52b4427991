"""The program `muon`: hears signals before it loads anything, to its last moment, and knows the exit codes."""

from __future__ import annotations

import os
import signal
import sys

from ray_jobs.stop_signals import interrupting

# 0 done, 1 internal error, 2 usage or invalid input, 3 finished with failed runs, 4 a gate fails, 5 a gate is
# inconclusive, 6 stopped by the budget, 7 Ray or the store is out of reach, 130 interrupted
EXIT_INTERNAL, EXIT_USAGE, EXIT_FAILED_RUNS, EXIT_GATE_FAIL, EXIT_GATE_INCONCLUSIVE = 1, 2, 3, 4, 5
EXIT_BUDGET, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 6, 7, 130


def main(arguments: list[str] | None = None) -> None:
    """Entry point: an expected error becomes a line on stderr and an exit code, never a traceback.

    A program whose command has come to its end is not interrupted any more: it ends with the code of that.
    """
    is_program = arguments is None
    try:
        with interrupting(then=signal.SIG_IGN if is_program else None):
            if is_program:
                _speak_utf8()
            from ray_jobs.cli.commands import call  # takes a moment, in which a signal may come

            code = call(arguments)
    except KeyboardInterrupt as stop:
        kept = str(stop) or "what is finished is kept, the same command continues"
        print(f"muon: interrupted; {kept}", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _speak_utf8() -> None:
    """Begin anew in Python's UTF-8 mode where the locale is another: Polars and Ray take names of files for UTF-8.

    What is printed stays in the encoding of the terminal.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{sys.stdout.encoding}:replace"}
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # this program
