"""Tokens go through the store as they are: named by their content, fetched once by a machine, refused when damaged."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from muon_core.config.run import DataConfig
from muon_core.data import sharing
from muon_core.data.shards import prepare, read_index
from muon_core.data.sharing import fetch, publish
from muon_core.store.folder import Folder
from muon_core.store.storage import StoreError

NAMES = ("train.npy", "validation.npy", "tokenizer.json", "index.json")


class Counting(Folder):
    """Counts what is read and written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []
        self.written: list[str] = []

    def get(self, key: str) -> bytes:
        self.read.append(key)
        return super().get(key)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.written.append(key)
        super().put(key, data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = tmp_path_factory.mktemp("texts")
    for i in range(40):
        (texts / f"{i}.txt").write_text(f"document {i} says: " + " ".join(f"word{i * j % 17}" for j in range(60)))
    data = DataConfig(corpus=str(texts), seq_len=16, validation_share=0.3, validation_tokens=64)
    return prepare(data, 300, tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=[sharing.PART, 1000], ids=["whole", "in parts"])
def store(folder: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr(sharing, "PART", request.param)
    storage = Counting(tmp_path / "store")
    assert publish(folder, storage) == read_index(folder)["data_hash"]
    return storage


def test_a_node_gets_the_files_that_were_published(folder: Path, store: Counting, tmp_path: Path) -> None:
    fetched = fetch(read_index(folder)["data_hash"], store, tmp_path / "node")
    assert sorted(path.name for path in fetched.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (fetched / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_there_is_neither_written_nor_read_again(folder: Path, store: Counting, tmp_path: Path) -> None:
    written = list(store.written)
    data_hash = publish(folder, store)
    assert store.written == written
    with ThreadPoolExecutor(4) as pool:  # as the workers of one node
        folders = set(pool.map(lambda _: fetch(data_hash, store, tmp_path / "node"), range(4)))
    assert len(folders) == 1
    assert sorted(store.read) == sorted(written)


def test_what_is_not_what_its_name_says_is_refused(folder: Path, store: Counting, tmp_path: Path) -> None:
    data_hash = read_index(folder)["data_hash"]
    key = next(key for key in store.written if "/train.npy/" in key)
    good = store.get(key)
    store.put(key, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"are damaged; remove data/"):
        fetch(data_hash, store, tmp_path / "node")
    assert not [path for path in (tmp_path / "node" / "fetched").iterdir() if path.is_dir()]


def test_what_was_never_published_is_said_to_be_missing(store: Counting, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no tokens 123456"):
        fetch("1234567890abcdef", store, tmp_path / "node")


def test_a_publication_that_was_cut_off_is_done_again(folder: Path, store: Counting) -> None:
    """The index comes last: what lacks it does not count."""
    data_hash = read_index(folder)["data_hash"]
    store.delete([key for key, _ in store.list(f"data/{data_hash}/index.json/")])
    store.written.clear()
    publish(folder, store)
    assert any("/train.npy/" in key for key in store.written)
    assert "/index.json/" in store.written[-1]
