from pathlib import Path

import numpy as np
import pytest
import torch

from muon_core.config.run import DataConfig
from muon_core.data.batches import TokenData, load_data
from muon_core.data.shards import prepare, read_index

# 8 training windows of 4 predicted tokens, 10 of validation; a token's value is its place.
DATA = TokenData(
    train=np.arange(34, dtype=np.uint16),
    held_out=np.arange(100, 142, dtype=np.uint16),
    seq_len=4,
    num_validation_windows=5,
    data_hash="",
)


def test_batch_rows_are_windows_of_consecutive_tokens() -> None:
    rows = DATA.batch(0, 0, 8)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, rows[:, :1] + torch.arange(5))
    assert sorted(rows[:, 0].tolist()) == [0, 4, 8, 12, 16, 20, 24, 28]


def test_batch_visits_every_window_once_an_epoch_in_an_order_of_its_own() -> None:
    first, second = (DATA.batch(0, epoch, 8)[:, 0].tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_batch_straddles_epochs() -> None:
    by_three = torch.cat([DATA.batch(0, step, 3) for step in range(8)])
    by_eight = torch.cat([DATA.batch(0, step, 8) for step in range(3)])
    assert torch.equal(by_three, by_eight)


def test_batch_order_is_the_same_in_every_release() -> None:
    assert (DATA.batch(0, 0, 8)[:, 0] // 4).tolist() == [7, 4, 5, 3, 6, 2, 0, 1]
    assert (DATA.batch(1, 0, 8)[:, 0] // 4).tolist() == [0, 1, 6, 4, 3, 5, 2, 7]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_batch_of_one_worker(world_size: int) -> None:
    parts = [DATA.batch(7, 5, 6, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {6 // world_size}
    assert torch.equal(torch.cat(parts), DATA.batch(7, 5, 6))


def test_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 6 must be a multiple of the number of workers, 4"):
        DATA.batch(0, 0, 6, world_size=4)


def test_validation_windows_are_spread_evenly() -> None:
    assert DATA.validation()[:, 0].tolist() == [100, 108, 116, 124, 132]  # every second of ten windows
    assert DATA.validation()[-1].tolist() == [132, 133, 134, 135, 136]


def test_load_data_opens_what_prepare_makes(corpus: Path, tmp_path: Path) -> None:
    data = DataConfig(corpus=str(corpus), seq_len=32, validation_tokens=500, validation_share=0.05)
    loaded = load_data(data, 512, prepare(data, 512, tmp_path))
    index = read_index(prepare(data, 512, tmp_path))
    assert len(loaded.train) == index["shards"]["train.npy"]["tokens"]
    assert loaded.data_hash == index["data_hash"]
    assert isinstance(loaded.train, np.memmap)
    assert loaded.validation().shape == (16, 33)  # 16 windows of 32 cover 500 tokens
    assert int(loaded.batch(3, 0, 64).max()) < 512
