"""Requests to stop a sweep: who hears which, and which are removed."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from muon_core.progress import Progress
from muon_core.store.folder import Folder
from muon_core.store.ledger import LOCAL
from ray_jobs import elsewhere
from ray_jobs.admission import Admission
from ray_jobs.stop_requests import UNHEEDED_S, StopRequest, StopWatch, request_stop

OLD = "stops/demo/00001.aa.json"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(elsewhere, "LOOK_S", 0.05)
    folder = Folder(tmp_path)
    folder.put(OLD, json.dumps({"user": "a", "host": "b", "now": False}).encode())
    return folder


def keys(folder: Folder) -> list[str]:
    return [key for key, _ in folder.list("stops/")]


def test_a_call_hears_what_was_asked_after_it_began_and_removes_that_alone(folder: Folder) -> None:
    heard: list[StopRequest] = []
    came = threading.Event()

    def heed(request: StopRequest) -> None:
        heard.append(request)
        came.set()

    with StopWatch(folder, "demo", heed) as one, StopWatch(folder, "demo", lambda _: None) as other:
        request_stop(folder, "another", now=True)
        asked = request_stop(folder, "demo", now=True)
        assert came.wait(60)
        while other.request is None:
            time.sleep(0.01)
        assert one.request == other.request == asked
    assert heard == [asked]
    assert [key.split("/")[1] for key in keys(folder)] == ["another", "demo"]
    assert OLD in keys(folder)


def test_a_request_that_nobody_heeded_goes_after_an_hour(folder: Folder, tmp_path: Path) -> None:
    os.utime(tmp_path / OLD, (time.time() - UNHEEDED_S - 1,) * 2)
    with StopWatch(folder, "demo", lambda _: None) as stops:
        assert keys(folder) == []
    assert stops.request is None


def test_a_damaged_request_is_a_wish_to_stop(folder: Folder) -> None:
    came = threading.Event()
    with StopWatch(folder, "demo", lambda _: came.set()) as stops:
        folder.put("stops/demo/00002.bb.json", b"[")
        assert came.wait(60)
    assert stops.request == StopRequest("someone", "unknown", now=False)


def test_a_closed_admission_starts_nothing_and_stops_what_runs_if_told_so() -> None:
    admission = Admission()
    assert admission.refuse("a", LOCAL) is None
    admission.start("a")
    progress = Progress("a", 1, 10, 5.0, 5.0, 100, None, 1.0)
    admission.close("stop: a on b asked for it", at_once=False)
    assert admission.refuse("b", LOCAL) == "stop: a on b asked for it"
    assert admission.stop(progress) is None
    admission.close("stop: at once", at_once=True)
    assert admission.stop(progress) == "stop: at once"
