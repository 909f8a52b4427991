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
from ray_jobs.cli import commands
from ray_jobs.cli.main import main
import click

@click.command()
def command():
    {body}

commands.COMMANDS["wait"] = ("__main__", "")
sys.argv[1:] = ["wait"]
main()
"""
# A signal that comes between Python's look for signals and a system call is heard after that: so calls are short.
WAIT = 'print("ready", flush=True); [time.sleep(0.1) for _ in range(600)]'
TWICE = """
    import os
    from ray_jobs import stop_signals
    stop_signals.ONE_WISH_S = {one_wish}
    print("ready", flush=True)
    try:
        os.kill(os.getpid(), {number})
        [time.sleep(0.1) for _ in range(600)]
    finally:
        time.sleep({pause})
        os.kill(os.getpid(), {number})
        print("saved", flush=True)
"""
LOADS_RAY = """
    import os
    class Signalling:
        def find_spec(self, name, *_):
            if name == "ray.client_builder":  # what follows the import of Ray's worker, which has work to do at exit
                os.kill(os.getpid(), {number})
    sys.meta_path.insert(0, Signalling())
    print("ready", flush=True)
    import ray_jobs.launch
"""
DEFERRED = """
    from ray_jobs import stop_signals
    with stop_signals.deferred():
        print("ready", flush=True)
        while not stop_signals._heard:
            time.sleep(0.1)
        print("whole", flush=True)
    print("never", flush=True)
"""
INTERRUPTED = "muon: interrupted; what is finished is kept, the same command continues\n"


@contextmanager
def started(
    body: str, hangup: signal.Handlers = signal.SIG_DFL, script: str = COMMAND, path: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A command that is ready, in a process that heeds SIGHUP whatever these tests were started under.

    It looks for modules in `path` first.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", script.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])},
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
    assert (process.returncode, stderr.lstrip()) == (130, INTERRUPTED)  # the terminal's own ^C has no line end


@pytest.mark.parametrize("number", STOPS)
def test_none_breaks_into_what_must_end_first(number: int) -> None:
    with started(DEFERRED) as process:
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stdout, stderr.strip().count("\n")) == (130, "whole\n", 0)


@pytest.mark.parametrize("number", STOPS)
def test_each_interrupts_a_command_that_still_loads(number: int, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text(f"import time; {WAIT}")
    load = "from ray_jobs.cli.main import main; main()"
    with started("", script=load, path=str(tmp_path)) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stderr) == (130, INTERRUPTED)


@pytest.mark.parametrize("number", STOPS)
def test_each_interrupts_a_command_that_loads_ray(number: int) -> None:
    with started(LOADS_RAY.format(number=int(number))) as process:
        _, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stderr.lstrip()) == (130, INTERRUPTED)


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("code", [0, 3])
def test_none_changes_how_a_command_ended(number: int, code: int) -> None:
    with started(
        f"import atexit; atexit.register(lambda: [{WAIT.replace(';', ',').replace('60', '1')}]); return {code}"
    ) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stderr) == (code, "")


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize(
    ("one_wish", "pause", "printed"), [(SOON_S, 0, "saved\n"), (0.1, 0.2, "")], ids=["at once", "later"]
)
def test_what_the_first_began_goes_on_when_it_comes_twice_at_once(
    number: int, one_wish: float, pause: float, printed: str
) -> None:
    """As from `timeout`, which sends one to a process and to its group; one that comes later is a wish of its own.

    What counts as at once is set for each, for between two lines a busy machine may stand still for seconds.
    """
    with started(TWICE.format(number=int(number), one_wish=one_wish, pause=pause)) as process:
        assert process.stdout is not None
        stdout = process.stdout.read()  # where what came with the first line waits, which `communicate` would pass over
        _, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stdout, stderr.lstrip()) == (130, printed, INTERRUPTED)


def test_what_was_ignored_when_the_command_began_stays_so() -> None:
    """As under nohup."""
    with started(WAIT.replace("60", "2") + '; print("on")', hangup=signal.SIG_IGN) as process:
        process.send_signal(signal.SIGHUP)
        assert process.stdout is not None
        stdout = process.stdout.read()  # as above
        _, stderr = process.communicate(timeout=SOON_S)
    assert (process.returncode, stdout, stderr) == (0, "on\n", "")


def test_a_closed_terminal_ends_a_command_without_an_error_of_printing(tmp_path: Path) -> None:
    """The terminal goes with its master; SIGHUP comes from the kernel. What the command does last is seen in a file."""
    ended = tmp_path / "ended"
    body = f"""
    import pathlib
    try:
        {WAIT}
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
