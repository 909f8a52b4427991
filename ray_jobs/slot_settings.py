"""What every slot of a sweep, and each of its workers, is given when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from ray_jobs.prices import Prices
from search_spaces.limits import Retries
from search_spaces.spec import Resources


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """It travels to other processes, so it names what is theirs to open."""

    queue: str
    """Name of the run queue's actor, and of its namespace."""
    store: str
    """URL of the results store."""
    mark: str
    """Key of the mark in the store that this sweep left there."""
    scratch: str
    """A folder for what Ray itself keeps."""
    resources: Resources
    retries: Retries
    """How often a run is tried again."""
    prices: Prices
    """What machines cost; each worker knows on which type it is."""

    def find_queue(self) -> Any:
        """The run queue's actor."""
        return ray.get_actor(self.queue, namespace=self.queue)
