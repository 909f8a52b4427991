"""Batches of a prepared corpus, by a sampler without state: row `i` of a data seed is a function of the two alone.

A run that resumes at a step asks for that step's rows and gets those it would have got: no checkpoint holds a position,
no worker has to skip what was read before, and the batch of a step is the same for any number of workers. Each epoch
visits every window once, in an order drawn from the seed and the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from muon_core.config.run import DataConfig
from muon_core.data.manifest import MANIFEST, SIDES, parse_manifest
from muon_core.data.order import Order, keyed, sorted_draws
from muon_core.data.shards import TRAIN, VALIDATION, prepare, read_index
from muon_core.data.token_stream import TokenStream
from muon_core.data.windows import num_windows, validation_windows

Tokens = npt.NDArray[Any] | TokenStream


@dataclass(frozen=True, slots=True)
class TokenData:
    """Token shards of one prepared folder, memory-mapped, cut into windows of `seq_len + 1` tokens."""

    train: Tokens
    held_out: Tokens
    seq_len: int
    num_validation_windows: int
    data_hash: str
    order: Order = sorted_draws
    """In which an epoch visits the windows."""

    @classmethod
    def open(cls, folder: Path, data: DataConfig) -> TokenData:
        """The shards in `folder`, which `shards.prepare` returned for `data`."""
        if (file := folder / MANIFEST).is_file():
            manifest = parse_manifest(file.read_bytes(), str(folder))
            ids, held_ids = (TokenStream.open(folder / shard.name for shard in manifest.shards[side]) for side in SIDES)
            return cls(ids, held_ids, data.seq_len, validation_windows(data), manifest.content_hash, keyed)
        train, held_out = (np.load(folder / name, mmap_mode="r") for name in (TRAIN, VALIDATION))
        return cls(train, held_out, data.seq_len, validation_windows(data), read_index(folder)["data_hash"])

    def batch(self, seed: int, step: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Tensor:
        """Sequences of optimizer step `step`, counted from 0, under data seed `seed`.

        The step takes rows `[step * batch_size, (step + 1) * batch_size)` of the endless stream of shuffled epochs, and
        a rank its contiguous slice of them, so that the step's batch does not depend on `world_size`.

        Returns: `(batch_size / world_size, seq_len + 1)` token ids, int64, on CPU.
        Raises: ValueError if `world_size` does not divide `batch_size`.
        """
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} must be a multiple of the number of workers, {world_size}")
        share = batch_size // world_size
        first = step * batch_size + rank * share
        return self._windows(self.train, self._shuffled(seed, range(first, first + share)))

    def validation(self) -> Tensor:
        """`(n, seq_len + 1)` token ids, int64: windows spread evenly over the validation shard, whatever the seed."""
        available, wanted = num_windows(len(self.held_out), self.seq_len), self.num_validation_windows
        return self._windows(self.held_out, [i * available // wanted for i in range(wanted)])

    def _shuffled(self, seed: int, rows: range) -> list[int]:
        """The windows that `rows` of the endless stream of epochs are."""
        size = num_windows(len(self.train), self.seq_len)
        found: list[int] = []
        while rows:
            epoch, slot = divmod(rows.start, size)
            slots = np.arange(slot, min(slot + len(rows), size), dtype=np.int64)
            found += self.order(seed, epoch, size, slots).tolist()
            rows = rows[len(slots) :]
        return found

    def _windows(self, tokens: Tokens, windows: Sequence[int]) -> Tensor:
        size = self.seq_len
        rows = np.stack([tokens[window * size : window * size + size + 1] for window in windows])
        return torch.from_numpy(rows.astype(np.int64))


def load_data(data: DataConfig, vocab_size: int, prepared: Path | None = None) -> TokenData:
    """Open the shards of `data`, which lie in the folder `prepared`, or are prepared if needed.

    Raises ValueError and StoreError as `shards.prepare` does.
    """
    return TokenData.open(prepared or prepare(data, vocab_size), data)
