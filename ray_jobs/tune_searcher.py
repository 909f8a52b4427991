"""A search on Ray: Tune asks for each trial, and is given the runs there are, then those that the search chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from muon_core.config.run import RunConfig
from ray_jobs.searching import Search

Task = dict[str, Any]
"""What a trial is given of its run."""


class CellSearcher(Searcher):
    """Tune's side of a search; what it chooses by is in the store, so results of trials need not pass through here.

    Args:
        task: from a run to what its trial is given.
    """

    def __init__(self, runs: Sequence[RunConfig], search: Search, task: Callable[[RunConfig], Task]) -> None:
        super().__init__()
        self._waiting, self._search, self._task = list(runs), search, task
        self.chosen: list[RunConfig] = []
        self.error: Exception | None = None
        """What kept it from choosing; then runs under way come to their end, and no other begins."""

    def suggest(self, trial_id: str) -> Any:
        """The next trial's part of the config; Tune asks when there is a place for it."""
        if self._waiting:
            return {"run": self._task(self._waiting.pop(0))}
        try:
            run = self._search.next() if self.error is None else None
        except Exception as error:
            self.error, run = error, None
        if run is None:
            return Searcher.FINISHED
        self.chosen.append(run.config)
        return {"run": self._task(run.config)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result and "status" in result:
            self._search.note(result["status"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store has it all."""
