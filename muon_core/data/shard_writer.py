"""Writes token ids as shards of a bounded size, so that a killed writer can go on where it had got.

A shard grows in a file of the working folder, behind a header whose length does not depend on its size, and is put into
the data set's place when it is full. `state` says how far the shards are; a writer that is made of it cuts off what
was written after. Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from muon_core.data.manifest import Shard, Side
from muon_core.store.storage import Storage, patiently

HEADER = 128  # bytes of an .npy file of one dimension before its values; NumPy leaves room for any size
PATIENCE_S = 300.0


class Written(NamedTuple):
    """How far a side is."""

    shards: list[dict[str, Any]]
    """Those that are full, as `Shard` has them."""
    tail: int
    """Token ids in the one after them."""


class ShardWriter:
    """Appends to the shards of one side of the split."""

    def __init__(  # raises ValueError if what `done` counts on is gone
        self, side: Side, work: Path, storage: Storage, dtype: str, shard_tokens: int, done: Written | None = None
    ) -> None:
        self._side, self._work, self._storage, self._limit = side, work, storage, shard_tokens
        self._dtype = np.dtype(dtype)
        done = done or Written([], 0)
        self._shards = [Shard.model_validate(shard) for shard in done.shards]
        self._tail = 0
        self._finished: list[Path] = []
        self._file = self._open(done.tail)

    @property
    def num_shards(self) -> int:
        """Full ones."""
        return len(self._shards)

    @property
    def num_tokens(self) -> int:
        """Of all shards."""
        return sum(shard.tokens for shard in self._shards) + self._tail

    def append(self, tokens: npt.NDArray[Any]) -> None:
        """Add token ids, to as many shards as it takes. Raises StoreError."""
        while len(tokens):
            part, tokens = tokens[: self._limit - self._tail], tokens[self._limit - self._tail :]
            self._file.write(part.tobytes())
            self._tail += len(part)
            if self._tail == self._limit:
                self._finish()

    def state(self) -> Written:
        """How far this is, once it lies on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return Written([shard.model_dump() for shard in self._shards], self._tail)

    def forget_finished(self) -> None:
        """Remove the working files of shards that the saved state no longer counts on."""
        for path in self._finished:
            path.unlink(missing_ok=True)
        self._finished.clear()

    def finish(self) -> tuple[Shard, ...]:
        """All shards, the last of them with what there was for it. Raises StoreError."""
        if self._tail:
            self._finish()
        return tuple(self._shards)

    def close(self) -> None:
        """Close the working file; what is in it stays."""
        self._file.close()

    def _open(self, tail: int) -> Any:
        """The working file of the next shard, which holds `tail` token ids."""
        path, size = self._work / f"{self._side}-{len(self._shards):05d}.npy", HEADER + tail * self._dtype.itemsize
        if tail and not (path.is_file() and path.stat().st_size >= size):
            raise ValueError(f"{path} is missing or too short; remove {self._work} to start from the beginning")
        file = path.open("r+b" if tail else "w+b")
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        self._tail = tail
        return file

    def _finish(self) -> None:
        """Put the shard that is under way into its place."""
        self._file.seek(0)
        npy.write_array_header_1_0(
            self._file, {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._tail,)}
        )
        assert self._file.tell() == HEADER
        self._file.close()
        path = Path(self._file.name)
        content = path.read_bytes()
        patiently(lambda: self._storage.put(path.name, content), PATIENCE_S)
        sha256 = hashlib.sha256(content).hexdigest()
        self._shards.append(Shard(name=path.name, tokens=self._tail, bytes=len(content), sha256=sha256))
        self._finished.append(path)
        self._file = self._open(0)
