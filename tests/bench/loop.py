"""What our training loop costs beside a bare one: the tiny preset on one CPU thread, step by step in turn.

The bare loop is what one writes in a script: the same model, data, learning rates and AdamW for the rest, with
`torch.optim.Muon`; it reads a batch, computes gradients, steps, and looks at its loss. Each of its steps is taken
inside the report that `train()` makes of one of its own, so both meet the same machine. Ours is charged the CPU seconds
of the whole process but for those steps: rows, threads that write them to a folder, the lease, norms at every step.
`off` has no evaluation and no tracking; `default` has both, and the bare loop evaluates as often, by PyTorch's own
operators.

Both in float32 (`ns_dtype: fp32`; torch.optim.Muon, which has bfloat16 only, is given float32 in its place), so that no
kernel hides the loop; `--bf16` compares the optimizers as they are. The median over blocks of 20 steps counts. Prints
milliseconds a step, the ratios and their goals; exits 1 if short.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

GOALS = {"off": 1.03, "default": 1.08}
BLOCK, WARM = 20, 20  # steps; those before are not counted: allocators and threads settle


class Bare:
    """A loop as in a script, whose steps are asked for one at a time."""

    def __init__(self, config: Any, *, evaluates: bool) -> None:
        import torch

        from muon_core.data.batches import load_data
        from muon_core.model import Transformer, hidden_matrices, init_weights

        self.config, self.evaluates = config, evaluates
        self.data = load_data(config.data, config.model.vocab_size)
        self.model = Transformer(config.model)
        init_weights(self.model, config.seed)
        hidden = [matrix.parameter for matrix in hidden_matrices(self.model)]
        rest = [p for p in self.model.parameters() if all(p is not matrix for matrix in hidden)]
        setting = config.optimizer
        self.optimizers = [
            torch.optim.Muon(hidden, lr=setting.lr, weight_decay=setting.weight_decay, momentum=setting.momentum),
            torch.optim.AdamW(
                rest, lr=setting.embedding_lr, betas=setting.adam_betas, eps=setting.adam_eps, weight_decay=0.0
            ),
        ]
        self.rates = [setting.lr, setting.embedding_lr]
        self.losses: list[float] = []

    def step(self, number: int) -> None:
        """Optimizer step `number`, counted from 0, and the evaluation that follows."""
        import torch.nn.functional as F

        from muon_core.optim.schedules import lr_multiplier

        config = self.config
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * lr_multiplier(config.schedule, number, config.steps)
        window = self.data.batch(config.seed, number, config.batch_size)
        logits = self.model(window[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.losses.append(float(loss))
        if self.evaluates and (number + 1) % config.tracking.eval_every == 0:
            self.evaluate()

    def evaluate(self) -> tuple[float, float]:
        import torch
        import torch.nn.functional as F

        windows = self.data.validation()
        nats, right = 0.0, 0
        with torch.inference_mode():
            for window in windows.split(self.config.batch_size):
                logits, target = self.model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()
                nats += float(F.cross_entropy(logits, target, reduction="sum"))
                right += int((logits.argmax(-1) == target).sum())
        return nats / windows[:, 1:].numel(), right / windows[:, 1:].numel()


def compare(kind: str, blocks: int, bf16: bool) -> dict[str, Any]:
    """Both loops in turn: CPU milliseconds a step of each, and the median of the blocks' ratios."""
    import torch

    from muon_core.config.run import RunConfig
    from muon_core.store.folder import Folder
    from muon_core.train import train

    torch.set_num_threads(1)
    if not bf16:
        # All that torch's step casts with.
        torch.Tensor.bfloat16 = torch.Tensor.clone  # type: ignore[assignment,method-assign]
    steps = WARM + blocks * BLOCK + 1  # the last has its own evaluation and tracking
    never = {"eval_every": 2 * steps, "track_every": 2 * steps}
    config = RunConfig.model_validate(
        {
            "optimizer": {"name": "muon", "ns_dtype": "bf16" if bf16 else "fp32"},
            "steps": steps,
            "tracking": never if kind == "off" else {},
        }
    )
    bare = Bare(config, evaluates=kind == "default")
    ours: list[float] = []
    theirs: list[float] = []
    mine: list[float] = []
    left = time.process_time()

    def report(progress: Any) -> bool:
        nonlocal left
        entered = time.process_time()
        if progress.step:
            begin = time.thread_time()  # what our threads do meanwhile is ours
            bare.step(progress.step - 1)
            theirs.append(time.thread_time() - begin)
            ours.append(entered - left + max(0.0, time.process_time() - entered - theirs[-1]))
            mine.append(progress.train_loss)
        left = time.process_time()
        return True

    with tempfile.TemporaryDirectory() as folder:
        assert train(config, Folder(folder), report=report).status == "done"
    ratios = [sum(ours[i : i + BLOCK]) / sum(theirs[i : i + BLOCK]) for i in range(WARM, steps - 1, BLOCK)]
    return {
        "ratio": median(ratios),
        "ours": sum(ours[WARM:-1]) / (blocks * BLOCK) * 1e3,
        "theirs": sum(theirs[WARM:-1]) / (blocks * BLOCK) * 1e3,
        "apart": max(abs(a - b) for a, b in zip(mine, bare.losses, strict=True)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=9, help=f"Blocks of {BLOCK} steps.")
    parser.add_argument("--bf16", action="store_true", help="Both optimizers in bfloat16, as torch.optim.Muon is.")
    parser.add_argument("--kind", choices=GOALS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(compare(options.kind, options.blocks, options.bf16)))
        return 0
    found = {}
    for kind in GOALS:
        own = [sys.executable, __file__, "--kind", kind, "--blocks", str(options.blocks)]
        done = subprocess.run(own + ["--bf16"] * options.bf16, check=True, capture_output=True, text=True)
        found[kind] = one = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{kind:<8} bare loop {one['theirs']:7.2f} ms of CPU a step   train() {one['ours']:7.2f} ms   "
            f"ratio {one['ratio']:.3f}   losses differ by {one['apart']:.1e} at most",
            flush=True,
        )
    missed = [kind for kind, goal in GOALS.items() if found[kind]["ratio"] > goal]
    shown = ", ".join(f"{kind} {found[kind]['ratio']:.3f} (goal {goal})" for kind, goal in GOALS.items())
    print(f"train() to a bare loop: tracking {shown}; {'missed: ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
