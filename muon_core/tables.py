"""The result tables: names, Arrow schemas, units and keys. Imports pyarrow only, so that readers stay light."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 1  # in every Parquet file's metadata; raised when a column changes its meaning


@dataclass(frozen=True, slots=True)
class Table:
    """One result table: `columns` maps a name to (Arrow type, unit or meaning); `key` tells a run's rows apart."""

    name: str
    key: tuple[str, ...]
    columns: dict[str, tuple[pa.DataType, str]]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema with the unit of every column and the schema version in its metadata."""
        fields = [pa.field(name, dtype, metadata={"unit": unit}) for name, (dtype, unit) in self.columns.items()]
        return pa.schema(fields, metadata={"muon_schema": str(SCHEMA_VERSION), "muon_table": self.name})


_TEXT, _INT, _LONG, _REAL, _TRUE, _TIME = (
    pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.bool_(), pa.timestamp("us", tz="UTC"),
)  # fmt: skip
_LOSS = pa.float64()  # losses keep all their digits: seeds differ in the fifth

_COMMON: dict[str, tuple[pa.DataType, str]] = {
    "run_id": (_TEXT, "run"),
    "attempt": (_INT, "which try at the run emitted the row, from 1"),
    "seq": (_LONG, "emission counter of the run"),
    "step": (_LONG, "optimizer steps done"),
    "tokens": (_LONG, "training tokens seen"),
}

TRAIN = Table(
    "train",
    ("step",),
    _COMMON
    | {
        "train_loss": (_LOSS, "nats per token, mean over the step's batch, before its update"),
        "lr": (_REAL, "learning rate of the hidden matrices"),
        "grad_norm": (_REAL, "global L2 norm before clipping"),
        "step_time_s": (_REAL, "seconds, mean over the steps since the row before"),
        "tokens_per_s": (_REAL, "tokens per second"),
        "mfu": (_REAL, "flops_per_token x tokens_per_s / peak FLOP/s of all GPUs in its precision; null on CPUs"),
        "data_share": (_REAL, "of the seconds since the row before, those reading batches"),
        "optimizer_share": (_REAL, "likewise, in norms and optimizer steps"),
        "tracking_share": (_REAL, "likewise, in the layers, spectra and health tables; on a GPU what training waited"),
        "evaluation_share": (_REAL, "likewise, in evaluations"),
        "peak_memory_bytes": (_LONG, "so far: device memory on CUDA, resident set on CPU"),
        "elapsed_s": (_REAL, "seconds since the run's start, from set-up on; the time between attempts left out"),
    },
)

VAL = Table(
    "val",
    ("step",),
    _COMMON
    | {
        "val_loss": (_LOSS, "nats per token"),
        "val_accuracy": (_LOSS, "share of exact next-token matches"),
        "val_perplexity": (_LOSS, "exp(val_loss)"),
        "elapsed_s": (_REAL, "seconds since the run's start, from set-up on; the time between attempts left out"),
    },
)

LAYERS = Table(
    "layers",
    ("step", "layer", "projection"),
    _COMMON
    | {
        "layer": (_INT, "from 0"),
        "projection": (_TEXT, "q k v o up down"),
        "weight_norm": (_REAL, "Frobenius norm"),
        "weight_norm_peak": (_REAL, "largest weight_norm at any step so far"),
        "grad_norm": (_REAL, "Frobenius norm of the raw gradient, before clipping"),
        "grad_norm_peak": (_REAL, "largest grad_norm at any step so far"),
        "update_norm": (_REAL, "Frobenius norm of the step's change without weight decay"),
        "spectral_norm": (_REAL, "largest singular value of the weight"),
        "spectral_gap": (_REAL, "s_1 / s_2 of the weight"),
        "entropy": (_REAL, "nats: -sum p log p of the weight's singular values, p = s / sum s"),
        "effective_rank": (_REAL, "exp(entropy)"),
        "stable_rank": (_REAL, "||W||_F^2 / s_1^2"),
        "orthogonality_error": (_REAL, "||(W/s_1)'(W/s_1) - I||_F / sqrt(min(rows, cols)), on the short side"),
        "update_alignment": (_REAL, "left_alignment"),
        "left_alignment": (
            _REAL,
            "mean svdvals(U_W' U_dW), top 5 left singular vectors of the weight and of its update without decay",
        ),
        "right_alignment": (_REAL, "left_alignment of the right singular vectors"),
        "momentum_left_alignment": (
            _REAL,
            "left_alignment with the momentum in place of the update; null, as all of the momentum's columns, for an "
            "optimizer whose state has no `momentum_buffer`, no `exp_avg` and none that its `momentum_key` names",
        ),
        "momentum_right_alignment": (_REAL, "right_alignment with the momentum in place of the update"),
        "energy_alignment": (_REAL, "||U_W' dW||_F^2 / ||dW||_F^2"),
        "alignment_gap": (_REAL, "(s_5 - s_6) / s_1 of the update"),
        "ill_posed": (_TRUE, "alignment_gap below 1e-3: the update has no top 5, and its alignments no meaning"),
        "momentum_alignment_gap": (_REAL, "(s_5 - s_6) / s_1 of the momentum"),
        "momentum_ill_posed": (_TRUE, "momentum_alignment_gap below 1e-3"),
        "alignment_chance": (_REAL, "mean left alignment of independent, uniformly random subspaces"),
        "right_alignment_chance": (_REAL, "mean right alignment of independent, uniformly random subspaces"),
        "rows": (_INT, "of the weight matrix"),
        "cols": (_INT, "of the weight matrix"),
    },
)

SPECTRA = Table(
    "spectra",
    ("step", "layer", "projection"),
    _COMMON
    | {
        "layer": (_INT, "from 0"),
        "projection": (_TEXT, "q k v o up down"),
        "singular_values": (pa.list_(pa.field("element", _REAL)), "all of the weight's, largest first"),
        "sampled": (_TRUE, "imported, and perhaps only some of them: no metric may be computed; null for all"),
    },
)

HEALTH = Table(
    "health",
    ("step", "layer", "projection"),
    _COMMON
    | {
        "layer": (_INT, "from 0"),
        "projection": (_TEXT, "q k v o up down"),
        "cos_previous_update": (_REAL, "cosine of the update and the one before, both without decay"),
        "gradient_agreement": (_REAL, "<U, g> / nuclear norm of g; U is minus the update at root mean square sigma 1"),
        "alpha": (_REAL, "annealed noise strength at the step; null without noise"),
        "momentum_effective_rank": (_REAL, "exp(entropy) of what is orthogonalized, before noise; null for others"),
        "gate_open": (_REAL, "share of the matrix's blocks that were perturbed: 0 or 1 for whole matrices"),
        "noise_ratio": (_REAL, "Frobenius norm of what the perturbation added / that of the momentum"),
        "cos_noise_free": (_REAL, "cosine of the update direction and the one without perturbation"),
        "sigma_max": (_REAL, "largest singular value of the momentum; under as_seed, before its cubic steps"),
        "num_sign_flips": (_INT, "as_seed: singular values above sqrt(3), where a cubic step may flip the sign"),
        "num_divergent": (_INT, "as_seed: singular values above sqrt(5), where cubic steps diverge"),
        "num_nonfinite": (_INT, "entries of the perturbed momentum that are not finite"),
        "num_fallbacks": (_INT, "blocks whose update is the raw gradient because of that"),
    },
)

FROZEN_COSINE, FROZEN_AGREEMENT = 0.99, 0.2
"""A momentum is frozen with a `cos_previous_update` above the one and a `gradient_agreement` below the other.

Plain Muon has cosines of 0.6 to 0.92 and agreements of 0.3 to 0.5; frozen, 0.997 to 1 and 0.19 to -0.06.
"""

RUNS = Table(
    "runs",
    (),
    {
        "run_id": (_TEXT, "run"),
        "arm_id": (_TEXT, "the same for runs that differ only in seed"),
        "arm": (_TEXT, "readable part of arm_id"),
        "seed": (_LONG, "of the init, data, noise and dropout streams"),
        "optimizer": (_TEXT, "name in the optimizer dict"),
        "lr": (_LOSS, "of the hidden matrices"),
        "embedding_lr": (_LOSS, "of embeddings, norms and vectors (AdamW)"),
        "alpha": (_LOSS, "null where the optimizer has none"),
        "rank_threshold": (_LOSS, "null where the optimizer has none"),
        "anneal": (_TEXT, "null where the optimizer has none"),
        "noise_norm": (_TEXT, "null where the optimizer has none"),
        "config_json": (_TEXT, "the resolved RunConfig"),
        "status": (_TEXT, "running done diverged failed stopped"),
        "error": (_TEXT, "traceback of a failed run, reason of a diverged one"),
        "health": (_TEXT, "how the momentum froze or ran away; null where it was not seen to"),
        "attempts": (_INT, "tries at the run so far"),
        "started_at": (_TIME, "start of the newest attempt"),
        "ended_at": (_TIME, "null while running"),
        "final_val_loss": (_LOSS, "nats per token after the last step; null for a run that is not done"),
        "last_val_loss": (_LOSS, "nats per token at the newest evaluation, wherever the run stands or ended"),
        "best_val_loss": (_LOSS, "nats per token"),
        "final_val_accuracy": (_LOSS, "share; null for a run that is not done"),
        "tokens": (_LONG, "training tokens seen"),
        "steps": (_LONG, "optimizer steps done"),
        "wall_s": (_LOSS, "seconds from the run's start to its end; the time between attempts left out"),
        "train_s": (_LOSS, "seconds in optimizer steps, without evaluation and tracking"),
        "data_s": (_LOSS, "seconds reading batches"),
        "gradients_s": (_LOSS, "seconds in forward, backward and their reduction"),
        "optimizer_s": (_LOSS, "seconds in norms and optimizer steps"),
        "tracking_s": (_LOSS, "seconds in the layers, spectra and health tables; on a GPU what training waited"),
        "evaluation_s": (_LOSS, "seconds in evaluations"),
        "checkpoint_s": (_LOSS, "seconds training waited for checkpoints"),
        "tokens_per_s": (_LOSS, "training tokens per second of data_s, gradients_s and optimizer_s"),
        "mfu": (_LOSS, "model FLOPs utilisation at that speed, as in train; null on CPUs"),
        "loss_spikes": (_LONG, "steps whose loss spiked"),
        "skipped_steps": (_LONG, "steps without update, for a loss or gradient that was not finite"),
        "peak_memory_bytes": (_LONG, "device memory on CUDA, resident set on CPU"),
        "num_parameters": (_LONG, "trainable weights"),
        "init_hash": (_TEXT, "sha256 over the initial weights"),
        "first_batch_hash": (_TEXT, "sha256 over the token ids of the first optimizer step"),
        "data_hash": (_TEXT, "sha256 over tokenizer, shards and split rule"),
        "world_size": (_INT, "workers"),
        "device": (_TEXT, "GPU name or CPU capability"),
        "commit": (_TEXT, "of the code; null outside a checkout"),
        "diff_hash": (_TEXT, "sha256 of uncommitted changes; null when clean"),
        "distribution_json": (_TEXT, "how updates were shared out among workers, and the seconds that decided it"),
        "environment_json": (_TEXT, "versions, threads, platform, micro_batches of auto; resumed_from: what differed"),
    },
)

SWEEP_RUNS = Table(
    "sweep_runs",
    (),
    {
        "sweep": (_TEXT, "name of the sweep"),
        "run_id": (_TEXT, "run"),
        "block": (_TEXT, "block of the sweep file"),
        "role": (_TEXT, "baseline, candidate or control"),
    },
)

ATTEMPTS = Table(
    "attempts",
    (),
    {
        "run_id": (_TEXT, "run"),
        "attempt": (_INT, "which try at the run, from 1"),
        "status": (_TEXT, "running, or how it ended: done diverged failed stopped, or lost: without a word"),
        "failure": (_TEXT, "program, out_of_memory, infrastructure, preemption or hang; null for other ends"),
        "error": (_TEXT, "end of its traceback, or why it was stopped"),
        "started_at": (_TIME, "when it took the run over"),
        "seen_at": (_TIME, "its last sign of life"),
        "seconds": (_LOSS, "from the one to the other"),
        "first_step": (_LONG, "steps done before, which it goes on from; null if it never began to train"),
        "step": (_LONG, "steps done at its end"),
        "host": (_TEXT, "where rank 0 trained"),
        "workers": (_INT, "processes"),
        "gpus": (_LOSS, "GPUs of all workers together"),
        "gpu_hours": (_LOSS, "gpus times hours"),
        "node": (_TEXT, "type of machine, as the price table calls it"),
        "spot": (_TRUE, "whether it was spot"),
        "usd_per_hour": (_LOSS, "of the share of machines the run took; null where no price is known"),
        "usd": (_LOSS, "what the attempt cost; null where no price is known"),
        "price_source": (_TEXT, "where the price is from"),
        "price_date": (_TEXT, "when it was looked up"),
    },
)

SERIES: dict[str, Table] = {table.name: table for table in (TRAIN, VAL, LAYERS, SPECTRA, HEALTH)}
"""Tables written row by row while a run trains."""
TABLES: dict[str, Table] = SERIES | {table.name: table for table in (RUNS, SWEEP_RUNS, ATTEMPTS)}
_ROWS = {
    "runs": "One row per run that was started.",
    "sweep_runs": "One row per block of a sweep and run in it.",
    "attempts": "One row per attempt at a run: who trained it, for how long, and what that cost.",
}
PROJECTIONS = ("q", "k", "v", "o", "up", "down")
"""Of our own model. Hugging Face models have others: `qkv` and `gate_up` are fused, `gate`, or a layer's own name."""
KNOWN_PROJECTIONS = (*PROJECTIONS, "qkv", "gate", "gate_up")


def projection_order(name: str) -> tuple[int, str]:
    """A key that sorts projections: ours, those of Hugging Face models that are known, others by name."""
    return (KNOWN_PROJECTIONS.index(name) if name in KNOWN_PROJECTIONS else len(KNOWN_PROJECTIONS), name)


_INTRODUCTION = """\
# Tables

What a results store holds, as `analysis.open_store(path)` shows it: the tables written row by row while a run trains,
then `runs`, `sweep_runs` and `attempts`. Seen through `.sweep(name)`, a table has two more columns, `block` and `role`;
read from its files with `hive_partitioning=True`, it has `table` and `run`, the names of their folders.

Written by `python -m muon_core.tables > docs/tables.md`; change `muon_core/tables.py` instead.
"""


def describe() -> str:
    """Every table with its columns, types and units, as Markdown: the text of docs/tables.md."""
    return "\n".join([_INTRODUCTION, *(_section(table) for table in TABLES.values())])


def _section(table: Table) -> str:
    *others, last = ("run", *table.key)
    lines = [f"## {table.name}", "", _ROWS.get(table.name) or f"One row per {', '.join(others)} and {last}.", ""]
    lines += ["| column | type | unit or meaning |", "|---|---|---|"]
    for name, (dtype, unit) in table.columns.items():
        escaped = unit.replace("|", r"\|")
        lines.append(f"| {name} | {dtype} | {escaped} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(describe(), end="")
