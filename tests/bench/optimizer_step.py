"""A Muon step beside `torch.optim.Muon` on the hidden matrices of the 88M model: seconds and memory, 1 and 2 threads.

What is compared is the same: bfloat16, five quintic iterations, Nesterov, fp32 parameters. A CPU step of torch's takes
ten minutes, so seconds are of one layer of the 22 (every layer costs the same), and ours sums in the order
`products: rows`; `--exact` takes torch's own order, for the same bits. Memory is that of one layer for torch, which
takes a matrix at a time, and of all layers for ours. On CUDA all layers are stepped by both. Each measurement is a
process of its own. Prints seconds, the ratio ours / torch and the goal; exits 1 if short of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

LAYER = [(512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048)]
LAYERS = 22
STACK_MIB = 22 * 2048 * 512 * 4 // 2**20
GOALS = {"1 thread": 1.0, "2 threads": 0.7, "cuda": 0.2}
"""Largest ratio of seconds, ours to torch's."""


def measure(optimizer: str, threads: int, device: str, repeats: int, layers: int) -> dict[str, float]:
    """Least seconds of a step, and peak bytes beyond weights, gradients and state; `optimizer`: torch, fused, rows."""
    import torch
    from torch import nn

    from muon_core.config import MuonConfig
    from muon_core.optim.build import Setting, muon

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shapes = LAYER * layers
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
    return {"seconds": min(seconds), "bytes": peak() - before}


def in_process(optimizer: str, threads: int, device: str, repeats: int, layers: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", optimizer, str(threads), device, str(repeats), str(layers)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="Steps of each kind; the fastest counts, which other load on the machine disturbs least.",
    )
    parser.add_argument("--exact", action="store_true", help="Sum in torch's order.")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        optimizer, threads, device, repeats, layers = options.measure
        print(json.dumps(measure(optimizer, int(threads), device, int(repeats), int(layers))))
        return 0
    import torch

    ours = "fused" if options.exact else "rows"
    settings = [("1 thread", 1, "cpu"), ("2 threads", 2, "cpu")]
    if torch.cuda.is_available():
        settings.append(("cuda", 1, "cuda"))
    ratios: dict[str, float] = {}
    for name, threads, device in settings:
        layers = LAYERS if device == "cuda" else 1
        rival, mine = (in_process(kind, threads, device, options.repeats, layers) for kind in ("torch", ours))
        ratios[name] = mine["seconds"] / rival["seconds"]
        print(
            f"{name:<9}  torch.optim.Muon {rival['seconds']:8.3f} s   {ours} {mine['seconds']:8.3f} s   "
            f"ratio {ratios[name]:.3f}",
            flush=True,
        )
    whole = mine if device == "cuda" else in_process(ours, threads, device, 1, LAYERS)
    extra = (whole["bytes"] - rival["bytes"]) / 2**20
    print(f"memory of a step beyond torch's: {extra:.0f} MiB (goal {STACK_MIB}, the largest stack of equal matrices)")
    missed = [name for name, ratio in ratios.items() if ratio > GOALS[name]] + ["memory"] * (extra > STACK_MIB)
    shown = ", ".join(f"{name} {ratio:.3f} (goal {GOALS[name]})" for name, ratio in ratios.items())
    print(f"ratio to torch.optim.Muon: {shown}; {'missed: ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
