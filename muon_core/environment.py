"""What a run was computed with: versions, hardware and threads, to explain a mismatch later."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """GPU model, or what of the CPU decides the bits: its instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def fingerprint(*packages: str) -> dict[str, Any]:
    """Versions and settings that may change bits; two runs with different fingerprints are compared with care.

    Args:
        packages: that take part in this run, beside those that do in every one.
    """
    cuda: dict[str, Any] = {}
    if torch.cuda.is_available():
        cuda = {
            "driver": nvidia_driver(),
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "tf32": uses_tf32(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
            "attention": [name for name, is_on in _attention_kernels() if is_on],
        }
    return cuda | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),  # of a type of its own, which a safe load refuses
        **{name: version(name) for name in ("numpy", "tokenizers", *packages)},
        "cuda": torch.version.cuda,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul": _float32_matmul(),
        "threads": torch.get_num_threads(),
    }


def uses_tf32() -> bool:
    """Whether fp32 products on CUDA are rounded to TF32 first, by whichever of torch's settings."""
    return str(torch.backends.cuda.matmul.fp32_precision) == "tf32"


def _float32_matmul() -> str:
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        # Somebody's code has set torch's newer `fp32_precision`, beside which torch does not tell the older one.
        return str(torch.backends.cuda.matmul.fp32_precision)


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What of a fingerprint was different before: name -> the value then, null where there was none."""
    return {name: before.get(name) for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)}


def nvidia_driver() -> str | None:
    """Version of the NVIDIA kernel module."""
    try:
        text = Path("/sys/module/nvidia/version").read_text()
    except OSError:
        return None  # not Linux, or hidden in a container
    return text.strip()


def _attention_kernels() -> list[tuple[str, bool]]:
    """Kernels that scaled dot-product attention may choose from on CUDA."""
    backends = torch.backends.cuda
    return [
        ("flash", backends.flash_sdp_enabled()),  # type: ignore[no-untyped-call]
        ("memory_efficient", backends.mem_efficient_sdp_enabled()),  # type: ignore[no-untyped-call]
        ("cudnn", backends.cudnn_sdp_enabled()),  # type: ignore[no-untyped-call]
        ("math", backends.math_sdp_enabled()),  # type: ignore[no-untyped-call]
    ]


def peak_memory_bytes(device: torch.device) -> int:
    """Most device memory held on CUDA; largest resident set of the process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory_bytes(device: torch.device) -> int:
    """Memory that this process could still take: of the GPU, or of the machine and of the container it runs in."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reusable
    limits = [_available(), _left_in_container()]
    return min((limit for limit in limits if limit is not None), default=sys.maxsize)


def _available() -> int | None:
    """What Linux could give without swapping; None on other systems."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _left_in_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group's limit leaves, its caches counted as free; None where there is no limit."""
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no version 2, or `max`
        return None
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, limit - used + cached)
