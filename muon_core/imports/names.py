"""Meanings that a column of a log can have, by the names people give it.

The names of a meaning stand in groups, the surest first: where a log has one of an earlier group, later groups are not
asked. A `step` that somebody logged beats W&B's own `_step`, which counts calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_VAL = ("val", "valid", "validation", "eval", "dev")
_TRAIN = ("train", "training")


def _of(sets: Iterable[str], metrics: Iterable[str], end: str = "") -> tuple[str, ...]:
    """`val_loss`, `loss_val` and so on."""
    return tuple(name + end for s in sets for m in metrics for name in (f"{s}_{m}", f"{m}_{s}"))


_ACCURACY, _PERPLEXITY, _BPB = ("acc", "accuracy"), ("ppl", "perplexity"), ("bpb", "bits_per_byte")
NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "step": (
        ("step", "global_step", "trainer_global_step", "train_global_step", "train_step", "optimizer_step", "steps"),
        ("iteration", "iterations", "iter", "training_iteration"),
        ("_step",),
    ),
    "run": (
        ("run", "run_id"),
        ("run_name", "trial_id", "run_label"),
        ("trial", "trial_name"),
        ("name", "job_name", "job_id"),
        ("experiment_name", "exp_name"),
        ("experiment", "exp"),
        ("experiment_id", "exp_id"),
    ),
    "seed": (("seed", "config_seed"), ("random_seed", "rng_seed", "manual_seed")),
    "optimizer": (("optimizer", "config_optimizer"), ("optimizer_type", "optimizer_name", "optim", "opt")),
    "val_loss": (_of(_VAL, ["loss"]), _of(_VAL, ["loss"], "_epoch")),
    "val_accuracy": (_of(_VAL, _ACCURACY), _of(_VAL, _ACCURACY, "_epoch")),
    "val_perplexity": (_of(_VAL, _PERPLEXITY),),
    "val_bpb": (_of(_VAL, _BPB),),
    "train_loss": (_of(_TRAIN, ["loss"]), _of(_TRAIN, ["loss"], "_step"), ("loss",), _of(_TRAIN, ["loss"], "_epoch")),
    "train_perplexity": (_of(_TRAIN, _PERPLEXITY),),
    "lr": (("lr", "learning_rate", "train_lr", "train_learning_rate"),),
    "grad_norm": (("grad_norm", "train_grad_norm", "gradient_norm"),),
    "step_time_s": (("step_time", "iter_time", "dt", "train_dt"),),
    "tokens_per_s": (
        ("tokens_per_s", "tokens_per_sec", "tokens_per_second", "tok_per_sec", "train_tok_per_sec", "tok_sec"),
    ),
    "tokens": (
        ("tokens", "tokens_seen", "num_tokens", "total_tokens", "train_tokens"),
        ("num_input_tokens_seen", "train_num_input_tokens_seen", "num_tokens_seen", "consumed_tokens"),
    ),
    "elapsed_s": (
        ("elapsed", "elapsed_time", "time_elapsed", "wall_time", "walltime", "train_time", "training_time", "runtime",
         "total_time", "total_training_time", "time_total", "time", "minutes", "seconds", "hours"),
        ("_runtime",),
    ),
}  # fmt: skip
"""Meaning -> groups of names, as `parse_column` gives them."""
MEANINGS = tuple(NAMES)
IDENTITY = ("run", "seed", "optimizer")
"""Meanings that tell runs apart."""
DURATIONS = ("elapsed_s", "step_time_s")
LOSSES = ("val_loss", "train_loss")

_ENDINGS = {
    "milliseconds": ("ms", "msec", "millis", "milliseconds"),
    "seconds": ("s", "sec", "secs", "seconds"),
    "minutes": ("m", "min", "mins", "minutes"),
    "hours": ("h", "hr", "hrs", "hours"),
    "percent": ("pct", "percent"),
}
_UNIT_OF = {ending: unit for unit, endings in _ENDINGS.items() for ending in endings}


@dataclass(frozen=True, slots=True)
class Named:
    """What a column is called: all of it, and what is left if its end is a unit."""

    whole: str
    head: str = ""
    unit: str = ""

    def is_in(self, group: Iterable[str], units: Iterable[str]) -> bool:
        """Whether the name is one of `group`, or one of it with its unit, which must be of `units`."""
        return self.whole in group or (self.unit in units and self.head in group)


def parse_column(column: str) -> Named:
    """`Val/Loss` is `val_loss`; `time (min)` is `time` in minutes; W&B's `_step` stays what it is."""
    text = column.strip().lower().replace("%", " percent ")
    if text == "_step":
        return Named(text)
    if text == "_runtime":
        return Named(text, text, "seconds")
    whole = re.sub(r"[^a-z0-9]+", "_", text).strip("_")
    head, _, last = whole.rpartition("_")
    return Named(whole, head or whole, _UNIT_OF.get(last, ""))
