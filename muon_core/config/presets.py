"""Partial run configs by name."""

from __future__ import annotations

from typing import Any

# Partial run configs by name. `tiny` runs on one CPU core; the others are the sizes the comparisons are published at.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "88m": {
        "model": {
            "d_model": 512, "num_layers": 22, "num_heads": 8, "num_kv_heads": 4, "d_ff": 2048, "vocab_size": 49_152
        },
        "data": {"seq_len": 2048},
        "batch_size": 8,
        "precision": "bf16",
    },
    "350m": {
        "model": {
            "d_model": 1024, "num_layers": 26, "num_heads": 16, "num_kv_heads": 8, "d_ff": 4096, "vocab_size": 49_152
        },
        "data": {"seq_len": 2048},
        "batch_size": 64,
        "precision": "bf16",
    },
    "1b": {
        "model": {
            "d_model": 2048, "num_layers": 20, "num_heads": 16, "num_kv_heads": 4, "d_ff": 8192, "vocab_size": 49_152
        },
        "data": {"seq_len": 2048},
        "batch_size": 128,
        "precision": "bf16",
    },
}  # fmt: skip
