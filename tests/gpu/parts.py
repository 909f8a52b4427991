"""What `make gpu-check` measures, each part a process of its own: `python tests/gpu/parts.py PART [JSON ARGUMENTS]`.

Every part takes the device and prints its result as JSON on its last line. On `cuda` it is the 88m preset, in bf16 and
compiled; on `cpu` a tiny model, for which the figures mean nothing: it is there so that tests can follow the script.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from muon_core import environment, gpus
from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from muon_core.config.sizes import flops_per_token, orthogonalizer_flops
from muon_core.progress import Progress
from muon_core.store.folder import Folder
from muon_core.train import train

WARM = 5  # steps that are not counted: kernels are compiled and loaded
PACKAGES = (
    "asyncio",
    "email",
    "json",
    "logging",
    "unittest",
    "xml",
)  # of the standard library, for a text of a million tokens
SMALL: dict[str, Any] = {
    "model": {"d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "d_ff": 32},
    "data": {"seq_len": 32, "validation_tokens": 512},
    "batch_size": 4,
    "optimizer": {"ns_dtype": "fp32"},
}
SYNCS = "synchronizing CUDA operation"  # of torch's warning
NEVER = 10**6


def config(device: str, optimizer: str, text: Path, **changes: Any) -> RunConfig:
    """A run on `text` under `optimizer`, as its preset has it."""
    base = PRESETS["88m"] if device == "cuda" else SMALL
    own = base.get("optimizer", {}) if optimizer == "muon" else {}
    data = base["data"] | {"corpus": str(text), "validation_share": 0.2}
    model = base["model"] | {"vocab_size": 49_152 if device == "cuda" else 300}
    whole = dict(base) | {"model": model, "data": data, "optimizer": own | {"name": optimizer}}
    return RunConfig.model_validate(whole | {"compile": device == "cuda"} | changes)


@contextmanager
def prepared() -> Iterator[Path]:
    """A data set of Python source, whose few token ids any vocabulary has: training costs the same."""
    from muon_core.data.prepare import Settings, prepare_set

    with tempfile.TemporaryDirectory() as folder:
        library, text, place = Path(sysconfig.get_paths()["stdlib"]), Path(folder) / "text.jsonl", Path(folder) / "set"
        files = [path for name in PACKAGES for path in sorted((library / name).rglob("*.py"))]
        rows = (json.dumps({"text": path.read_text(encoding="utf-8")}) for path in files)
        text.write_text("\n".join(rows), encoding="utf-8")
        prepare_set([str(text)], str(place), Settings(train_bpe=300, validation_share=0.2), workers=1)
        yield place


def speed(device: str, optimizer: str, tracking: bool, steps: int = 46) -> dict[str, Any]:
    """Tokens a second and MFU between two steps, seconds the first took beyond another, and memory.

    The first step compiles the passes of training; what evaluation compiles, it has before.

    `tracking`: rows, evaluation and tracking as by default, in a folder; else none of them.
    """
    never = {} if tracking else {"log_every": NEVER, "eval_every": NEVER, "track_every": NEVER}
    times: dict[int, float] = {}

    def report(progress: Progress) -> bool:
        if progress.step in (0, 1, WARM, steps - 1):  # the last step is evaluated and tracked in any case
            synchronize(device)
            times[progress.step] = time.perf_counter()  # of step 0 that after its evaluation, the second report
        return True

    with prepared() as text, tempfile.TemporaryDirectory() as folder:
        run = config(device, optimizer, text, steps=steps, tracking=never, checkpoint={"every_s": None, "model": False})
        outcome = train(run, Folder(folder) if tracking else None, report=report, device=at(device))
    assert outcome.status == "done", outcome.error
    step_s = (times[steps - 1] - times[WARM]) / (steps - 1 - WARM)
    gpu = gpus.find(environment.device_name(at(device)))
    tokens_per_s, peak = run.tokens_per_step / step_s, gpu.peak(run.precision) if gpu else None
    return {
        "tokens_per_s": tokens_per_s,
        "mfu": flops_per_token(run) * tokens_per_s / peak if peak else None,
        "first_step_s": times[1] - times[0] - step_s,
        "peak_bytes": environment.peak_memory_bytes(at(device)),
    }


def resume(device: str, compiled: bool, steps: int = 8) -> dict[str, Any]:
    """Whether a run that was stopped half-way and went on ends on the same bits, and how far its losses are off.

    `compiled`: of two layers, each time anew.
    """
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from support.saved_runs import weights

    with prepared() as text, tempfile.TemporaryDirectory() as folder:
        run = config(device, "muon", text, steps=steps, compile=compiled)
        run = run.replace(model=run.model.replace(num_layers=2)) if compiled else run
        whole, cut = Folder(Path(folder) / "whole"), Folder(Path(folder) / "cut")
        losses = losses_of(run, whole, device)
        parted = losses_of(run, cut, device, stop=steps // 2) | losses_of(run, cut, device)
        ends = weights(whole, run), weights(cut, run)
    assert losses.keys() == parted.keys() == set(range(1, steps + 1))
    return {
        "differing": sum(int((ends[0][name] != ends[1][name]).sum()) for name in ends[0]),
        "entries": sum(weight.numel() for weight in ends[0].values()),
        "apart": max(abs(losses[step] - parted[step]) for step in losses),
    }


def losses_of(run: RunConfig, storage: Folder, device: str, stop: int | None = None) -> dict[int, float]:
    """Train `run`, or the rest of it, to its end or to step `stop`; train losses by step."""
    losses: dict[int, float] = {}

    def report(progress: Progress) -> bool:
        if progress.train_loss is not None:
            losses[progress.step] = progress.train_loss
        return progress.step != stop

    outcome = train(run, storage, report=report, device=at(device))
    assert outcome.status == ("stopped" if stop else "done"), outcome
    return losses


def syncs(device: str, steps: int = 12) -> dict[str, Any]:
    """How often the host waits in a step of which nothing is recorded, as CUDA itself warns; the most of any."""
    counts: list[int] = []
    with prepared() as text, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")

        def report(progress: Progress) -> bool:
            counts.append(sum(SYNCS in str(warning.message) for warning in seen))
            seen.clear()
            return True

        tracking = {"log_every": NEVER, "eval_every": NEVER, "track_every": NEVER}
        run = config(device, "muon", text, steps=steps, tracking=tracking, compile=False)
        set_sync_warnings(device, on=True)
        try:
            assert train(run, None, report=report, device=at(device)).status == "done"
        finally:
            set_sync_warnings(device, on=False)
    quiet = counts[3:-1]  # two reports come before the first step, whose kernels are loaded; the last is evaluated
    return {"most": max(quiet), "steps": len(quiet)}


def floor(device: str) -> dict[str, Any]:
    """Seconds that Newton-Schulz of the 88m preset takes at the GPU's bf16 peak; null where that is unknown."""
    gpu = gpus.find(environment.device_name(at(device)))
    flops, peak = orthogonalizer_flops(RunConfig.model_validate(PRESETS["88m"])), gpu.peak("bf16") if gpu else None
    return {"seconds": flops / peak if peak else None}


def versions(device: str) -> dict[str, Any]:
    """What the figures were measured with."""
    found = environment.fingerprint()
    named = {name: found.get(name) for name in ("driver", "torch", "cuda")}
    return {"device": environment.device_name(at(device))} | named


def at(device: str) -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def set_sync_warnings(device: str, *, on: bool) -> None:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn" if on else "default")


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    part.__name__: part for part in (versions, floor, speed, resume, syncs)
}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](*json.loads(sys.argv[2]))))
