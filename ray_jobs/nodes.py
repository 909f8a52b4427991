"""Asks the nodes of a cluster: a function runs on each that is up, beside whatever else is busy there."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from muon_core.store.storage import Storage
from ray_jobs.checks import versions
from ray_jobs.node_checks import why_not
from ray_jobs.same_store import marked

ANSWER_S = 45.0  # a process of Ray's starts in three seconds, on a busy node and with the code of a job in thirty


def on_each(nodes: Iterable[str], function: Callable[..., Any], *arguments: Any) -> dict[Any, str]:
    """Start `function` on each of `nodes` (ids), without waiting for a free CPU; returns the node of each answer."""
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    return {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments): node
        for node in nodes
    }


def check_nodes(storage: Storage) -> None:
    """Ask whether runs may train there with results in `storage`, as workers ask themselves before their first run.
    That is later, for they wait for places and load torch; a node that does not answer in time is left to them.

    Raises: ConnectionError or StoreError, what a node says, with its name.
    """
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    with marked(storage, f"nodes-{uuid.uuid4().hex}") as mark:
        pending = on_each(addresses, why_not, storage.url, mark, versions())
        deadline = time.monotonic() + ANSWER_S
        while pending and (ready := ray.wait([*pending], timeout=max(0.0, deadline - time.monotonic()))[0]):
            address = addresses[pending.pop(ready[0])]
            try:
                error = ray.get(ready[0])
            except RayError as lost:
                error = ConnectionError(f"{address}: {explain(lost)}")
            if error:
                raise error


def explain(error: RayError) -> str:
    """In one line why a node could not look itself over."""
    text = str(error)
    if "No module named" in text or "cannot import" in text or "has no attribute" in text:
        return "muon-jobs of this version is not installed there; install the same on all nodes"
    last = next(iter(reversed(text.strip().splitlines())), "")
    return f"{type(error).__name__}: {last.strip()}"
