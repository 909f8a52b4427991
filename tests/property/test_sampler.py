"""The sampler: which rows a step sees is a pure function of seed and row, however the rows are dealt out."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muon_core.data.batches import TokenData


@settings(deadline=None)
@given(
    windows=st.integers(1, 30), seq_len=st.integers(2, 5), seed=st.integers(0, 2**80),
    share=st.integers(1, 5), world_size=st.integers(1, 4), steps=st.integers(1, 6),
)  # fmt: skip
def test_batches_deal_out_shuffled_epochs_in_order(
    windows: int, seq_len: int, seed: int, share: int, world_size: int, steps: int
) -> None:
    train = np.arange(windows * seq_len + 1, dtype=np.uint16)
    data = TokenData(train, held_out=train, seq_len=seq_len, num_validation_windows=1, data_hash="")
    batch_size = share * world_size
    dealt = [
        data.batch(seed, step, batch_size, rank=rank, world_size=world_size)
        for step in range(steps)
        for rank in range(world_size)
    ]
    rows = torch.cat(dealt)
    assert torch.equal(rows, data.batch(seed, 0, batch_size * steps))
    order = (rows[:, 0] // seq_len).tolist()
    for start in range(0, len(order) - windows + 1, windows):
        assert sorted(order[start : start + windows]) == list(range(windows))
