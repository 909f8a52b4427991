"""A Muon step beside `torch.optim.Muon` on the hidden matrices of the 88M model: seconds, bits and memory.

What is compared is the same: profile `torch`, bfloat16, five quintic iterations, Nesterov, decay, fp32 parameters. Both
step in turn, on equal weights and gradients, so that other load on the machine meets both; the median of the ratios
counts, by wall time. CPU time, which other load disturbs less, stands beside it.

Which kind of CPU this is the first line says. A layer of the 22 has every shape, and a CPU that multiplies bf16 number
by number takes half a minute for torch's step of it; with `--layers 22` a step of both takes a quarter of an hour.
There, fp32 stands in for a CPU with bf16 units: both optimizers in the calls they would make on such a one, and fp32
in place of bf16. It shows what everything but oneDNN's products costs, and those are the same calls (a test counts).

The memory of our step is that of eight layers, in which every shape fills stacks; torch's that of one, since it takes a
matrix at a time. On CUDA all layers are stepped. Exits 1 if short of a goal.

With `--compiled` our step is beside itself with Newton-Schulz compiled, which `compile: true` does on CUDA alone: the
seconds of what runs do on a device, over those of what they do not. On CPUs those are of one thread, and its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

LAYER = [(512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048)]
LAYERS, FULL_STACKS = 22, 8
STACK_MIB = LAYERS * 2048 * 512 * 4 // 2**20
STRIPS_GOAL = 0.7
"""Largest ratio of seconds, ours to torch's, where a CPU multiplies bf16 number by number, on two threads."""
CUDA_GOAL = 0.2
GOAL = 1.0
"""The same everywhere else."""
COMPILED_GOAL = {"cpu": 1.1, "cuda": 1.0}
"""Largest ratio of seconds, of the one of our two steps that runs take on this kind of device to the other's."""
KINDS = ("torch", "ours")


class Contender:
    """The matrices of some layers under one optimizer, its state as after a step."""

    def __init__(self, kind: str, layers: int, device: str, dtype: Any = "bf16") -> None:
        import torch
        from torch import nn

        from muon_core.config.optimizers import MuonConfig
        from muon_core.optim.build import Setting, muon

        draw = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=draw) for _ in range(layers) for shape in LAYER]
        self.params = [nn.Parameter(weight.to(device)) for weight in weights]
        named = [(f"w{index}", param) for index, param in enumerate(self.params)]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Muon(self.params, lr=0.02, weight_decay=0.1)
            if kind == "torch"
            else muon(
                named, MuonConfig(lr=0.02, weight_decay=0.1, ns_dtype=dtype), Setting(0, compile=kind == "compiled")
            )
        )
        for param in self.params:
            param.grad = torch.zeros_like(param)
            self.optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)

    def step(self, seed: int) -> tuple[float, float]:
        """Wall and CPU seconds of a step on gradients of this seed."""
        import torch

        draw = torch.Generator().manual_seed(seed)
        for param in self.params:
            assert param.grad is not None
            param.grad.copy_(torch.randn(param.shape, generator=draw))
        self.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        self.optimizer.step()
        self.synchronize()
        return time.perf_counter() - wall, time.process_time() - cpu

    def synchronize(self) -> None:
        import torch

        if self.params[0].is_cuda:
            torch.cuda.synchronize()


def stand_in() -> None:
    """Let both multiply fp32 in this process as they multiply bf16 on a CPU with units for it."""
    import torch

    from muon_core.optim import newton_schulz

    newton_schulz.ONE_BY_ONE = {torch.float32}
    torch.Tensor.bfloat16 = torch.Tensor.clone  # type: ignore[assignment,method-assign]  # all that torch's step casts with


def compare(
    threads: int, device: str, layers: int, steps: int, dtype: str, kinds: Sequence[str] = KINDS
) -> dict[str, Any]:
    """`steps` steps of both kinds in turn, the rival first: seconds `[[wall, cpu], ...]` of each, and how far their
    weights are apart; `first_s`, seconds of a step before, and on CUDA `peak_bytes`, what one takes."""
    import torch

    if dtype == "fp32" and "torch" in kinds:
        stand_in()
    torch.set_num_threads(threads)
    contenders = {kind: Contender(kind, layers, device, dtype) for kind in kinds}
    seconds: dict[str, Any] = {kind: [] for kind in kinds}
    first: dict[str, float] = {}
    if device == "cuda" or "compiled" in kinds or not is_slow(device, dtype):  # kernels are loaded, or made, at first
        first = {kind: contender.step(0)[0] for kind, contender in contenders.items()}
    for step in range(steps):
        for kind in kinds if step % 2 else reversed(kinds):
            seconds[kind].append(contenders[kind].step(1 + step))
    pairs = list(zip(*(contender.params for contender in contenders.values()), strict=True))
    return seconds | {
        "differing": sum(int((a != b).sum()) for a, b in pairs),
        "entries": sum(a.numel() for a, _ in pairs),
        "first_s": first,
        "peak_bytes": {kind: of_a_step(contenders[kind]) for kind in kinds} if device == "cuda" else {},
    }


def of_a_step(contender: Contender) -> int:
    """Bytes of a GPU that a step takes beyond what is there."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contender.step(0)
    return torch.cuda.max_memory_allocated() - before


def is_slow(device: str, dtype: str) -> bool:
    """Whether products of this dtype go number by number."""
    from muon_core.optim.newton_schulz import SLOW_BF16

    return SLOW_BF16 and device == "cpu" and dtype == "bf16"


def peak(kind: str, device: str, layers: int) -> int:
    """Bytes a step takes beyond weights, gradients and state."""
    import torch

    torch.set_num_threads(1)
    contender = Contender(kind, layers, device)
    if device == "cuda":
        return of_a_step(contender)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what is resident now
    before = _resident("VmRSS")
    contender.step(0)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kib) * 1024


def in_process(function: str, *arguments: object) -> Any:
    """The function's result from a process of its own, which nothing before has warmed up or filled."""
    command = [sys.executable, __file__, "--in-process", json.dumps([function, *arguments])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="Steps of each; 3 where they take half a minute, else 9.")
    parser.add_argument("--layers", type=int, help=f"Layers stepped on the CPU, of {LAYERS}; 1 and 4 in the same way.")
    parser.add_argument("--threads", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--compiled", action="store_true", help="Our step compiled, beside itself.")
    parser.add_argument("--in-process", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


@dataclass(frozen=True)
class Row:
    """What is compared, and the largest ratio that is good enough."""

    name: str
    goal: float
    threads: int
    device: str = "cpu"
    dtype: str = "bf16"


def rows(threads: Sequence[int], *, slow_bf16: bool, cuda: bool) -> list[Row]:
    """On the kind of CPU that this is, on its stand-in where it has no bf16 units, and on CUDA."""
    counts = [(f"{n} thread{'s' * (n > 1)}", n) for n in threads]
    compared = [Row(name, STRIPS_GOAL if slow_bf16 and n == 2 else GOAL, n) for name, n in counts]
    if slow_bf16:
        compared += [Row(f"{name}, fp32", GOAL, n, dtype="fp32") for name, n in counts]
    return compared + [Row("cuda", CUDA_GOAL, 1, "cuda")] * cuda


def kind_of_cpu() -> str:
    import torch

    how = "number by number, for want of bf16 units" if is_slow("cpu", "bf16") else "by oneDNN, as with bf16 units"
    return f"this CPU multiplies bf16 {how} (PyTorch's capability {torch.backends.cpu.get_cpu_capability()})"


def measure(row: Row, layers: int | None, steps: int | None) -> tuple[float, bool]:
    """Ratio of wall seconds, ours to torch's, and whether a bit of the weights differs; printed."""
    slow = is_slow(row.device, row.dtype)
    layers = LAYERS if row.device == "cuda" else layers or (1 if slow else 4)
    steps = steps or (3 if slow else 9)
    seen = in_process("compare", row.threads, row.device, layers, steps, row.dtype)
    (torch_wall, torch_cpu), (our_wall, our_cpu) = (map(median, zip(*seen[kind], strict=True)) for kind in KINDS)
    ratio, cpu_ratio = (
        median(ours / theirs for ours, theirs in zip(*(seconds[kind] for kind in reversed(KINDS)), strict=True))
        for seconds in ({kind: [step[clock] for step in seen[kind]] for kind in KINDS} for clock in (0, 1))
    )
    print(
        f"{row.name:<15}  torch.optim.Muon {torch_wall:8.3f} s (CPU {torch_cpu:8.3f})   ours {our_wall:8.3f} s "
        f"(CPU {our_cpu:8.3f})   ratio {ratio:.3f} (CPU {cpu_ratio:.3f})   "
        f"weights that differ after {steps} steps: {seen['differing']} of {seen['entries']:,}",
        flush=True,
    )
    return ratio, seen["differing"] > 0


def measure_compiled(row: Row, layers: int | None, steps: int | None) -> float:
    """Ratio of seconds, of CPU on CPUs, of what runs do on the row's device to what they do not; printed."""
    layers = LAYERS if row.device == "cuda" else layers or 1
    kinds = ["ours", "compiled"]
    seen = in_process("compare", row.threads, row.device, layers, steps or 9, row.dtype, kinds)
    clock = 0 if row.device == "cuda" else 1
    plain, compiled = (median(step[clock] for step in seen[kind]) for kind in kinds)
    pairs = zip(*(seen[kind] for kind in kinds), strict=True)
    ratio = median(theirs[clock] / ours[clock] for ours, theirs in pairs)
    ratio = ratio if row.device == "cuda" else 1 / ratio
    first = seen["first_s"]["compiled"]
    print(
        f"{row.name:<15}  not compiled {plain:8.4f} s   compiled {compiled:8.4f} s, at first {first:.1f} s   "
        f"ratio {ratio:.3f}   weights that differ: {seen['differing']:,} of {seen['entries']:,}",
        flush=True,
    )
    return ratio


def check_compiled(layers: int | None, steps: int | None, *, cuda: bool) -> int:
    """Print the rows; returns the exit code."""
    dtypes = ("fp32",) if is_slow("cpu", "bf16") else ("bf16", "fp32")  # in strips, a graph has thousands of products
    compared = [Row(f"cpu, {dtype}", COMPILED_GOAL["cpu"], 1, dtype=dtype) for dtype in dtypes]
    compared += [Row("cuda", COMPILED_GOAL["cuda"], 1, "cuda")] * cuda
    ratios = {row: measure_compiled(row, layers, steps) for row in compared}
    missed = [row.name for row, ratio in ratios.items() if ratio > row.goal]
    shown = "; ".join(f"{row.name} {ratio:.3f} (goal {row.goal})" for row, ratio in ratios.items())
    print(f"ratio of what runs do to what they do not: {shown}; {'missed: ' + '; '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


def main() -> int:
    options = parse()
    if options.in_process:
        function, *arguments = options.in_process
        print(json.dumps({"compare": compare, "peak": peak}[function](*arguments)))
        return 0
    import torch

    print(kind_of_cpu(), flush=True)
    if options.compiled:
        return check_compiled(options.layers, options.steps, cuda=torch.cuda.is_available())
    compared = rows(options.threads, slow_bf16=is_slow("cpu", "bf16"), cuda=torch.cuda.is_available())
    ratios, differ = {}, False
    for row in compared:
        ratios[row], differs = measure(row, options.layers, options.steps)
        differ |= differs and row.device == "cpu"
    device = compared[-1].device
    theirs, mine = (in_process("peak", kind, device, n) for kind, n in _peak_layers(device))
    extra = (mine - theirs) / 2**20
    print(
        f"memory of a step: torch {theirs / 2**20:.0f} MiB, ours {extra:.0f} MiB more "
        f"(goal {STACK_MIB}, a copy of the largest set of equal matrices)"
    )
    missed = [row.name for row, ratio in ratios.items() if ratio > row.goal] + ["memory"] * (extra > STACK_MIB)
    missed += ["bits"] * differ
    shown = ", ".join(f"{row.name} {ratio:.3f} (goal {row.goal})" for row, ratio in ratios.items())
    print(f"ratio to torch.optim.Muon: {shown}; {'missed: ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


def _peak_layers(device: str) -> list[tuple[str, int]]:
    return [("torch", LAYERS), ("ours", LAYERS)] if device == "cuda" else [("torch", 1), ("ours", FULL_STACKS)]


if __name__ == "__main__":
    sys.exit(main())
