"""Imports Ray, whole and in the environment that it reads then; import this module before any that does.

Without a cluster to join (`RAY_ADDRESS`), Ray is private to the call: it listens on loopback only, and asks for a token
that no file holds.
"""

from __future__ import annotations

import os
import secrets

from ray_jobs.stop_signals import deferred

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # A sweep's own display and tables replace what Tune would print and write.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_THRESHOLD_S": "3600",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # the store says where a sweep stands; of thousands of trials this takes a while
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: runs record that they were stopped
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it Ray warns
    "RAY_prestart_worker_first_driver": "0",  # a worker for each CPU, in an environment that none of ours has
    "RAY_worker_maximum_startup_concurrency": "8",  # a slot is several light processes; two CPUs would start two
}
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: the node's address is 127.0.0.1
    "RAY_AUTH_MODE": "token",
    # On a busy machine its own processes take longer to start than the 15 and 30 s after which it gives itself up.
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_gcs_server_port_wait_time_s": "120",
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
if not os.environ.get("RAY_ADDRESS"):
    for _name in ("no_proxy", "NO_PROXY"):  # what talks to itself on loopback goes through no proxy
        if "127.0.0.1" not in os.environ.get(_name, ""):
            os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))
    for _name, _value in _PRIVATE.items():
        os.environ.setdefault(_name, _value)
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

with deferred():  # what is left of a Ray that is half imported fails once more at exit
    import ray  # noqa: F401
