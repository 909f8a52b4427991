"""Passes a spot instance's notice on to Ray: `python -m ray_jobs.spot_notice` runs beside Ray on each spot worker.

AWS says two minutes ahead that it takes an instance back, on an address that only the instance can ask. Ray does not
ask. Told that the node is to leave, it gives the node no more work, and the run queue has the runs there save
themselves and go on elsewhere.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime

METADATA = "http://169.254.169.254/latest"
POLL_S = 5.0
TIMEOUT_S = 2.0
TOKEN_TTL_S = 300
USUAL_S = 120  # from the notice to the end


def watch(drain: Callable[[int], None], metadata: str = METADATA, poll_s: float = POLL_S) -> None:
    """Wait for the notice at `metadata`, then call `drain` with the seconds that are left.

    What does not answer is asked again: the service may be busy, and no answer is no notice.
    """
    while True:
        try:
            if left := seconds_left(metadata):
                return drain(left)
        except (OSError, ValueError):
            pass
        time.sleep(poll_s)


def seconds_left(metadata: str = METADATA) -> int | None:
    """Seconds until this instance is taken back, at least one; None without a notice. Raises OSError, ValueError."""
    token = _ask("PUT", f"{metadata}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)})
    try:
        text = _ask("GET", f"{metadata}/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # as it is until the notice
            return None
        raise
    at = json.loads(text).get("time")
    if at is None:
        return USUAL_S
    return max(1, int((datetime.fromisoformat(at) - datetime.now(UTC)).total_seconds()))


def _ask(method: str, url: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310  http, of this instance
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
        text: str = answer.read().decode()
        return text


def drain_this_node(left_s: int) -> None:
    """Tell Ray that the node of this process leaves in `left_s` seconds. Raises RuntimeError if Ray refuses."""
    import ray_jobs.ray_settings  # noqa: F401  before ray

    # isort: split
    import ray
    from ray.core.generated import autoscaler_pb2

    ray.init(address="auto", log_to_driver=False, configure_logging=False)
    context = ray.get_runtime_context()
    accepted, refusal = ray._raylet.GcsClient(address=context.gcs_address).drain_node(
        context.get_node_id(),
        autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,
        "the spot instance is taken back",
        int((time.time() + left_s) * 1000),
    )
    if not accepted:
        raise RuntimeError(f"Ray refuses to drain this node: {refusal}")


if __name__ == "__main__":
    watch(drain_this_node)
