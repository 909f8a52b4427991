"""In which order an epoch visits the windows of a corpus: a permutation that the data seed and the epoch decide.

`sorted_draws` sorts one random number a window, which takes 16 bytes for each: right for a corpus that was tokenized in
memory anyway, and its order is kept as it was from the start. A prepared data set may have 1e8 windows, of which a step
reads eight, so `keyed` computes the place of each row on its own. It is a Feistel network, the construction of block
ciphers: each round changes one part of a number's bits by a hash of the other part, which can be undone, so no two
numbers meet. The network permutes 2^bits numbers; one that lands beyond the last window is sent through again until it
does not ("cycle walking"), which keeps the map one-to-one, and takes less than two turns on average.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from muon_core.seeds import stream_key

Indices: TypeAlias = npt.NDArray[np.int64]
Order: TypeAlias = Callable[[int, int, int, Indices], Indices]
"""(data seed, epoch, windows, slots of the epoch) -> the window of each slot."""

ROUNDS = 8
_U64 = np.uint64


def sorted_draws(seed: int, epoch: int, size: int, slots: Indices) -> Indices:
    """The order that sorts raw Philox draws, which NumPy keeps the same in every release. 16 bytes a window."""
    return _sorted(seed, epoch, size)[slots]


@lru_cache(maxsize=4)  # a batch may straddle two epochs, and two runs may take turns in a process
def _sorted(seed: int, epoch: int, size: int) -> Indices:
    key = stream_key(seed, "data", epoch) % 2**128
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")


def keyed(seed: int, epoch: int, size: int, slots: Indices) -> Indices:
    """A permutation of `size` windows, computed for `slots` alone: no memory that grows with `size`.

    Source: Black and Rogaway 2002, Ciphers with arbitrary finite domains (cycle walking on a Feistel network).
    """
    bits = max(2, (size - 1).bit_length())
    keys = _round_keys(seed, epoch)
    found = _permute(slots.astype(_U64), bits, keys)
    while (beyond := found >= _U64(size)).any():
        found[beyond] = _permute(found[beyond], bits, keys)
    return found.astype(np.int64)


@lru_cache(maxsize=16)
def _round_keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    words = [stream_key(seed, "data", "keyed", epoch, number) % 2**64 for number in range(ROUNDS)]
    return np.array(words, _U64)


def _permute(values: npt.NDArray[np.uint64], bits: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One turn through the network on numbers of so many bits, of which the halves may differ by one."""
    low_bits = _U64(bits // 2)
    low_mask, high_mask = _U64(2 ** (bits // 2) - 1), _U64(2 ** (bits - bits // 2) - 1)
    low, high = values & low_mask, values >> low_bits
    for number in range(0, ROUNDS, 2):
        low = low ^ (_mixed(high, keys[number]) & low_mask)
        high = high ^ (_mixed(low, keys[number + 1]) & high_mask)
    return (high << low_bits) | low


def _mixed(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """64 bits that depend on all bits of value and key: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    mixed = (values + key) * _U64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> _U64(27))) * _U64(0x94D049BB133111EB)
    return mixed ^ (mixed >> _U64(31))
