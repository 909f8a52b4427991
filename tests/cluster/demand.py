"""Waits, on the head, for a worker with a GPU, and prints what it says it is: type, MUON_NODE_SPOT, and address."""

import logging
import os

import ray


def tell() -> tuple[str | None, ...]:
    """What the environment of a worker holds."""
    return os.environ.get("MUON_NODE_TYPE"), os.environ.get("MUON_NODE_SPOT"), ray.util.get_node_ip_address()


if __name__ == "__main__":
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    print(*ray.get(ray.remote(num_gpus=1)(tell).remote()), flush=True)
