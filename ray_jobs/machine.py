"""What this machine has to train on, counted from what the operating system shows: neither Ray nor torch is loaded."""

from __future__ import annotations

import math
import os
from pathlib import Path

from muon_core import gpus
from search_spaces.estimate import ASSUMED_GPU
from search_spaces.spec import Resources

ROOT = Path("/")


def misfit(resources: Resources, root: Path = ROOT) -> str:
    """That one run with `resources` does not fit on this machine, and what to do; empty where it does."""
    for kind, each, has, setting in (
        ("GPU", resources.gpus_per_worker, count_gpus(root), "gpus_per_worker"),
        ("CPU", resources.cpus_per_worker, count_cpus(root), "cpus_per_worker"),
    ):
        if (needed := resources.workers * each) > has:
            remedy = f"lower workers or {setting}" if has else f"set {setting}: 0"
            return (
                f"a run needs {needed:g} {kind}{'' if needed == 1 else 's'}, this machine has {has}: "
                f"run it on a cluster with --address, or {remedy}"
            )
    return ""


def lacks_gpus(resources: Resources) -> bool:
    """Whether one run takes GPUs that this machine has not."""
    return resources.workers * resources.gpus_per_worker > count_gpus()


def assumed_gpu(resources: Resources, root: Path = ROOT) -> str:
    """The GPU that runs are planned for where none was measured, of muon_core.gpus.

    That of MUON_NODE_TYPE, else that of this machine if a run has room on it, else ASSUMED_GPU.
    """
    if found := gpus.of_node(os.environ.get("MUON_NODE_TYPE", "")):
        return found
    here = None if misfit(resources, root) else _gpu_model(root)
    return (here and gpus.name_of(here)) or ASSUMED_GPU


def _gpu_model(root: Path) -> str | None:
    """What the first GPU calls itself, as NVIDIA's driver shows it; None where there is none, or it is hidden."""
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.removeprefix("Model:").strip()
    return None


def count_cpus(root: Path = ROOT) -> int:
    """CPUs this process may use: those it is bound to, and no more than its control group gives time of."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root / "sys/fs/cgroup")
    return bound if quota is None else min(bound, max(1, math.ceil(quota)))


def _quota(group: Path) -> float | None:
    """CPUs whose time the control group may spend, in either version of the kernel's files; None for no limit."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((group / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def count_gpus(root: Path = ROOT) -> int:
    """NVIDIA GPUs this process may use: those there are, unless CUDA_VISIBLE_DEVICES names some of them."""
    devices = [*(root / "dev").glob("nvidia[0-9]*")] or [*(root / "proc/driver/nvidia/gpus").glob("*")]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not devices or named is None:
        return len(devices)
    visible = [name.strip() for name in named.split(",") if name.strip()]
    return visible.index("-1") if "-1" in visible else len(visible)  # what follows a -1 is not seen
