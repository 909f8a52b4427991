"""What the store knows of runs that were imported before: which may be the same as one that is imported now."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from muon_core.legacy.arms import FROM, ORIGIN, config_json, contradict
from muon_core.legacy.imported import UNKNOWN, ImportedRun, optimizer_name
from muon_core.legacy.same_run import PLACE, origin
from muon_core.store.reader import read_attempts, read_starts, read_statuses
from muon_core.store.storage import Storage


class Stored:
    """What the store knows of the runs that were imported before, and is told of those that are written."""

    def __init__(self, storage: Storage) -> None:
        attempts = read_attempts(storage)
        heads = [max(tries.values()) for run, tries in attempts.items() if run.startswith("imported-")]
        self.statuses = read_statuses(storage) if heads else {}
        self.starts: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self._began: dict[tuple[str, str], list[str]] = defaultdict(list)
        for start in read_starts(storage, heads):
            self.add(start, self.statuses.get(start["run_id"], "running"))

    def add(self, start: dict[str, Any], status: str) -> None:
        """Take in a run that was written."""
        run_id = start["run_id"]
        self.starts[run_id], self.statuses[run_id] = start, status
        self.configs[run_id] = json.loads(start["config_json"])
        for began in (self.configs[run_id].get(ORIGIN) or {}).items():
            if began[0] != PLACE and run_id not in self._began[began]:
                self._began[began].append(run_id)

    def has_ended(self, run_id: str) -> bool:
        """Whether the store has the run with its end: without one, an import was killed amid it."""
        return self.statuses.get(run_id, "running") != "running"

    def alike(self, run: ImportedRun) -> list[str]:
        """Runs that began as `run` did, and of which no field speaks against their being the same.

        Where the store has its id, that alone; or none, where an import of just these files was killed.
        """
        if run.run_id in self.starts:
            return [run.run_id] if self.has_ended(run.run_id) else []
        found = dict.fromkeys(run_id for began in origin(run).items() for run_id in self._began.get(began, ()))
        may_be = [run_id for run_id in found if self._may_be(run, run_id)]
        return sorted(may_be, key=lambda run_id: not self.lies_where(run, run_id))  # the likeliest first

    def _may_be(self, run: ImportedRun, run_id: str) -> bool:
        start = self.starts[run_id]
        has_other_seed = None not in (run.seed, start["seed"]) and run.seed != start["seed"]
        optimizers = {optimizer_name(run.optimizer), start["optimizer"]} - {UNKNOWN}
        return not (has_other_seed or len(optimizers) > 1 or contradict(config_json(run), self.configs[run_id]))

    def is_named_alike(self, run: ImportedRun, run_id: str) -> bool:
        """Whether the stored run has the same seed and optimizer as `run`."""
        start = self.starts[run_id]
        return (start["seed"], start["optimizer"]) == (run.seed, optimizer_name(run.optimizer))

    def lies_where(self, run: ImportedRun, run_id: str) -> bool:
        """Whether the stored run was read from where `run` is; from a folder of that name, where no path is known."""
        now, then = origin(run).get(PLACE), (self.configs[run_id].get(ORIGIN) or {}).get(PLACE)
        return now == then if now and then else bool(self.configs[run_id].get(FROM) == run.folder)

    def tells_more(self, run_id: str, run: ImportedRun) -> bool:
        """Whether the stored run has a seed or an optimizer, and `run` has not."""
        start = self.starts[run_id]
        has_seed = run.seed is None and start["seed"] is not None
        return has_seed or optimizer_name(run.optimizer) == UNKNOWN != start["optimizer"]
