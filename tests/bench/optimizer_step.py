"""A Muon step beside `torch.optim.Muon` on the hidden matrices of the 88M model: seconds and memory, 1 and 2 threads.

What is compared is the same: bfloat16, five quintic iterations, Nesterov, fp32 parameters. On a CPU the model is cut to
one layer (six matrices: a step of torch's takes half a minute there, and every layer costs the same), and ours sums in the
order `products: rows`; `--exact` takes torch's own order, for the same bits. On CUDA all 22 layers are stepped. Each
measurement is a process of its own. Prints seconds, the ratio ours / torch and the goal; exits 1 if short of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

LAYER = [(512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048)]
GOALS = {"1 thread": 1.0, "2 threads": 0.7, "cuda": 0.2}
"""Largest ratio of seconds, ours to torch's."""


def measure(optimizer: str, threads: int, device: str, repeats: int) -> dict[str, float]:
    """Median seconds of a step, and peak bytes beyond weights, gradients and state; `optimizer`: torch, fused, rows."""
    import torch
    from torch import nn

    from muon_core.config import MuonConfig
    from muon_core.optim.build import Setting, muon

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shapes = LAYER * (22 if device == "cuda" else 1)
    named = [(f"w{index}", nn.Parameter(torch.randn(shape, device=device))) for index, shape in enumerate(shapes)]
    stepper: torch.optim.Optimizer = (
        torch.optim.Muon([param for _, param in named], lr=0.02)
        if optimizer == "torch"
        else muon(named, MuonConfig(products="rows" if optimizer == "rows" else "fused", weight_decay=0.1), Setting(0))
    )

    def step() -> float:
        for _, param in named:
            param.grad = torch.randn_like(param)
        synchronize()
        begin = time.perf_counter()
        stepper.step()
        synchronize()
        return time.perf_counter() - begin

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def peak() -> float:
        return float(
            torch.cuda.max_memory_allocated()
            if device == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )

    for _, param in named:  # state as after a step, so that only the step's own memory counts
        stepper.state[param]["momentum_buffer"] = torch.zeros_like(param)
        param.grad = torch.randn_like(param)
    before = torch.cuda.memory_allocated() if device == "cuda" else peak()
    seconds = [step() for _ in range(repeats)]
    return {"seconds": statistics.median(seconds), "bytes": peak() - before}


def in_process(optimizer: str, threads: int, device: str, repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", optimizer, str(threads), device, str(repeats)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="Steps of each kind; the median counts.")
    parser.add_argument("--exact", action="store_true", help="Sum in torch's order.")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        optimizer, threads, device, repeats = options.measure
        print(json.dumps(measure(optimizer, int(threads), device, int(repeats))))
        return 0
    import torch

    ours = "fused" if options.exact else "rows"
    settings = [("1 thread", 1, "cpu"), ("2 threads", 2, "cpu")]
    if torch.cuda.is_available():
        settings.append(("cuda", 1, "cuda"))
    matrix = 4 * 512 * 2048  # bytes of the largest, which is a stack of its own on the CPU and one of 16 on CUDA
    ratios: dict[str, float] = {}
    extra: dict[str, float] = {}
    for name, threads, device in settings:
        rival, mine = (in_process(kind, threads, device, options.repeats) for kind in ("torch", ours))
        ratios[name] = mine["seconds"] / rival["seconds"]
        extra[name] = mine["bytes"] - rival["bytes"]
        print(
            f"{name:<9}  torch.optim.Muon {rival['seconds']:8.3f} s   {ours} {mine['seconds']:8.3f} s   "
            f"ratio {ratios[name]:.3f}   memory beyond torch's {extra[name] / 2**20:+.1f} MiB",
            flush=True,
        )
    missed = [
        name
        for name, ratio in ratios.items()
        if ratio > GOALS[name] or extra[name] > (16 if name == "cuda" else 1) * matrix
    ]
    shown = ", ".join(f"{name} {ratio:.3f} (goal {GOALS[name]})" for name, ratio in ratios.items())
    verdict = f"missed: {', '.join(missed)}" if missed else "met, memory within one largest stack of torch's"
    print(f"ratio to torch.optim.Muon: {shown}; {verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
