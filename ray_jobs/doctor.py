"""Looks a machine or a cluster over before it is trusted with a sweep: each check is a line, and none takes for ever.

Of a cluster each node that is up looks itself over, in a task that needs no CPU of it, with its own packages, disk and
credentials: all of these may differ from those of the node where the sweep starts.
"""

from __future__ import annotations

import contextlib
import resource
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray_jobs.ray_settings  # noqa: F401  before ray

# isort: split
import ray
from ray.exceptions import RayError

from muon_core.store.open import open_storage
from muon_core.store.storage import Storage
from ray_jobs import checks
from ray_jobs.address import check_loopback
from ray_jobs.checks import Check, Wrong, check
from ray_jobs.cluster import Cluster, Node, check_cluster
from ray_jobs.listening import ports
from ray_jobs.node_checks import answer_to, look_over_node
from ray_jobs.nodes import explain, on_each
from ray_jobs.ray_folder import ray_folder
from ray_jobs.ray_token import find_token
from ray_jobs.same_store import marked, store_environment
from search_spaces.spec import Resources

NODE_S = 60.0  # a busy node takes ten to start a process, and its store may take STORE_S twice
HERE = "here"
Found = Iterator[tuple[str, Check]]
"""Where, and how a check went there."""


def look_over_machine(url: str) -> Found:
    """This machine, for sweeps on a Ray of its own with results at `url`."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # to which Ray raises its own
    yield HERE, check("python", checks.python)
    yield HERE, check("packages", checks.packages)
    yield HERE, check("gpus", checks.gpus)
    yield HERE, check("loopback", _loopback)
    yield HERE, check("ray's folder", _folder)
    yield HERE, check("disk", checks.disk)
    yield HERE, check("shared memory", checks.shared_memory)
    yield HERE, check("open files", lambda: checks.open_files(hard))
    yield HERE, check("store", lambda: checks.store(url))
    yield HERE, check("clock", lambda: checks.clock(url))
    yield HERE, check("ports", ports)


def look_over_cluster(address: str, url: str, say: Callable[[str], None]) -> Found:
    """The cluster at `address` and every node of it that is up, for sweeps with results at `url`."""
    try:
        cluster = check_cluster(address)
    except ConnectionError as error:
        yield HERE, Check("ray", False, str(error))
        return
    versions = " and ".join(f"{name.capitalize()} {version}" for name, version in cluster.versions.items())
    count = len(cluster.nodes)
    yield HERE, Check("ray", True, f"{cluster.head} answers: {versions}, {count} node{'' if count == 1 else 's'}")
    yield HERE, check("token", lambda: _token(cluster))
    yield HERE, (stored := check("store", lambda: checks.store(url)))
    say(f"asking {count} node{'' if count == 1 else 's'}, {NODE_S:.0f} s at most ...")
    try:
        yield from _ask_nodes(address, cluster, url, stored.is_ok, say)
    except ConnectionError as error:
        yield HERE, Check("ray", False, str(error))


def _loopback() -> str:
    check_loopback()
    return "127.0.0.1 answers"


def _folder() -> str:
    with ray_folder() as folder:
        return f"{Path(folder).parents[1]} is fit for its sockets"


def _token(cluster: Cluster) -> str:
    if not cluster.wants_token:
        return "none wanted"
    _, place = find_token()
    with contextlib.suppress(OSError):  # it is no file
        path = place.rpartition("=")[2]  # maybe of RAY_AUTH_TOKEN_PATH
        if Path(path).expanduser().stat().st_mode & 0o077:
            raise Wrong(f"others on this machine can read {path}; chmod 600 {path}")
    return f"wanted, and the one in {place} is right"


def _ask_nodes(address: str, cluster: Cluster, url: str, is_stored: bool, say: Callable[[str], None]) -> Found:
    """What each node says of itself, in the order they answer."""
    from ray_jobs.connection import connected  # loads what a sweep needs of Ray, and this machine alone does not

    with contextlib.ExitStack() as stack:
        storage = mark = None
        if is_stored:
            storage = open_storage(url)
            mark = stack.enter_context(marked(storage, f"doctor-{uuid.uuid4().hex}"))
        stack.enter_context(connected(address, Resources(), store_environment(storage) if storage else {}))
        nodes = {node.id: node for node in cluster.nodes}
        pending = on_each(nodes, look_over_node, url, mark, checks.versions())
        deadline = time.monotonic() + NODE_S
        while pending:
            ready, _ = ray.wait([*pending], timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            node = nodes[pending.pop(ready[0])]
            say(f"{node.address} has answered, {len(pending)} to come")
            yield from _heard(node, ready[0], storage, mark)
        for left in pending.values():
            yield (
                nodes[left].address,
                Check("answer", False, f"none within {NODE_S:.0f} s; is it overloaded? `ray status`"),
            )


def _heard(node: Node, answer: Any, storage: Storage | None, mark: str | None) -> Found:
    """What a node has answered, and whether what it wrote is seen here."""
    try:
        found = [Check(*each) for each in ray.get(answer)]
    except RayError as error:
        yield node.address, Check("answer", False, explain(error))
        return
    for each in found:
        if each.name == "store" and each.is_ok and storage and mark:
            each = check("store", partial(_seen, each.text, storage, answer_to(mark, node.id)))
        yield node.address, each


def _seen(text: str, storage: Storage, key: str) -> str:
    try:
        storage.get(key)
    except FileNotFoundError:
        raise Wrong(
            f"what it wrote is not at {storage.place}; give all nodes the same folder, or the same S3 endpoint in "
            "AWS_ENDPOINT_URL_S3"
        ) from None
    storage.delete([key])
    return text
