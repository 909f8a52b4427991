"""What GPUs can do at most: a dated table, for what is told of throughput and of runs before they are run.

Peaks are dense: NVIDIA's sheets print bf16 with sparsity for the newer ones, twice as much. GeForce cards add bf16
products in fp32 at half of the rate that is advertised for fp16. Cards of one name differ by board (an H100 on PCIe has
three quarters of the one on SXM), by maker (the A10G is AWS's own), and by MIG slice or virtual GPU. So a device is
known by its whole name, and of any other nothing is said: no figure is better than a wrong one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

DATE = "2026-11-29"
"""When the sheets were looked up, as public pages and other projects' tables (torchtitan, Lightning) quote them."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A model of GPU."""

    device: str
    """What it calls itself, a regular expression."""
    bf16: float | None
    """FLOP/s of dense products on tensor cores, summed in fp32; None where these have no bf16, and it is emulated."""
    fp32: float
    """The same without TF32, which PyTorch leaves off: outside of tensor cores."""
    memory: int
    """Bytes, as it is sold: what a device reports differs by a few percent."""
    node: str | None
    """A type of machine that has it, as price tables call it; None where AWS, whose prices they are, has none."""
    source: str

    def peak(self, precision: Literal["fp32", "bf16"]) -> float | None:
        """FLOP/s of a forward and backward pass in `precision`, at most; None where it is computed as another."""
        return self.bf16 if precision == "bf16" else self.fp32


_T, _GB = 1e12, 10**9
_H100 = "H100 data sheet, bf16 halved: it is printed with sparsity"
_GA102 = "Ampere GA102 whitepaper v2, appendix A and table 3"
GPUS = {
    "t4": Gpu("t4", None, 8.1 * _T, 16 * _GB, "g4dn.xlarge", "T4 data sheet"),
    "v100": Gpu("v100-sxm2-16gb", None, 15.7 * _T, 16 * _GB, "p3.2xlarge", "V100 data sheet, SXM2"),
    "a10": Gpu("a10", 125 * _T, 31.2 * _T, 24 * _GB, None, "A10 data sheet"),
    "a10g": Gpu("a10g", 70 * _T, 35 * _T, 24 * _GB, "g5.xlarge", "A10G data sheet of AWS, 2022-02-17"),
    "rtx3090": Gpu("rtx 3090", 71.2 * _T, 35.6 * _T, 24 * _GB, None, _GA102),
    "a6000": Gpu("rtx a6000", 154.8 * _T, 38.7 * _T, 48 * _GB, None, _GA102),
    "a40": Gpu("a40", 149.7 * _T, 37.4 * _T, 48 * _GB, None, "A40 data sheet"),
    "rtx4090": Gpu("rtx 4090", 165.2 * _T, 82.6 * _T, 24 * _GB, None, "Ada whitepaper v2.02, appendix A"),
    "l4": Gpu("l4", 121 * _T, 30.3 * _T, 24 * _GB, "g6.2xlarge", "L4 data sheet, bf16 halved"),
    "l40s": Gpu("l40s", 362 * _T, 91.6 * _T, 48 * _GB, "g6e.xlarge", "L40S data sheet"),
    "a100": Gpu("a100-(sxm4|pcie)-40gb", 312 * _T, 19.5 * _T, 40 * _GB, "p4d.24xlarge", "A100 data sheet"),
    "a100-80gb": Gpu(
        "a100-sxm4-80gb|a100-pcie-80gb|a100 80gb pcie", 312 * _T, 19.5 * _T, 80 * _GB, "p4de.24xlarge",
        "A100 data sheet",
    ),
    "h100": Gpu("h100 80gb hbm3", 989 * _T, 67 * _T, 80 * _GB, "p5.48xlarge", _H100),
    "h100-pcie": Gpu("h100 pcie", 756 * _T, 51 * _T, 80 * _GB, None, _H100),
    "h100-nvl": Gpu("h100 nvl", 835 * _T, 60 * _T, 94 * _GB, None, _H100),
    "gh200": Gpu("gh200 480gb", 989 * _T, 67 * _T, 96 * _GB, None, "the H100's on SXM, whose chip it is"),
    "h200": Gpu("h200", 989 * _T, 67 * _T, 141 * _GB, "p5en.48xlarge", "H200 data sheet, SXM, bf16 halved"),
    "b200": Gpu("b200", 2250 * _T, 75 * _T, 180 * _GB, "p6-b200.48xlarge", "data sheet of HGX B200, bf16 halved"),
}  # fmt: skip


def name_of(device: str) -> str | None:
    """Which of GPUS a device calls itself: `NVIDIA H100 80GB HBM3` is the h100; None for any other, and for CPUs."""
    whole = re.sub(r"^(nvidia |tesla )?(geforce )?", "", device.strip().lower())
    return next((name for name, gpu in GPUS.items() if re.fullmatch(gpu.device, whole)), None)


def find(device: str) -> Gpu | None:
    """The same, with what is known of it."""
    name = name_of(device)
    return GPUS[name] if name else None


def of_node(node: str) -> str | None:
    """Name of the GPU that machines of a type have, as others of its family do: g5.12xlarge as g5.xlarge; or None."""
    family = node.partition(".")[0]
    return next((name for name, gpu in GPUS.items() if gpu.node and gpu.node.partition(".")[0] == family), None)
