"""Orders of windows: each is visited once, and the order is the same in every release."""

import tracemalloc

import numpy as np
import pytest

from muon_core.data.order import Order, keyed, sorted_draws


def whole(order: Order, seed: int, epoch: int, size: int) -> list[int]:
    found: list[int] = order(seed, epoch, size, np.arange(size)).tolist()
    return found


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 129, 1000])
def test_keyed_visits_every_window_once(size: int) -> None:
    assert sorted(whole(keyed, 3, 0, size)) == list(range(size))


def test_keyed_is_the_same_however_it_is_asked() -> None:
    at_once = whole(keyed, 7, 2, 50)
    assert [int(keyed(7, 2, 50, np.array([slot]))[0]) for slot in range(50)] == at_once


def test_keyed_differs_by_seed_and_epoch() -> None:
    orders = [tuple(whole(keyed, seed, epoch, 40)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_orders_are_the_same_in_every_release() -> None:
    assert whole(sorted_draws, 0, 0, 8) == [7, 4, 5, 3, 6, 2, 0, 1]
    assert whole(keyed, 0, 0, 8) == [7, 1, 2, 4, 0, 5, 3, 6]
    assert keyed(42, 1, 10**9, np.array([0, 1, 2])).tolist() == [164016126, 680614802, 377248184]


def test_keyed_puts_every_window_anywhere_alike() -> None:
    """Chi-squared over window x slot with 2,000 epochs of 6 windows: 25 degrees of freedom, 99.99 % below 59."""
    counts = np.zeros((6, 6))
    for epoch in range(2000):
        counts[np.arange(6), whole(keyed, 1, epoch, 6)] += 1
    expected = 2000 / 6
    assert ((counts - expected) ** 2 / expected).sum() < 59


def test_neighbours_of_a_large_epoch_are_far_apart() -> None:
    """Distances of 4,000 rows that follow each other average a third of the windows, as those of random pairs."""
    size = 10**8
    windows = keyed(5, 0, size, np.arange(4000)).astype(float)
    assert np.abs(np.diff(windows)).mean() / size == pytest.approx(1 / 3, abs=0.02)  # 5 standard errors


def test_keyed_takes_no_memory_for_many_windows() -> None:
    keyed(0, 0, 10**11, np.arange(16))
    tracemalloc.start()
    keyed(0, 1, 10**11, np.arange(16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000
