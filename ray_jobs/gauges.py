"""Gauges of a sweep, which the nodes of a Ray cluster export to Prometheus; `docs/grafana.json` draws them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ray.util.metrics import Gauge

if TYPE_CHECKING:
    from ray_jobs.run_queue import RunState

STATUSES = ("waiting", "running", "done", "diverged", "failed", "stopped", "held", "left out")


class Gauges:
    """What one call of a sweep is at; every gauge has the sweep's name as a tag.

    Ray puts `ray_` before the names.
    """

    def __init__(self, sweep: str) -> None:
        self._tags = {"sweep": sweep}
        self._runs = Gauge("muon_runs", "Runs handed out, by how they stand", ("sweep", "status"))
        self._speed = Gauge("muon_tokens_per_second", "Training tokens of all runs under way", ("sweep",))
        self._usd = Gauge("muon_usd", "What the sweep has cost so far, in USD", ("sweep",))
        self._restarts = Gauge("muon_restarts", "Starts of runs after their first", ("sweep",))

    def show(self, runs: Iterable[RunState], spent_usd: float) -> None:
        """Set them all."""
        counts: Counter[str] = Counter()
        speed = restarts = 0.0
        for run in runs:
            counts[run.status] += 1
            restarts += max(0, run.starts - 1)
            if run.status == "running" and run.progress:
                speed += run.progress.tokens_per_s or 0.0
        for status in STATUSES:
            self._runs.set(counts[status], self._tags | {"status": status})
        self._speed.set(speed, self._tags)
        self._usd.set(spent_usd, self._tags)
        self._restarts.set(restarts, self._tags)
