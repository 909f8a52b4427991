"""What a machine must have for runs to train on it, asked one by one; the same here and on each node of a cluster.

A check returns what it found, in some words, or raises Wrong with the remedy.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from muon_core.store.open import open_storage
from muon_core.store.storage import Storage, StoreError, store_time
from muon_core.user_cache import user_cache
from ray_jobs.machine import count_gpus
from ray_jobs.ray_folder import OBJECT_STORE, SHARED_MEMORY
from ray_jobs.sent_job import code_here

PACKAGE = "muon-jobs"
FREE_BYTES = 1 << 30  # tokens, logs and checkpoints on their way
OPEN_FILES = 4096  # below it Ray itself warns of connections that fail
SKEW_S = 60.0  # AWS refuses requests from 15 minutes on; a clock that is set is right to a second
STORE_S = 15.0  # an ordinary answer takes less than one
ROOT = Path(__file__).parents[1]


class Wrong(Exception):
    """What is wrong, and the remedy."""


class Check(NamedTuple):
    """How one went; `text` is what was found, or what is wrong and what to do."""

    name: str
    is_ok: bool
    text: str


def check(name: str, ask: Callable[[], str]) -> Check:
    """How `ask` goes; whatever it raises is what is wrong."""
    try:
        return Check(name, True, ask())
    except (Wrong, ValueError) as error:
        return Check(name, False, " ".join(str(error).split()))
    except Exception as error:  # a doctor that dies of an illness helps nobody
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def within(seconds: float, ask: Callable[[], str]) -> str:
    """The answer of `ask`, which may wait for another machine. Raises what it raises, or Wrong if it takes longer."""
    answers: list[str] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    asked = threading.Thread(target=run, daemon=True)
    asked.start()
    asked.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise Wrong(f"no answer within {seconds:.0f} s; check the network, and AWS_ENDPOINT_URL for a store in S3")
    return answers[0]


def python() -> str:
    wanted, found = metadata(PACKAGE)["Requires-Python"], platform.python_version()
    if found not in SpecifierSet(wanted):
        raise Wrong(f"{found}, and {PACKAGE} needs {wanted}; make the virtual environment with another Python")
    return found


def packages() -> str:
    """Those that the package requires; extras are for who wants them."""
    wanted = [Requirement(text) for text in requires(PACKAGE) or []]
    unmet = [r for r in wanted if not (r.marker and "extra" in str(r.marker)) and not _is_met(r)]
    if unmet:
        found = ", ".join(f"{r.name} {_version(r.name) or 'is missing'}" for r in unmet)
        raise Wrong(f"{found}; pip install {' '.join(repr(str(r)) for r in unmet)}")
    told = ", ".join(f"{name} {version(name)}" for name in (PACKAGE, "ray", "torch"))
    return f"{told}{_off_constraints()}"


def _is_met(wanted: Requirement) -> bool:
    found = _version(wanted.name)
    return bool(found) and wanted.specifier.contains(found, prereleases=True)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _off_constraints() -> str:
    """Which packages are not as constraints.txt of a checkout has them, with which the tests ran; that is no error."""
    try:
        lines = (ROOT / "constraints.txt").read_text().splitlines()
    except OSError:
        return ""
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    off = [r.name for r in pinned if _version(r.name) and not _is_met(r)]
    return f"; not as in constraints.txt: {', '.join(off)}" if off else ""


def versions() -> dict[str, str]:
    """What nodes of a cluster must have in common, without the builds for this or that hardware."""
    names = {name: _version(name).partition("+")[0] for name in (PACKAGE, "ray", "torch")}
    code = code_here()[:12]  # two checkouts may share a version
    return {"Python": platform.python_version()} | names | {f"the code of {PACKAGE}": code}


def same_versions(wanted: dict[str, str]) -> str:
    found = versions()
    if differing := [name for name in wanted if found.get(name) != wanted[name]]:
        told = ", ".join(f"{name} is {found.get(name) or 'missing'}, not {wanted[name]}" for name in differing)
        raise Wrong(f"{told}, as on the node that was asked; install the same on all ({ROOT} is what this one runs)")
    return ", ".join(f"{name} {found[name]}" for name in wanted)


def gpus() -> str:
    """Computes on each GPU: a driver may be too old for the build of torch, or the build for the GPU."""
    found = count_gpus()
    if not found:
        return f"none; torch {_version('torch')}"
    import torch  # takes seconds

    from muon_core.environment import nvidia_driver

    build = torch.version.cuda

    told = f"driver {nvidia_driver() or 'unknown'}, torch {torch.__version__}"
    if build is None:
        raise Wrong(f"{found} there, and torch is built without CUDA ({told}); install its build for CUDA")
    try:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        for index in range(len(names)):
            torch.ones(8, 8, device=f"cuda:{index}").matmul(torch.ones(8, 8, device=f"cuda:{index}")).sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise Wrong(f"{reason} ({told}); install a build of torch that fits the driver and the GPU") from None
    if len(names) < found:
        raise Wrong(
            f"{found} there, of which torch sees {len(names)} ({told}, CUDA {build}); update the driver, or install a "
            "build of torch for an older CUDA"
        )
    return f"{', '.join(names)}; {told}, CUDA {build}"


def disk() -> str:
    """Where temporary files and prepared tokens go."""
    told = []
    for folder in dict.fromkeys((Path(tempfile.gettempdir()), user_cache())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if free < FREE_BYTES:
            raise Wrong(f"{folder} has {_gib(free)} left; free space, or set TMPDIR and XDG_CACHE_HOME to other disks")
        told.append(f"{folder} {_gib(free)} free")
    return ", ".join(told)


def shared_memory() -> str:
    """Ray does without it, on disk; NCCL between GPUs of one machine does not."""
    has = shutil.disk_usage(SHARED_MEMORY).free if os.access(SHARED_MEMORY, os.W_OK) else 0
    if has >= OBJECT_STORE:
        return f"{_gib(has)} free"
    if count_gpus() > 1:
        raise Wrong(f"{_gib(has)} free, too little for several GPUs; `docker run --shm-size=1g`, or mount a larger one")
    return f"{_gib(has)} free, so Ray keeps objects on disk"


def open_files(limit: int) -> str:
    """Whether `limit` is enough for Ray."""
    if 0 <= limit < OPEN_FILES:
        raise Wrong(f"{limit} at most; `ulimit -n 65536` before Ray is started, or raise the hard limit")
    return "no limit" if limit == resource.RLIM_INFINITY else str(limit)


def store(url: str) -> str:
    """Writes an object, reads it and removes it."""

    def ask() -> str:
        storage = open_storage(url)
        if storage.is_local and not Path(storage.url).exists():
            return _new_folder(Path(storage.url))
        key = f".writable/{uuid.uuid4().hex}"
        storage.put(key, key.encode())
        answer = storage.get(key)
        storage.delete([key])
        if answer != key.encode():
            raise Wrong(f"{storage.place} gives back other bytes than were written; is AWS_ENDPOINT_URL an S3 server?")
        return f"{storage.place} can be written and read"

    return within(STORE_S, ask)


def _new_folder(folder: Path) -> str:
    """A folder that is not there yet stays so."""
    above = next(path for path in folder.parents if path.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise Wrong(f"{folder} does not exist, and {above} cannot be written to; choose another store")
    return f"{folder} does not exist yet and can be made"


def clock(url: str) -> str:
    """Against that of the store, which shows whole seconds."""

    def ask() -> str:
        storage = open_storage(url)
        if storage.is_local:
            return "that of the store is this machine's"
        return _compare_clocks(storage)

    return within(STORE_S, ask)


def _compare_clocks(storage: Storage) -> str:
    begin = time.time()
    try:
        there = store_time(storage)
    except StoreError:
        return "not compared, for the store cannot be written"
    skew = min(0.0, there + 1 - begin) + max(0.0, there - time.time())
    if abs(skew) > SKEW_S:
        raise Wrong(f"{abs(skew):.0f} s {'ahead of' if skew < 0 else 'behind'} the store's; set the clock (NTP)")
    return f"within {max(1, round(abs(skew)))} s of the store's"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
