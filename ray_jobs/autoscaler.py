"""What a cluster has, and may get: whether it starts nodes on demand, and what runs without workers wait for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.experimental.internal_kv import _internal_kv_get

from search_spaces.spec import Resources


def can_grow() -> bool:
    """Whether the cluster starts nodes when work waits for them."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2  # here: a Ray of one machine needs not load it

    if is_autoscaler_v2():
        return ray._private.state.state.get_cluster_config() is not None
    report = _report()
    # Where nobody starts nodes, Ray reports each as a type of its own, named after its id.
    types: Mapping[str, str] = report.get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in types.items()) or bool(_coming(report))


def what_is_missing(resources: Resources) -> str:
    """What the workers of a run wait for, in a line: what they need, what there is, and what the autoscaler does."""
    needs = worker_needs(resources)
    total, free = ray.cluster_resources(), ray.available_resources()
    need = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
    has = " and ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in needs)
    workers = f"{resources.workers} workers with {need} each" if resources.workers > 1 else f"a worker with {need}"
    said = [f"waiting for room for {workers}; free now: {has}"]
    report = _report()
    if coming := _coming(report):
        said.append("nodes asked for: " + ", ".join(f"{count} {kind}" for kind, count in coming.items()))
    said.extend(_refused(report))
    if len(said) == 1 and not can_grow():
        said.append("this cluster starts no nodes by itself")
    return "; ".join(said)


def worker_needs(resources: Resources) -> dict[str, float]:
    """What one worker takes."""
    needs = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {name: need for name, need in needs.items() if need}


def _report() -> dict[str, Any]:
    """What the autoscaler said last; empty if there is none, or one that reports otherwise."""
    text = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report: dict[str, Any] = (json.loads(text) if text else {}).get("autoscaler_report") or {}
    return report


def _coming(report: Mapping[str, Any]) -> dict[str, int]:
    """How many nodes of each type are on their way."""
    coming: dict[str, int] = dict(report.get("pending_launches") or {})
    for _, kind, _ in report.get("pending_nodes") or []:
        coming[kind] = coming.get(kind, 0) + 1
    return coming


def _refused(report: Mapping[str, Any]) -> list[str]:
    """Why nodes could not be had, by type."""
    found = (report.get("node_availability_summary") or {}).get("node_availabilities") or {}
    refused = []
    for kind, record in found.items():
        if not record["is_available"]:
            facts = record.get("unavailable_node_information") or {}
            why = facts.get("description") or facts.get("category") or "no reason given"
            refused.append(f"{kind} not to be had: {why}")
    return refused
