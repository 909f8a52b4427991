from pathlib import Path

import numpy as np
import pytest

from muon_core.data.token_stream import TokenStream


@pytest.mark.parametrize("sizes", [[20], [7, 13], [1, 1, 17, 1], [5, 5, 5, 5]])
def test_slices_are_those_of_one_array(sizes: list[int]) -> None:
    whole = np.arange(20, dtype=np.uint16)
    stream = TokenStream(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(stream) == 20
    for start in range(20):
        for stop in range(start + 1, 21):
            assert stream[start:stop].tolist() == whole[start:stop].tolist()


def test_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.npy" for i in range(3)]
    for i, file in enumerate(files):
        np.save(file, np.arange(4 * i, 4 * i + 4, dtype=np.uint32))
    stream = TokenStream.open(files)
    assert stream[2:10].tolist() == list(range(2, 10))
    assert all(isinstance(shard, np.memmap) for shard in stream._shards)
