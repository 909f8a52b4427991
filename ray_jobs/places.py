"""What a sweep holds on the nodes of a cluster: the placement groups of its workers.

Ray gives a group back when the job that made it has ended, but not one made in the moment after: whoever made that had
not heard yet. On a cluster that starts nodes on demand such a group would keep them, and their price, for ever. So each
group has the sweep's name, is looked at once more after it was made, and is given back by who sees it left over.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

SWEEP = "muon-sweep-"  # begins the names of all that sweeps hold
ANSWER_S = 3.0  # for a node to answer at all
GIVEN_UP_S = 120.0  # after which Ray has given a silent node up, unless it was told to wait longer
_JOB_DIGITS = 8  # the end of a group's id is that of the job that made it, in hexadecimal digits


def take(name: str, bundles: Sequence[Mapping[str, float]], strategy: str) -> PlacementGroup | None:
    """Ask for places of that `name`, one for each of `bundles`; None if the sweep that asks has ended meanwhile."""
    group = placement_group([dict(bundle) for bundle in bundles], strategy=strategy, name=name)
    if ray.get_runtime_context().get_job_id() in _ended_jobs():
        remove_placement_group(group)
        return None
    return group


def nodes(group: PlacementGroup) -> set[str]:
    """Ids of the nodes on which `group` has places."""
    found: Mapping[object, str] = placement_group_table(group)["bundles_to_node_id"]
    return {node for node in found.values() if node}


def leaving(known: Mapping[str, str]) -> dict[str, str]:
    """Addresses of the nodes that are to be taken back, by id; those of `known` are not looked up again."""
    found = ray._private.state.state.get_draining_nodes()
    if found.keys() - known.keys():
        known = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return {node: known.get(node, node) for node in found}


def has_lost_a_node(group: PlacementGroup, before: Set[str]) -> bool:
    """Whether a node is gone on which `group` had places, `before` or when last seen.

    Ray hears of a node that is switched off only by its silence, later than the workers elsewhere that were connected
    to it. So a node that does not answer is waited for until Ray gives it up: before, it would be given work again.
    """
    on, deadline = before or nodes(group), time.monotonic() + GIVEN_UP_S
    while True:
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        if on - alive.keys():
            return True
        if all(_answers(alive[node]) for node in on) or time.monotonic() > deadline:
            return False


def _answers(node: Mapping[str, Any]) -> bool:
    address = node["NodeManagerAddress"], node["NodeManagerPort"]
    try:
        socket.create_connection(address, timeout=ANSWER_S).close()
    except OSError:
        time.sleep(1.0)
        return False
    return True


def is_waiting(sweep: str) -> bool:
    """Whether there is no room for something that `sweep` asked for."""
    states = {facts["state"] for facts in placement_group_table().values() if facts["name"].startswith(f"{sweep}/")}
    return not states.isdisjoint({"PENDING", "RESCHEDULING"})


def give_back(sweep: str) -> None:
    """All that `sweep` still holds."""
    _remove(lambda name, job: name.startswith(f"{sweep}/"))


def give_back_of_the_dead() -> None:
    """What sweeps hold whose driver has ended."""
    ended = _ended_jobs()
    _remove(lambda name, job: name.startswith(SWEEP) and job in ended)


def _remove(is_left_over: Callable[[str, str], bool]) -> None:
    for group, facts in placement_group_table().items():
        if facts["state"] != "REMOVED" and is_left_over(facts["name"], group[-_JOB_DIGITS:]):
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def _ended_jobs() -> set[str]:
    return {job["JobID"] for job in ray._private.state.jobs() if job["IsDead"]}
