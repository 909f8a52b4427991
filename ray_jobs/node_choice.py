"""Which type of node a cluster's autoscaler starts next: the one that can be had.

Ray's own choice compares resources alone. Of types with the same ones it takes the one whose name is last in the
alphabet, and takes it again five seconds after AWS had none, for ever. Here a type that was refused stands back behind
those that were not, until Ray forgets the refusal after half an hour (AUTOSCALER_NODE_AVAILABILITY_MAX_STALENESS_S); of
types that all were, the one whose refusal is oldest is tried again. The head of `cluster.yaml` asks for it by
RAY_AUTOSCALER_UTILIZATION_SCORER.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer


def score(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> tuple[Any, ...] | None:
    """Ray's score of `node_type` for work that needs `resources`, availability in it; None if nothing fits.

    The highest is taken, of equals the last in the alphabet.
    """
    usual = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if usual is None:
        return None
    saves_gpus, *fit = usual  # a node with GPUs for work without them stays the last choice
    record = node_availability_summary.node_availabilities.get(node_type)
    refused_at = 0.0 if record is None or record.is_available else record.last_checked_timestamp
    return (saves_gpus, -refused_at, *fit)
