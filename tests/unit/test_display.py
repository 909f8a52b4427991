"""The panel of a sweep and its lines: phases, counts, what is left to others and left out."""

import io
import time

import pytest
from rich.console import Console

from analysis.standing import BestArm, Standing
from muon_core.progress import Progress
from muon_core.statuses import MEANINGS, STATUSES, counts_text, status_told
from ray_jobs.cli.progress import Display
from ray_jobs.cli.waiting import waiting
from ray_jobs.run_queue import RunState


def terminal(width: int = 80, height: int = 24) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)


def shown(display: Display, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(display._panel())
    return captured.get().splitlines()


def state(n: int, status: str, **fields: object) -> RunState:
    ended = None if status in ("waiting", "running") else time.time()
    return RunState(f"muon-lr0.02-momentum0.95-s{n}-0badcafe", "a", status, 1, ended_at=ended, **fields)  # type: ignore[arg-type]


def at(step: int) -> Progress:
    return Progress("muon", step, 100, 3.21, 3.4567, 2048 * step, 123_456.0, 1.0)


def standing(usd: float, committed: float) -> Standing:
    best = BestArm("muon lr=0.02", "val_loss", 3.2841, 2, 3)
    return Standing("demo", (), None, usd, committed, best, None)


def test_the_panel_tells_its_phase() -> None:
    console = terminal()
    display = Display(3, console, others={"done": 2})
    assert shown(display, console) == ["starting Ray  0:00  2 done, 3 planned"]
    display.update([state(1, "running")])
    assert shown(display, console)[0] == "starting workers  0:00  1 running, 2 done, 2 planned"
    display.update([state(1, "running", progress=at(1), began_at=time.time() - 1, first_step_at=time.time() - 1)])
    assert shown(display, console)[0].startswith("training  0:00  ETA ")
    display.update([state(n, "done") for n in (1, 2, 3)])
    assert shown(display, console) == ["ending  0:00  5 done"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_panel_is_at_most_15_lines_and_none_is_wider_than_the_terminal(width: int, height: int) -> None:
    console = terminal(width, height)
    display = Display(900, console, others={"done": 100, "diverged": 10})
    running = [state(n, "running", progress=at(50), began_at=time.time() - 50.0) for n in range(60)]
    failed = [state(n, "failed", error="Traceback\nValueError: " + "long " * 40) for n in range(60, 90)]
    display.update([*running, *failed])
    display._standing = standing(12.5, 3.25)
    lines = shown(display, console)
    assert len(lines) <= 15
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("training  0:00  ETA ")
    assert "60 running, 100 done, 10 diverged, 30 failed" in lines[0]
    assert lines[1] == "12.5 USD spent, 3.25 committed"
    assert lines[2] == "best so far: muon lr=0.02, val_loss 3.2841 (2 of 3 runs done)"
    assert lines[3].startswith("last failure: muon-lr0.02")
    assert lines[4].split()[:2] == ["run", "step"]
    assert "50/100" in lines[5]
    assert "123,456" in lines[5]
    assert lines[-1] == "and 52 more"


def test_the_panel_shows_the_whole_of_what_runs_wait_for() -> None:
    console = terminal()
    display = Display(1, console)
    refused = "g5.2xlarge not to be had: InsufficientInstanceCapacity"
    display.update(
        [state(1, "running", waits_for=f"waiting for room for a worker with 1 GPU; free now: none; {refused}")]
    )
    lines = shown(display, console)
    assert lines[0].startswith("starting workers")
    assert " ".join(map(str.strip, lines[1:3])).endswith(refused)
    assert max(map(len, lines)) <= 80


def test_money_is_not_spoken_of_where_it_costs_none() -> None:
    console = terminal()
    display = Display(1, console)
    display._standing = standing(0.0, 0.0)
    assert not any("USD" in line for line in shown(display, console))


def test_the_final_state_stays_behind_the_panel() -> None:
    console = terminal()
    with Display(2, console, others={"done": 1}) as display:
        display.update([state(1, "done"), state(2, "running")])
        display.update([state(1, "done"), state(2, "diverged")])
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().rstrip().endswith("0:00    2/2  2 done, 1 diverged")


def test_a_run_of_another_process_is_left_to_it_and_not_done() -> None:
    text = io.StringIO()
    with Display(2, Console(file=text, width=200)) as display:
        display.update([state(1, "held", error="process 12 on host trains it"), state(2, "running")])
        assert display._counts() == {"running": 2, "planned": 0}
    assert [line.split(maxsplit=1)[1] for line in text.getvalue().splitlines()[1:]] == [
        "0/2  left to process 12 on host: muon-lr0.02-momentum0.95-s1-0badcafe",
        "0/2  start muon-lr0.02-momentum0.95-s2-0badcafe",
    ]


def test_runs_left_out_for_one_reason_have_one_line() -> None:
    text = io.StringIO()
    with Display(9, Console(file=text, width=200)) as display:
        out = [state(n, "left out", error=f"budget: {n} USD spent") for n in range(8)]
        display.update(out[:3])
        display.update([*out, state(9, "left out", error="stop: a on b asked for it")])
        assert display._counts() == {"left out": 9, "planned": 0}
    told = [line.split("  ", 3)[-1].strip() for line in text.getvalue().splitlines()[1:]]
    assert [line.partition("reason: ")[2] for line in told] == ["budget: 0 USD spent", "stop: a on b asked for it"]


def test_a_wish_to_stop_is_told_once_and_the_panel_says_that_it_is_heeded() -> None:
    console, asked = terminal(), [""]
    display = Display(2, console, stopping=lambda: asked[0])
    display.update([state(1, "running", progress=at(1))])
    asked[0] = "stop: a on b asked for it"
    for _ in range(2):
        display.update([state(1, "running", progress=at(2)), state(2, "left out", error=asked[0])])
    assert shown(display, console)[0].startswith("stopping  0:00  ")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("stop: a on b asked for it") == 1


def test_the_heartbeat_counts_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    with Display(6, Console(file=text, width=200)) as display:
        states = [state(n, "running", progress=at(40)) for n in range(5)]
        display.update(states)
        monkeypatch.setattr("ray_jobs.cli.progress.HEARTBEAT_S", -1.0)
        display.update(states)
    last = text.getvalue().splitlines()[-1]
    assert "0/6  5 running, 1 planned; muon-lr0.02-momentum0.95-s0-0badcafe step 40/100; " in last
    assert last.endswith("; and 2 more")


@pytest.mark.parametrize(("is_terminal", "said_at"), [(True, [6, 12, 18, 600, 900]), (False, [600, 900])])
def test_who_looks_at_a_terminal_hears_of_runs_in_this_process_soon(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, said_at: list[int]
) -> None:
    text, clock, heard = io.StringIO(), [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    console = Console(file=text, width=200, force_terminal=is_terminal, force_interactive=is_terminal)
    with Display(1, console, on_ray=False) as display:
        display.update([state(1, "running", progress=at(1))])
        for second in (3, 6, 9, 12, 15, 18, 600, 630, 650, 900):
            clock[0], before = float(second), text.tell()
            display.update([state(1, "running", progress=at(2))])
            heard += [second] if text.tell() > before else []
    assert heard == said_at


def test_what_takes_a_while_is_shown_on_a_terminal_only() -> None:
    for console in (terminal(), Console(file=io.StringIO())):
        with waiting("reading", console) as show:
            show("drawing")
        assert isinstance(console.file, io.StringIO)
        shown = console.file.getvalue()
        assert ("drawing ... 0:00:00" in shown) == console.is_terminal
        assert console.is_terminal or not shown


@pytest.mark.parametrize(
    ("recorded", "alive", "told"),
    [
        (None, False, "planned"),
        (None, True, "running"),
        ("running", True, "running"),
        ("running", False, "interrupted"),
        ("failed", True, "running"),
        ("diverged", True, "diverged"),
        ("stopped", False, "stopped"),
    ],
)
def test_a_status_is_told_by_what_is_recorded_and_who_lives(recorded: str | None, alive: bool, told: str) -> None:
    assert status_told(recorded, alive=alive) == told
    assert told in MEANINGS


def test_counts_come_in_one_order_and_leave_out_what_does_not_occur() -> None:
    assert counts_text({"planned": 3, "failed": 0, "done": 2, "running": 1}) == "1 running, 2 done, 3 planned"
    assert counts_text({}) == "no runs"
    assert set(STATUSES) < set(MEANINGS)
