"""What a node of a cluster says of itself, in a task of Ray's; little is loaded for it, for the node may be busy."""

from __future__ import annotations

import os
import resource
import socket

import ray

from muon_core.store.open import open_storage
from muon_core.store.storage import StoreError
from ray_jobs import checks
from ray_jobs.checks import Check, check
from ray_jobs.listening import ports
from ray_jobs.same_store import check_mark


def look_over_node(url: str, mark: str | None, wanted: dict[str, str]) -> list[Check]:
    """`mark` is what the store at `url` should have, and gets an answer; `wanted` are the versions of who asks."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "all"):
        del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray hides the GPUs from tasks that ask for none
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return [
        check("versions", lambda: checks.same_versions(wanted)),
        check("packages", checks.packages),
        check("gpus", checks.gpus),
        check("disk", checks.disk),
        check("shared memory", checks.shared_memory),
        check("open files", lambda: checks.open_files(soft)),
        check("store", lambda: _same_store(url, mark) if mark else checks.store(url)),
        check("clock", lambda: checks.clock(url)),
        check("ports", ports),
    ]


def why_not(url: str, mark: str, wanted: dict[str, str]) -> Exception | None:
    """Why no worker of this node may train a run of the sweep with `mark`, started by who has the versions `wanted`."""
    try:
        checks.same_versions(wanted)
        check_mark(open_storage(url), mark)
    except checks.Wrong as error:
        return ConnectionError(f"{socket.gethostname()}: {error}")
    except StoreError as error:
        return error
    return None


def answer_to(mark: str, node: str) -> str:
    """The key under which a node answers."""
    return f"{mark}-{node}"


def _same_store(url: str, mark: str) -> str:
    def ask() -> str:
        storage = open_storage(url)
        check_mark(storage, mark)
        storage.put(answer_to(mark, ray.get_runtime_context().get_node_id()), b"")
        return f"{storage.place} is the same, and can be written with the credentials of this node"

    return checks.within(checks.STORE_S, ask)
