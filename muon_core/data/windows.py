"""How token ids are cut into the windows that sequences are read from. Imports no torch."""

from __future__ import annotations

from muon_core.config.run import DataConfig


def num_windows(num_tokens: int, seq_len: int) -> int:
    """Windows of `seq_len + 1` tokens in so many; neighbours share one token, so that each is predicted once."""
    return max(0, (num_tokens - 1) // seq_len)


def validation_windows(data: DataConfig) -> int:
    """Windows that cover `data.validation_tokens` predicted tokens."""
    return -(-data.validation_tokens // data.seq_len)
