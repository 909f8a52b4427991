"""`muon failures`: what died alike is told once; `muon status` of a run says what ended its attempts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.failures import deaths
from analysis.store import open_store
from muon_core.store.folder import Folder
from muon_core.store.ledger import Entry, Rate, new_entry, write_entry
from muon_core.store.sweeps import SweepRecord, SweepRun, write_sweep
from muon_core.store.writer import RunWriter
from ray_jobs.cli.main import main

RATE = Rate("big", 3600.0)
TRACEBACK = 'Traceback (most recent call last):\n  File "/home/me/muon_core/model.py", line 3, in build\n    x()\n'


def attempt(run: str, number: int, status: str, **fields: object) -> Entry:
    return replace(new_entry(run, f"{number:05d}.aa", RATE), status=status, seconds=36.0, **fields)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    """Runs a and b failed alike, a after it was lost; c hung, and is done now; d diverged; e is in no ledger.

    An entry was seen last when it was written, so the last is the newest.
    """
    storage = Folder(tmp_path)
    bad = {run: f"{TRACEBACK}ValueError: {number} of /tmp/{run} bad\n" for number, run in enumerate("ab")}
    ends = {
        "a": ("failed", bad["a"]),
        "b": ("failed", bad["b"]),
        "c": ("done", None),
        "d": ("diverged", "train loss nan at step 4"),
        "e": ("failed", "its slot broke"),
    }
    for run, (status, error) in ends.items():
        RunWriter(storage, run, {"optimizer": "muon"}).end(status=status, error=error)
    for entry in (
        attempt("a", 1, "lost", failure="infrastructure", first_step=0, step=10),
        attempt("a", 2, "failed", failure="program", error=bad["a"], first_step=5, step=12),
        attempt("b", 1, "failed", failure="program", error=bad["b"]),
        attempt("c", 1, "lost", failure="hang", first_step=0, step=10),
        attempt("c", 2, "done", first_step=10, step=20),
        attempt("d", 1, "diverged", error=ends["d"][1], first_step=0, step=4),
    ):
        write_entry(storage, entry)
    blocks = [("a", "x"), ("a", "y"), ("b", "x")]  # one of them in two blocks
    runs = tuple(SweepRun(run_id=run, block=block, role="candidate", arm="muon", seed=1) for run, block in blocks)
    write_sweep(storage, SweepRecord(sweep="s", runs=runs))
    return storage


def test_attempts_that_died_alike_are_one_group_the_largest_first(store: Folder) -> None:
    found = deaths(open_store(store))
    assert [(group.kind, group.attempts, group.runs, group.since_done) for group in found] == [
        ("program", 2, ("b", "a"), 0),
        ("diverged", 1, ("d",), 0),
        ("hang", 1, ("c",), 1),
        ("infrastructure", 1, ("a",), 0),
        ("failed", 1, ("e",), 0),
    ]
    alike, diverged, hung, lost, of_the_record = found
    assert alike.signature == "ValueError: <n> of <path> bad (muon_core/model.py, build)"
    assert alike.error is not None
    assert "ValueError: 1 of /tmp/b bad" in alike.error  # the newest
    assert alike.lost_hours == pytest.approx(0.02)
    assert alike.lost_usd == pytest.approx(72.0)
    assert (of_the_record.signature, of_the_record.lost_usd) == ("its slot broke", 0)
    assert diverged.signature == "train loss nan at step <n>"
    assert diverged.lost_hours == hung.lost_hours == 0
    assert lost.signature == "ended without a word"
    assert lost.lost_usd == pytest.approx(18.0)  # half of its steps were done again


def test_of_a_sweep_its_own_runs_count_once(store: Folder) -> None:
    found = deaths(open_store(store).sweep("s"))
    assert [(group.kind, group.attempts) for group in found] == [("program", 2), ("infrastructure", 1)]


def test_the_command_tells_each_death_once_and_what_is_next(
    store: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUON_STORE", store.url)

    def muon(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 0
        return capsys.readouterr()

    out, err = muon("failures", "s")
    assert out.startswith(
        "2 times, program: ValueError: <n> of <path> bad (muon_core/model.py, build)\n  b, a, the last"
    )
    assert out.count("Traceback") == 1
    assert "  lost 0.02 h, 72 USD\n" in out
    assert err == "next: muon logs b; to train what failed again muon sweep run SPEC --retry failed\n"
    found = json.loads(muon("failures", "--json")[0])
    assert [(group["kind"], group["runs"]) for group in found][:2] == [("program", ["b", "a"]), ("diverged", ["d"])]

    out, _ = muon("status", "a")
    assert "attempt 1 lost: infrastructure, at step 10\nattempt 2 failed: program, at step 12\n" in out
    (run,) = json.loads(muon("status", "a", "--json")[0])
    assert [each["failure"] for each in run["failures"]] == ["infrastructure", "program"]


def test_without_failures_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    RunWriter(Folder(tmp_path), "a", {}).end(status="done")
    monkeypatch.setenv("MUON_STORE", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["failures"])
    assert capsys.readouterr() == ("no attempt failed, was lost or diverged\n", "next: muon status\n")
