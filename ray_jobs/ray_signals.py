"""Has Ray leave signals to this process, whose business they are.

By itself Ray has SIGTERM leave `ray.init` midway, which ends in a segmentation fault; its C++ writes a trace at SIGTERM
and has the process aborted three seconds later, however orderly the end it gets; and its servers, in the group of the
process that starts them, die of what a shell or `timeout` sends to all of that, with runs still to be saved.
"""

from __future__ import annotations

import ctypes
import subprocess
from functools import partial

import ray
from ray._private import services, utils

# ray::RayLog::InstallFailureSignalHandler(char const*, bool)
TRACE = "_ZN3ray6RayLog27InstallFailureSignalHandlerEPKcb"


def leave_signals() -> None:
    """Call it before signals get handlers and `ray.init` is called; it lasts as long as this process does."""
    utils.set_sigterm_handler = lambda _: None
    services.ConsolePopen = partial(subprocess.Popen, process_group=0)
    # What writes traces is set up once in a process: now, for handlers that are set later take its place.
    if set_up := getattr(ctypes.CDLL(ray._raylet.__file__), TRACE, None):
        set_up(None, ctypes.c_bool(True))
