"""Batches of a prepared corpus, by a sampler without state: row `i` of a data seed is a function of the two alone.

A run that resumes at a step asks for that step's rows and gets those it would have got: no checkpoint holds a position,
no worker has to skip what was read before, and the batch of a step is the same for any number of workers. Each epoch
visits every window once, in an order drawn from the seed and the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from muon_core.config.run import DataConfig
from muon_core.data.shards import TRAIN, VALIDATION, num_windows, prepare, read_index, validation_windows
from muon_core.seeds import stream_key


@dataclass(frozen=True, slots=True)
class TokenData:
    """Token shards of one prepared folder, memory-mapped, cut into windows of `seq_len + 1` tokens."""

    train: npt.NDArray[Any]
    held_out: npt.NDArray[Any]
    seq_len: int
    num_validation_windows: int
    data_hash: str

    @classmethod
    def open(cls, folder: Path, data: DataConfig) -> TokenData:
        """The shards in `folder`, which `shards.prepare` returned for `data`."""
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
        return self._windows(self.train, [self._window(seed, row) for row in range(first, first + share)])

    def validation(self) -> Tensor:
        """`(n, seq_len + 1)` token ids, int64: windows spread evenly over the validation shard, whatever the seed."""
        available, wanted = num_windows(len(self.held_out), self.seq_len), self.num_validation_windows
        return self._windows(self.held_out, [i * available // wanted for i in range(wanted)])

    def _window(self, seed: int, row: int) -> int:
        size = num_windows(len(self.train), self.seq_len)
        epoch, slot = divmod(row, size)
        return int(_permutation(seed, epoch, size)[slot])

    def _windows(self, shard: npt.NDArray[Any], windows: list[int]) -> Tensor:
        size = self.seq_len
        rows = np.stack([shard[window * size : window * size + size + 1] for window in windows])
        return torch.from_numpy(rows.astype(np.int64))


def load_data(data: DataConfig, vocab_size: int, prepared: Path | None = None) -> TokenData:
    """Open the shards of `data`, which lie in the folder `prepared`, or are prepared if needed.

    Raises ValueError and StoreError as `shards.prepare` does.
    """
    return TokenData.open(prepared or prepare(data, vocab_size), data)


@lru_cache(maxsize=4)  # a batch may straddle two epochs, and two runs may take turns in a process
def _permutation(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    """Order of an epoch's windows: the one that sorts raw Philox draws, which NumPy keeps the same in every release."""
    key = stream_key(seed, "data", epoch) % 2**128
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")
