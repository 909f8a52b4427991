"""The loss of 16,384 tokens over a vocabulary of 49,152, forward and backward: memory and seconds beside PyTorch's.

The rival is `F.cross_entropy` of `F.linear`, the same hidden states, weights and next tokens, float32. Each is a
process of its own, whose peak is what is resident beyond the hidden states and weights that it is given; the gradients
of both are in it. For comparison, PyTorch's own chunks (`F.linear_cross_entropy`), which its compiler leaves out. The
backward pass of the model in front is no part of it.

Prints losses and norms of gradients, MiB and CPU seconds, the ratio and its goal; exits 1 if short. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

TOKENS, VOCABULARY, WIDTH = 16_384, 49_152, 512
GOAL = 1 / 8
KINDS = {"plain": "F.cross_entropy", "chunked": "this package", "torch": "F.linear_cross_entropy in chunks"}


def measure(kind: str, tokens: int) -> dict[str, float]:
    """Peak bytes, CPU seconds, and what came out, of one forward and backward pass."""
    import torch
    import torch.nn.functional as F

    from muon_core.loss import mean_loss

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=draw, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw).mul_(0.05).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,), generator=draw)
    mean_loss(hidden[:2], weight[:8], targets[:2] % 8).backward()  # kernels are loaded at their first use
    hidden.grad = weight.grad = None
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what is resident now
    before, begin = resident("VmRSS"), time.process_time()
    if kind == "plain":
        loss = F.cross_entropy(F.linear(hidden, weight), targets)
    elif kind == "torch":
        loss = F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions())
    else:
        loss = mean_loss(hidden, weight, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.process_time() - begin
    assert hidden.grad is not None
    assert weight.grad is not None
    norms = {"hidden": float(hidden.grad.norm()), "weight": float(weight.grad.norm())}
    return {"bytes": resident("VmHWM") - before, "seconds": seconds, "loss": float(loss)} | norms


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kib) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="Of one step.")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.tokens)))
        return 0
    print(f"{options.tokens} tokens, vocabulary {VOCABULARY}, width {WIDTH}, float32, one thread")
    found: dict[str, dict[str, float]] = {}
    for kind, name in KINDS.items():
        own = [sys.executable, __file__, "--measure", kind, "--tokens", str(options.tokens)]
        done = subprocess.run(own, capture_output=True, text=True, check=False)
        if done.returncode and kind == "torch":
            print(f"{name:<34}{done.stderr.strip().splitlines()[-1]}")
            continue
        done.check_returncode()
        found[kind] = one = json.loads(done.stdout)
        print(
            f"{name:<34}{one['bytes'] / 2**20:8.0f} MiB {one['seconds']:8.1f} s CPU   loss {one['loss']:.7f}   "
            f"gradients {one['hidden']:.7g} {one['weight']:.7g}",
            flush=True,
        )
    plain, ours = found["plain"], found["chunked"]
    differ = [name for name in ("loss", "hidden", "weight") if not math.isclose(plain[name], ours[name], rel_tol=1e-6)]
    ratio = ours["bytes"] / plain["bytes"]
    missed = [f"{name} differs" for name in differ] + ["memory"] * (ratio > GOAL)
    print(
        f"peak of the loss to F.cross_entropy's: {ratio:.4f} (goal {GOAL}), seconds "
        f"{ours['seconds'] / plain['seconds']:.2f} of its; {'missed: ' + ', '.join(missed) if missed else 'met'}"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
