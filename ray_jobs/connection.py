"""A Ray to run on: a cluster that is joined, or one that is this process's own and ends with the block."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import ray_jobs.ray_settings  # noqa: F401  before ray

# isort: split
import ray
from ray._private.node import Node

from ray_jobs.address import check_loopback
from ray_jobs.ray_folder import OBJECT_STORE, complaint, object_folder, ray_folder, watched
from ray_jobs.ray_signals import leave_signals
from ray_jobs.slots import worker_environment
from ray_jobs.stop_signals import deferred
from search_spaces.spec import Resources


@contextlib.contextmanager
def connected(
    address: str | None, resources: Resources, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """A Ray to run on, quiet; on leaving, what this process started is shut down.

    Args:
        environment: what its workers have beside their own.
    Raises: ConnectionError if the cluster cannot be joined or the own one does not start.
    """
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {**worker_environment(resources.threads_per_worker), **environment}},
    }
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the display and the runs' records tell of failures
    leave_signals()
    # Twenty lines of a node's log for each node that is lost, on the driver's terminal.
    ray._private.worker.listen_error_messages = lambda worker, stopped: None
    with _ended_whole() as stack:
        folder = None
        if address is None:
            check_loopback()
            _leave_out()
            folder = stack.enter_context(ray_folder())
            stack.enter_context(watched(folder))
            options |= {"include_dashboard": False, "_temp_dir": folder}
            options |= {"object_store_memory": OBJECT_STORE, "_plasma_directory": object_folder(folder)}
        stack.callback(ray.shutdown)
        with deferred():  # a signal in the midst of it would end this process in C++
            _start(address, folder, options)
        yield


def _leave_out() -> None:
    """Start no autoscaler, web page or reader of logs, whom nobody asks in a Ray of one machine and one sweep.

    Each is an interpreter that loads Ray, while its agents load it too, for which it waits fifteen seconds only.
    """
    for start in ("start_monitor", "start_api_server", "start_log_monitor"):
        setattr(Node, start, lambda node, **_: None)


@contextlib.contextmanager
def _ended_whole() -> Iterator[contextlib.ExitStack]:
    """A stack of what no signal interrupts while it ends."""
    stack = contextlib.ExitStack()
    try:
        yield stack
    finally:
        with deferred():
            stack.close()


def _start(address: str | None, folder: str | None, options: dict[str, Any]) -> None:
    """Call `ray.init`, whose errors are of many types. Raises ConnectionError with what it said, or its processes.

    On a busy machine a Ray of our own may give up on a node that is not ready in half a minute, or one of its processes
    may find another not as it expects it, and end: it gets another chance.
    """
    for is_last in (False, True):
        try:
            ray.init(address=address or "local", **options)
        except Exception as error:
            words = next(iter(str(error).strip().splitlines()), type(error).__name__)
            if folder is None:
                raise ConnectionError(words) from error
            if is_last:
                raise ConnectionError(f"it did not start ({complaint(folder) or words})") from error
            ray.shutdown()
        else:
            return


class RayLost(ConnectionError):
    """The Ray of a sweep died under it. Nothing that is stored is lost with it."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"it died ({cause}); what is stored is kept, the same command continues")


def check_alive() -> None:
    """Raises RayLost if one of the two processes is gone without which a private Ray hangs for a minute or for ever."""
    node = ray._private.worker._global_node
    if dead := [name for name, _ in node.dead_processes() if name in ("raylet", "gcs_server")] if node else []:
        raise RayLost(dead[0])
