"""Gauges of a sweep, as they are set, and the dashboard that draws them."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from muon_core.progress import Progress
from ray_jobs.run_queue import RunState

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


class Kept:
    """Stands for Ray's gauge, which needs a Ray to be set; remembers what it was set to."""

    found: ClassVar[dict[str, dict[tuple[str, ...], float]]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description
        self._keys, self._values = tag_keys, self.found.setdefault(name, {})

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._values[tuple(tags[key] for key in self._keys)] = value


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> Any:
    from ray_jobs import gauges  # loads Ray

    monkeypatch.setattr(gauges, "Gauge", Kept)
    monkeypatch.setattr(Kept, "found", {})
    return gauges.Gauges("scan")


def run(status: str, starts: int, speed: float | None = None) -> RunState:
    progress = Progress("r", 3, 10, 1.0, None, 1000, speed, 1.0)
    return RunState("r", "slot", status, starts, progress=progress if speed else None)


def test_they_tell_how_runs_stand_how_fast_they_are_and_what_was_spent(gauges: Any) -> None:
    gauges.show([run("running", 1, 100.0), run("running", 3, 20.0), run("done", 2, 70.0), run("waiting", 0)], 1.5)
    assert Kept.found["muon_runs"][("scan", "running")] == 2
    assert Kept.found["muon_runs"][("scan", "waiting")] == 1
    assert Kept.found["muon_runs"][("scan", "failed")] == 0
    assert Kept.found["muon_tokens_per_second"] == {("scan",): 120.0}
    assert Kept.found["muon_usd"] == {("scan",): 1.5}
    assert Kept.found["muon_restarts"] == {("scan",): 3}
    gauges.show([run("done", 1)], 2.0)
    assert Kept.found["muon_runs"][("scan", "running")] == 0  # what is over does not stay


def test_the_dashboard_draws_each_of_them_and_nothing_else(gauges: Any) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    drawn = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    assert set(re.findall(r"ray_(muon_\w+)", drawn)) == set(Kept.found)
