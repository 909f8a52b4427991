"""What stops a command, heard by a process of its own: the handlers of the tests' process are not touched."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOON_S = 60
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
COMMAND = """
import sys, time
from ray_jobs.cli import main as cli
import click

@click.command()
def command():
    {body}

cli.COMMANDS["wait"] = ("__main__", "")
sys.argv[1:] = ["wait"]
cli.main()
"""
WAIT = 'print("ready", flush=True); time.sleep(60)'
DEFERRED = """
    from ray_jobs.stop_signals import deferred
    with deferred():
        print("ready", flush=True)
        time.sleep(1.0)
        print("whole", flush=True)
    print("never", flush=True)
"""


@contextmanager
def started(body: str, hangup: signal.Handlers = signal.SIG_DFL) -> Iterator[subprocess.Popen[str]]:
    """A command that is ready, in a process that heeds SIGHUP whatever these tests were started under."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", STOPS)
def test_each_interrupts_a_command_in_one_line(number: int) -> None:
    with started(WAIT) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stderr.lstrip()) == (  # the terminal's own ^C has no line end
        130, "muon: interrupted; what is finished is kept, the same command continues\n"
    )  # fmt: skip


@pytest.mark.parametrize("number", STOPS)
def test_none_breaks_into_what_must_end_first(number: int) -> None:
    with started(DEFERRED) as process:
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stdout, stderr.strip().count("\n")) == (130, "whole\n", 0)


def test_an_alarm_does_not_end_a_command() -> None:
    """Ray's libraries set one when they meet SIGTERM."""
    with started("import signal; print('ready', flush=True); signal.alarm(1); time.sleep(2); print('on')") as process:
        stdout, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stdout, stderr) == (0, "on\n", "")


def test_what_was_ignored_when_the_command_began_stays_so() -> None:
    """As under nohup."""
    with started(WAIT.replace("60", "2") + '; print("on")', hangup=signal.SIG_IGN) as process:
        process.send_signal(signal.SIGHUP)
        stdout, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stdout, stderr) == (0, "on\n", "")


def test_a_closed_terminal_ends_a_command_without_an_error_of_printing(tmp_path: Path) -> None:
    """The terminal goes with its master; SIGHUP comes from the kernel. What the command does last is seen in a file."""
    ended = tmp_path / "ended"
    body = f"""
    import pathlib
    try:
        print("ready", flush=True); time.sleep(60)
    except KeyboardInterrupt:
        print("x" * 10_000, flush=True); print("x", file=sys.stderr, flush=True)
        pathlib.Path({str(ended)!r}).write_text("orderly")
        raise
"""
    master, terminal = pty.openpty()

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body)],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=take_terminal,
    ) as process:  # fmt: skip
        os.close(terminal)
        seen = b""
        while b"ready" not in seen:
            seen += os.read(master, 1000)
        os.close(master)
        try:
            assert process.wait(SOON_S) == 130
        finally:
            process.kill()
    assert ended.read_text() == "orderly"
