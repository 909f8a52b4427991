"""What GPUs can do at most: a dated table, for what is told of throughput and of runs before they are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DATE = "2026-11-29"
SOURCE = "NVIDIA's data sheets, tensor cores without sparsity for bf16, without TF32 for fp32"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A model of GPU."""

    bf16: float
    """FLOP/s of dense products."""
    fp32: float
    memory: int
    """Bytes."""
    node: str
    """A type of machine that has it, as price tables call it."""

    def peak(self, precision: Literal["fp32", "bf16"]) -> float:
        """FLOP/s of a forward and backward pass in `precision`, at most."""
        return self.bf16 if precision == "bf16" else self.fp32


_T, _GB = 1e12, 10**9
GPUS = {
    "a10g": Gpu(70 * _T, 31.2 * _T, 24 * _GB, "g5.xlarge"),
    "l4": Gpu(121 * _T, 30.3 * _T, 24 * _GB, "g6.2xlarge"),
    "a100": Gpu(312 * _T, 19.5 * _T, 40 * _GB, "p4d.24xlarge"),
    "h100": Gpu(989 * _T, 67 * _T, 80 * _GB, "p5.48xlarge"),
    "h200": Gpu(989 * _T, 67 * _T, 141 * _GB, "p5en.48xlarge"),
}


def find(device: str) -> Gpu | None:
    """The GPU that a device calls itself: `NVIDIA H100 80GB HBM3` is an h100; None for any other, and for CPUs."""
    words = device.lower().replace("-", " ").split()
    return next((gpu for name, gpu in GPUS.items() if name in words), None)
