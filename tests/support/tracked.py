"""Tracked matrices of runs that train as they should: smooth curves, with noise of the size that real runs have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from muon_core.tables import PROJECTIONS

EVERY = 10  # optimizer steps between two tracked ones
RANKS = {"q": 370, "k": 210, "v": 220, "o": 380, "up": 470, "down": 480}  # of an 88M model


@dataclass
class Tracked:
    """Rows as of the tables `layers` and `health`, and who the runs are."""

    layers: pl.DataFrame
    health: pl.DataFrame
    who: pl.DataFrame


def clean_runs(arms: int, seeds: int, layers: int, steps: int, draw: int = 0) -> Tracked:
    """Runs `a<arm>-s<seed>` of `layers` times six matrices, tracked `steps` times; `draw` seeds the noise."""
    rng = np.random.default_rng(draw)
    shape = (arms, seeds, len(PROJECTIONS), layers, steps)
    arm, _, _, layer, t = np.indices(shape, sparse=True)
    depth, age = layer / layers, t / steps

    def noise(size: float, seed_size: float = 0.0) -> np.ndarray:
        """Of every cell, and between the seeds for good; Student t with 8 degrees of freedom."""
        return size * rng.standard_t(8, shape) + seed_size * rng.normal(size=(*shape[:4], 1))

    rank = np.array(list(RANKS.values()))[:, None, None]
    schedule = np.minimum(1, (t + 1) / 6) * (1 - 0.9 * age)  # warm-up, then linear decay
    gradient = np.log(0.02 + 0.2 * np.exp(-12 * age) * (1 + depth))
    drawn = gradient[..., None] + 0.1 * rng.standard_t(8, (*shape, EVERY))  # at every optimizer step
    weight = 10 * np.sqrt(1 + 3 * age) * (1 + 0.2 * depth)
    fall = 1 - np.exp(-4 * age)
    metrics = {
        "effective_rank": rank * (1 - 0.1 * depth) * (1 - 0.2 * arm / arms * fall) * np.exp(noise(3e-3, 0.01)),
        "spectral_norm": 2 * (1 + 2 * age) * np.exp(noise(5e-3, 0.02)),
        "weight_norm": weight * np.exp(noise(1e-3, 5e-3)),
        "update_norm": 0.3 * schedule * np.exp(noise(0.01, 0.01)),
        "left_alignment": np.clip(0.1 + noise(0.02), 0, 1),
        "momentum_left_alignment": np.clip(0.35 + noise(0.04, 0.02), 0, 1),
        "grad_norm": np.exp(drawn[..., -1]),
        "grad_norm_peak": np.maximum.accumulate(np.exp(drawn.max(-1)), axis=-1),
    }
    metrics["weight_norm_peak"] = np.maximum.accumulate(metrics["weight_norm"], axis=-1)
    state = {
        "cos_previous_update": np.clip(0.8 + noise(0.04), -1, 0.97),
        "gradient_agreement": 0.4 + noise(0.03),
        "sigma_max": np.exp(gradient + noise(0.05)),
        "num_divergent": np.zeros(shape),
        "num_nonfinite": np.zeros(shape),
    }
    runs = np.array([f"a{a}-s{s}" for a in range(arms) for s in range(seeds)]).reshape(arms, seeds, 1, 1, 1)
    place = {
        "run_id": runs, "projection": np.array(PROJECTIONS)[:, None, None],
        "layer": layer.astype(np.int32), "step": (t + 1) * EVERY,
    }  # fmt: skip

    def frame(columns: dict[str, np.ndarray]) -> pl.DataFrame:
        flat = {name: np.broadcast_to(values, shape).ravel() for name, values in (place | columns).items()}
        return pl.DataFrame(flat).with_columns(pl.col("projection", "run_id").cast(pl.String))

    who = pl.DataFrame([(f"a{a}-s{s}", f"a{a}", s) for a in range(arms) for s in range(seeds)],
                       schema=["run_id", "arm", "seed"], orient="row")  # fmt: skip
    return Tracked(frame(metrics).with_columns(ill_posed=pl.lit(False)), frame(state), who)
