"""A Muon step beside `torch.optim.Muon` on the hidden matrices of the 88M model: seconds, bits and memory.

What is compared is the same: profile `torch`, bfloat16, five quintic iterations, Nesterov, decay, fp32 parameters. Both
step in turn, on equal weights and gradients, so that other load on the machine meets both; medians count. Goals are
judged by wall time; CPU time, which other load disturbs less, stands beside it.

A layer of the 22 has every shape, and a CPU without bf16 units takes half a minute for torch's step of it; with
`--layers 22` a step of both takes a quarter of an hour. The memory of our step is that of eight layers, from which on
every stack is full; torch's that of one, since it takes a matrix at a time. On CUDA all layers are stepped. Exits 1 if
short of a goal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

LAYER = [(512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048)]
LAYERS, FULL_STACKS = 22, 8
STACK_MIB = LAYERS * 2048 * 512 * 4 // 2**20
GOALS = {"1 thread": 1.0, "2 threads": 0.7, "cuda": 0.2}
"""Largest ratio of seconds, ours to torch's."""
KINDS = ("torch", "ours")


class Contender:
    """The matrices of some layers under one optimizer, its state as after a step."""

    def __init__(self, kind: str, layers: int, device: str) -> None:
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
            else muon(named, MuonConfig(lr=0.02, weight_decay=0.1), Setting(0))
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


def compare(threads: int, device: str, layers: int, steps: int) -> dict[str, Any]:
    """`steps` steps of both in turn: seconds `[[wall, cpu], ...]` of each kind, and how far their weights are apart."""
    import torch

    torch.set_num_threads(threads)
    contenders = {kind: Contender(kind, layers, device) for kind in KINDS}
    seconds: dict[str, Any] = {kind: [] for kind in KINDS}
    if device == "cuda":  # kernels are loaded at their first use
        for contender in contenders.values():
            contender.step(0)
    for step in range(steps):
        for kind in KINDS if step % 2 else reversed(KINDS):
            seconds[kind].append(contenders[kind].step(1 + step))
    pairs = list(zip(contenders["torch"].params, contenders["ours"].params, strict=True))
    return seconds | {
        "differing": sum(int((a != b).sum()) for a, b in pairs),
        "entries": sum(a.numel() for a, _ in pairs),
    }


def peak(kind: str, device: str, layers: int) -> int:
    """Bytes a step takes beyond weights, gradients and state."""
    import torch

    torch.set_num_threads(1)
    contender = Contender(kind, layers, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.step(0)
        return torch.cuda.max_memory_allocated() - before
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
    parser.add_argument("--steps", type=int, default=3, help="Steps of each.")
    parser.add_argument("--layers", type=int, default=1, help=f"Layers stepped on the CPU, of {LAYERS}.")
    parser.add_argument("--threads", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--in-process", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.in_process:
        function, *arguments = options.in_process
        print(json.dumps({"compare": compare, "peak": peak}[function](*arguments)))
        return 0
    import torch

    settings = [(f"{n} thread{'s' * (n > 1)}", n, "cpu", options.layers) for n in options.threads]
    if torch.cuda.is_available():
        settings.append(("cuda", 1, "cuda", LAYERS))
    from muon_core.optim.newton_schulz import SLOW_BF16

    ratios: dict[str, float] = {}
    differing: dict[str, int] = {}
    for name, threads, device, layers in settings:
        seen = in_process("compare", threads, device, layers, options.steps)
        (torch_wall, torch_cpu), (our_wall, our_cpu) = (map(median, zip(*seen[kind], strict=True)) for kind in KINDS)
        ratios[name] = our_wall / torch_wall
        differing[name] = seen["differing"] if device == "cpu" else 0
        print(
            f"{name:<9}  torch.optim.Muon {torch_wall:8.3f} s (CPU {torch_cpu:8.3f})   ours {our_wall:8.3f} s "
            f"(CPU {our_cpu:8.3f})   ratio {ratios[name]:.3f} (CPU {our_cpu / torch_cpu:.3f})   "
            f"weights that differ after {options.steps} steps: {seen['differing']} of {seen['entries']:,}",
            flush=True,
        )
    device = settings[-1][2]
    theirs, mine = (in_process("peak", kind, device, n) for kind, n in _peak_layers(device))
    extra = (mine - theirs) / 2**20
    print(
        f"memory of a step: torch {theirs / 2**20:.0f} MiB, ours {extra:.0f} MiB more "
        f"(goal {STACK_MIB}, a copy of the largest set of equal matrices)"
    )
    missed = [name for name, ratio in ratios.items() if ratio > GOALS[name]] + ["memory"] * (extra > STACK_MIB)
    missed += ["bits"] * (SLOW_BF16 and any(differing.values()))
    shown = ", ".join(f"{name} {ratio:.3f} (goal {GOALS[name]})" for name, ratio in ratios.items())
    print(f"ratio to torch.optim.Muon: {shown}; {'missed: ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


def _peak_layers(device: str) -> list[tuple[str, int]]:
    return [("torch", LAYERS), ("ours", LAYERS)] if device == "cuda" else [("torch", 1), ("ours", FULL_STACKS)]


if __name__ == "__main__":
    sys.exit(main())
