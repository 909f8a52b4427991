"""What losses at step 0 tell of initial weights, where runs have no hash of them, as imported ones have none.

Equal weights give equal losses, and that different ones do, to the last digit, is next to impossible. Unless the loss
tells nothing of the weights: a model whose last layer begins at zero guesses, and guessing costs ln(vocabulary size)
whatever lies below. And a loss of few digits, as one in bfloat16 or a log that prints four decimals, is shared by many.
"""

from __future__ import annotations

import json
import math
from typing import Any

import polars as pl

_VOCABULARIES = {30522, 50257, 100277, 128256, 151643, 199997}
"""Sizes in use beside those that were rounded up to a multiple of 64."""
_SINGLE = 2e-6  # nats: what rounding in single precision does to a loss of guessing
_SMALL = 2_000  # a vocabulary below which exp(loss) tells every size from the next
_DECIMALS = 4


def equal_first_losses(members: pl.DataFrame, val: pl.LazyFrame) -> list[str]:
    """Runs of one arm with different seeds and the same loss at step 0, of those without a hash."""
    losses = first_losses(members, val).drop_nulls("val_loss")
    return [
        f"{arm}: {who} have the same validation loss at step 0 ({loss}): their initial weights were probably the same, "
        "so they are not independent draws of them"
        for (arm, loss), runs in losses.group_by("arm", "val_loss", maintain_order=True)
        if (who := _several(runs["seed"]))
    ]


def _several(seeds: pl.Series) -> str:
    """`seeds 1, 2`, or `3 runs` where not all tell theirs; empty for runs of one seed, or a single run."""
    if seeds.null_count():
        return f"{len(seeds)} runs" if len(seeds) > 1 else ""
    different = sorted(set(seeds))
    return f"seeds {', '.join(map(str, different))}" if len(different) > 1 else ""


def first_losses(members: pl.DataFrame, val: pl.LazyFrame) -> pl.DataFrame:
    """`arm`, `seed`, `val_loss` at step 0, if it tells something, of the runs whose initial weights have no hash."""
    unknown = members.filter(pl.col("init_hash").is_null()).select("run_id", "arm", "seed", "config_json")
    if unknown.height < 2:
        return unknown.drop("config_json").clear().with_columns(val_loss=pl.lit(None, pl.Float64))
    first = val.filter(pl.col("step") == 0, pl.col("run_id").is_in(unknown["run_id"].to_list()))
    losses = first.filter(pl.col("val_loss").is_finite()).select("run_id", "val_loss").unique().collect()
    joined = unknown.join(losses, on="run_id", maintain_order="left")
    tells = [
        loss is not None and not is_of_any_weights(loss, json.loads(config or "{}").get("vocab_size"))
        for loss, config in zip(joined["val_loss"], joined["config_json"], strict=True)
    ]
    told = pl.when(pl.Series(tells, dtype=pl.Boolean)).then("val_loss")
    return joined.drop("config_json").with_columns(val_loss=told)


def is_of_any_weights(loss: float, vocabulary: Any = None) -> bool:
    """Whether models with other weights may have had this loss, in nats: by guessing, or for its few digits.

    Args:
        vocabulary: its size, where the config tells it.

    >>> is_of_any_weights(math.log(50304)), is_of_any_weights(10.8125), is_of_any_weights(10.886251859664917)
    (True, True, False)
    """
    has_few_digits = round(loss, _DECIMALS) == loss or (math.frexp(loss)[0] * 256).is_integer()
    if has_few_digits or not 0 < loss < 20:  # no vocabulary has e^20 tokens
        return has_few_digits
    size = round(math.exp(loss))
    is_size = size in (vocabulary, *_VOCABULARIES) or size % 64 == 0 or size < _SMALL
    return is_size and abs(loss - math.log(size)) < _SINGLE
