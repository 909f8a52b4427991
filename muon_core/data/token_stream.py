"""Token ids that lie in several files, read as if they were one sequence. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class TokenStream:
    """The token ids of `shards`, one after another; a slice may cross from one into the next.

    What a window holds thus hangs on the text alone, not on how large the shards are.
    """

    def __init__(self, shards: Sequence[npt.NDArray[Any]]) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)

    @classmethod
    def open(cls, files: Iterable[Path]) -> TokenStream:
        """Those of memory-mapped `.npy` files."""
        return cls([np.load(file, mmap_mode="r") for file in files])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, where: slice) -> npt.NDArray[Any]:
        """The ids from `where.start` up to `where.stop`, both given and within the stream."""
        first = int(np.searchsorted(self._ends, where.start, side="right"))
        begin = int(self._ends[first]) - len(self._shards[first])
        start, stop = where.start - begin, where.stop - begin
        pieces = [self._shards[first][start:stop]]
        while stop > len(self._shards[first]):
            stop -= len(self._shards[first])
            first += 1
            pieces.append(self._shards[first][:stop])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
