"""What tracking costs: one event on matrices of the 88M model, and the share of a whole run.

The event: weights, updates and momenta of `--layers` layers of the 88M widths after ten Muon steps. The straightforward
scheme decomposes a matrix anew for each metric, with `torch.linalg.svd` in float32: the weight for the entropy, the
effective rank and the energy share, weight and update for their alignment, weight and momentum for theirs: seven. Both
sides of an alignment share theirs, and the other columns are for nothing. Beside it, for comparison, one SVD a
matrix, three in all. Each scheme is a process of its own with one thread, in CPU seconds: what else the machine does
counts less. The run: the tiny preset as it is, by its own profile.

Prints seconds, ratios, peak memory beyond the matrices, and the goals; exits 1 if short.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPEEDUP, SHARE = 6.0, 0.10
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # SciPy brings a BLAS of its own
WIDTHS = {"d_model": 512, "num_heads": 8, "num_kv_heads": 4, "d_ff": 2048, "vocab_size": 512}


def save_matrices(path: Path, num_layers: int) -> None:
    """Weights, updates and momenta, each a list, after ten steps."""
    import torch

    from muon_core.config.run import RunConfig
    from muon_core.optim.optimizers import Optimizers
    from muon_core.train import train

    seen: list[dict[str, torch.Tensor]] = []
    weights: list[dict[str, torch.Tensor]] = []
    step = Optimizers.step

    def watched(self: Optimizers, number: int, **options: Any) -> dict[str, torch.Tensor]:
        updates = step(self, number, **options)
        if updates:
            seen[:] = [updates, {name: momentum.clone() for name, momentum in self.momenta().items()}]
            weights[:] = [{name: param.detach().clone() for name, param, _ in self._hidden_matrices()}]
        return updates

    Optimizers.step = watched  # type: ignore[method-assign,assignment]
    config = RunConfig.model_validate(
        {
            "model": WIDTHS | {"num_layers": num_layers},
            "data": {"seq_len": 64, "validation_tokens": 512},
            "optimizer": {"name": "muon", "ns_dtype": "fp32"},
            "steps": 10,
        }
    )
    assert train(config, None).status == "done"
    torch.save([list(kind.values()) for kind in (weights[0], *seen)], path)


def measure(scheme: str, path: str, repeats: int) -> dict[str, float]:
    """Median seconds of an event and peak bytes beyond the matrices."""
    import torch

    from muon_core.metrics.layers import layer_metrics

    torch.set_num_threads(1)
    weights, updates, momenta = torch.load(path)

    def once(weight: torch.Tensor, update: torch.Tensor, momentum: torch.Tensor) -> None:
        w, u, m = (torch.linalg.svd(matrix, full_matrices=False) for matrix in (weight, update, momentum))
        metrics(w, u, m, w, w, w, w, update)

    def anew(weight: torch.Tensor, update: torch.Tensor, momentum: torch.Tensor) -> None:
        kinds = (weight, update, momentum, weight, weight, weight, weight)
        metrics(*(torch.linalg.svd(matrix, full_matrices=False) for matrix in kinds), update)

    def metrics(w: Any, u: Any, m: Any, w_again: Any, entropy: Any, rank: Any, energy: Any, update: Any) -> None:
        for s in (entropy.S, rank.S):
            p = s / s.sum()
            torch.special.entr(p).sum().exp()
        for weight, other in ((w, u), (w_again, m)):
            torch.linalg.svdvals(weight.U[:, :5].T @ other.U[:, :5]).mean()
            torch.linalg.svdvals(weight.Vh[:5] @ other.Vh[:5].T).mean()
        (energy.U[:, :5].T @ update).norm().div(update.norm()).square()

    def event() -> float:
        begin = time.process_time()
        if scheme == "ours":
            layer_metrics(weights, updates, momenta)
        else:
            for matrices in zip(weights, updates, momenta, strict=True):
                (anew if scheme == "anew" else once)(*matrices)
        return time.process_time() - begin

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = [event() for _ in range(repeats)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": statistics.median(seconds), "bytes": peak * 1024}


def share_of_a_run() -> tuple[float, float]:
    """Seconds in tracking and in training of the tiny preset."""
    from analysis.store import open_store
    from muon_core.config.run import RunConfig
    from muon_core.store.folder import Folder
    from muon_core.train import train

    with tempfile.TemporaryDirectory() as folder:
        assert train(RunConfig(), Folder(folder)).status == "done"
        run = open_store(folder).runs.collect().row(0, named=True)
    return run["tracking_s"], run["train_s"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="Layers of six matrices each; the model has 22.")
    parser.add_argument("--repeats", type=int, default=3, help="Events of each scheme; the median counts.")
    parser.add_argument("--save", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        scheme, path, repeats = options.measure
        print(json.dumps(measure(scheme, path, int(repeats))))
        return 0
    if options.save:
        save_matrices(Path(options.save), options.layers)
        return 0
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrices.pt"
        own = [sys.executable, __file__]  # a child starts with the peak memory of its parent, which stays small
        subprocess.run([*own, "--save", str(path), "--layers", str(options.layers)], check=True)
        for scheme in ("ours", "anew", "once"):
            command = [*own, "--measure", scheme, str(path), str(options.repeats)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | ONE_THREAD)
            results[scheme] = json.loads(done.stdout)
    names = {"ours": "this package", "anew": "an SVD per metric and matrix", "once": "an SVD per matrix"}
    print(f"one event on {6 * options.layers} matrices of {options.layers} layers, one thread")
    for scheme, result in results.items():
        ratio = result["seconds"] / results["ours"]["seconds"]
        print(f"{names[scheme]:<30}{result['seconds']:8.3f} s {ratio:6.1f}x   peak {result['bytes'] / 2**20:6.0f} MiB")
    speedup = results["anew"]["seconds"] / results["ours"]["seconds"]
    tracking, training = share_of_a_run()
    share = tracking / training
    print(f"tiny preset: tracking {tracking:.2f} s of {training:.2f} s of training, {share:.1%}")
    missed = [name for name, short in (("speed", speedup < SPEEDUP), ("share", share > SHARE)) if short]
    print(
        f"speed-up {speedup:.1f} (goal {SPEEDUP}), share of a run {share:.1%} (goal {SHARE:.0%})"
        + (f": missed {', '.join(missed)}" if missed else "")
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
