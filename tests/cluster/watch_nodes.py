"""Prints, on the head, which nodes Ray takes for alive, each time that changes: seconds since 1970, then addresses."""

import logging
import time

import ray

LOOK_S = 0.2


def main() -> None:
    """Look until killed."""
    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    before: list[str] = []
    while True:
        alive = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
        if alive != before:
            print(time.time(), *alive, flush=True)
        before = alive
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
