import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from muon_core.config.run import DataConfig
from muon_core.data import shards
from muon_core.data.corpus import documents, is_validation
from muon_core.data.shards import prepare, read_index
from muon_core.data.windows import num_windows, validation_windows
from muon_core.store.storage import StoreError

VOCAB_SIZE = 300


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short files: words, an odd byte, a character of four bytes."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(40):
        text = f"document {i} says: " + " ".join(f"word{i * j % 17}" for j in range(60))
        (folder / f"{i}.txt").write_bytes(text.encode() + b"\xff \xf0\x9f\x9a\x80\n")
    return folder


@pytest.fixture(scope="module")
def data(texts: Path) -> DataConfig:
    return DataConfig(corpus=str(texts), seq_len=16, validation_share=0.3, validation_tokens=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def folder(data: DataConfig, cache: Path) -> Path:
    return prepare(data, VOCAB_SIZE, cache)


@pytest.mark.parametrize("side", ["train", "validation"])
def test_shard_decodes_to_its_whole_documents_in_order(side: str, folder: Path, data: DataConfig) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = np.load(folder / f"{side}.npy")
    ends = np.flatnonzero(tokens == read_index(folder)["end_of_text"])
    decoded = [tokenizer.decode(piece.tolist()) for piece in np.split(tokens, ends + 1)[:-1]]
    wanted = [text for text in documents(data.corpus) if is_validation(text.path, 0.3) == (side == "validation")]
    # the decoder drops the end-of-text mark; the odd byte became the replacement character
    assert decoded == [text.data.decode(errors="replace") for text in wanted]
    assert ends[-1] == len(tokens) - 1


def test_index_describes_the_files(folder: Path, data: DataConfig) -> None:
    index = json.loads((folder / "index.json").read_text())
    for name in ("train.npy", "validation.npy"):
        tokens = np.load(folder / name)
        assert tokens.dtype == np.uint16
        assert tokens.max() < VOCAB_SIZE
        sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert index["shards"][name] == {"tokens": len(tokens), "dtype": "uint16", "sha256": sha256}
    assert index["tokenizer_sha256"] == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert sum(index["documents"].values()) == 40
    assert index["split"]["validation_share"] == 0.3
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json", "tokenizer.json", "train.npy", "validation.npy"
    ]  # fmt: skip


def test_tokenizer_has_the_asked_size_and_learns_from_training_documents_only(
    folder: Path, data: DataConfig, texts: Path, tmp_path: Path
) -> None:
    train_only = tmp_path / "train"
    train_only.mkdir()
    for text in documents(data.corpus):
        if not is_validation(text.path, 0.3):
            shutil.copy(texts / text.path, train_only)
    held_out = next(name for i in range(10**6) if is_validation(name := f"held_out_{i}", 0.3))
    (train_only / held_out).write_text("entirely different prose " * 50)
    other = prepare(data.replace(corpus=str(train_only)), VOCAB_SIZE, tmp_path / "cache")
    assert (other / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == VOCAB_SIZE


def test_prepare_is_deterministic_to_the_byte(folder: Path, data: DataConfig, tmp_path: Path) -> None:
    again = prepare(data, VOCAB_SIZE, tmp_path)
    assert again.name == folder.name
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_prepare_finds_what_it_made(
    folder: Path, data: DataConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_build", lambda *args: pytest.fail("built again"))
    assert prepare(data, VOCAB_SIZE, cache) == folder
    # how the shards are cut into windows is no part of them
    assert prepare(data.replace(seq_len=8, validation_tokens=32), VOCAB_SIZE, cache) == folder


@pytest.mark.parametrize("change", [{"validation_share": 0.25}, {"vocab_size": 310}, {"text": True}])
def test_prepare_makes_another_folder_for_other_content(
    change: dict[str, float], folder: Path, data: DataConfig, texts: Path, cache: Path, tmp_path: Path
) -> None:
    vocab_size = int(change.get("vocab_size", VOCAB_SIZE))
    if "validation_share" in change:
        data = data.replace(validation_share=change["validation_share"])
    if "text" in change:
        shutil.copytree(texts, tmp_path / "texts")
        (tmp_path / "texts" / "0.txt").write_text("changed")
        data = data.replace(corpus=str(tmp_path / "texts"))
    other = prepare(data, vocab_size, cache)
    assert other != folder
    assert read_index(other)["data_hash"] != read_index(folder)["data_hash"]


def test_prepare_trusts_a_planned_hash_when_the_text_is_gone(folder: Path, data: DataConfig, cache: Path) -> None:
    planned = data.replace(corpus="/gone", corpus_sha256=read_index(folder)["corpus_sha256"])
    assert prepare(planned, VOCAB_SIZE, cache) == folder


def test_prepare_refuses_text_that_changed_since_the_plan(data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has changed: sha256 [0-9a-f]{12}, planned 000000000000; plan the runs again"
    ):
        prepare(data.replace(corpus_sha256="0" * 64), VOCAB_SIZE, tmp_path)


def test_builder_that_comes_second_leaves_the_first_ones_folder(folder: Path, data: DataConfig, cache: Path) -> None:
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    shards._build(folder, documents(data.corpus), read_index(folder)["corpus_sha256"], 0.3, VOCAB_SIZE)
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before
    assert not list(cache.glob(".*"))


def test_damaged_folder_is_named(folder: Path, data: DataConfig, tmp_path: Path) -> None:
    damaged = tmp_path / folder.name
    shutil.copytree(folder, damaged)
    (damaged / "train.npy").unlink()
    with pytest.raises(StoreError, match=rf"{folder.name} is damaged \(.*\); remove it and start again"):
        prepare(data, VOCAB_SIZE, tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_cache_that_cannot_be_written_is_named(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/.*Not a directory"):
        prepare(data, VOCAB_SIZE, tmp_path / "file")


def test_large_vocabularies_take_four_bytes(data: DataConfig, tmp_path: Path) -> None:
    large = prepare(data, 65_537, tmp_path)
    assert np.load(large / "train.npy").dtype == np.uint32


def test_too_little_validation_text_is_refused_with_numbers(folder: Path, data: DataConfig, cache: Path) -> None:
    has = read_index(folder)["shards"]["validation.npy"]["tokens"]
    documents_kept = read_index(folder)["documents"]["validation.npy"]
    message = f"{has} tokens in {documents_kept} validation documents, data.validation_tokens 1000000 needs 1000001;"
    with pytest.raises(ValueError, match=message):
        prepare(data.replace(validation_tokens=1_000_000), VOCAB_SIZE, cache)


def test_single_document_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("one long book " * 500)
    data = DataConfig(corpus=str(tmp_path / "book.txt"), validation_share=0.1)
    with pytest.raises(ValueError, match=r"0 tokens in 0 validation documents.*between <\|endoftext\|> marks"):
        prepare(data, VOCAB_SIZE, tmp_path / "cache")


def test_too_little_training_text_is_refused_with_numbers(data: DataConfig, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"\d+ training tokens, data.seq_len 1000000 needs 1000001; give more text"):
        prepare(data.replace(seq_len=1_000_000), VOCAB_SIZE, cache)


def test_windows_share_one_token_with_their_neighbour() -> None:
    assert [num_windows(tokens, 4) for tokens in (0, 1, 4, 5, 8, 9)] == [0, 0, 0, 1, 1, 2]


def test_validation_windows_round_up() -> None:
    sizes = [validation_windows(DataConfig(seq_len=4, validation_tokens=n)) for n in (1, 4, 5, 8)]
    assert sizes == [1, 1, 2, 2]
