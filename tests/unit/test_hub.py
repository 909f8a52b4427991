"""Datasets and tokenizers of the Hugging Face Hub: those of one commit, by ranges, and what is wrong in one line."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.hub import COMMIT, Hub, point_at, running_hub
from support.prepared import SMALL, contents, documents, write_jsonl

from muon_core.data import hub as code
from muon_core.data.prepare import prepare_set
from muon_core.data.tokenizer import choose
from muon_core.store import range_file

TEXTS = documents(60, words=200)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    data = root / "datasets" / "owner" / "texts" / "data"
    data.mkdir(parents=True)
    for i in range(3):
        table = pa.table({"url": [str(n) for n in range(20)], "text": TEXTS[20 * i : 20 * i + 20]})
        pq.write_table(table, data / f"train-{i:05d}.parquet", row_group_size=4)
    pq.write_table(pa.table({"text": ["of the test split"]}), data / "test-00000.parquet")
    (root / "datasets" / "owner" / "texts" / "README.md").write_text("# Texts")
    prepare_set([str(write_jsonl(root / "t.jsonl", TEXTS))], str(root / "owner" / "tokens"), SMALL)
    return root


@pytest.fixture
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, asked by a client that keeps nothing of other tests."""
    with running_hub(repositories) as running:
        point_at(running.endpoint, tmp_path / "cache", monkeypatch)
        yield running


def test_a_dataset_is_prepared_as_the_same_text_in_a_file_is(
    hub: Hub, repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_file, "RANGE", 4096)
    settings = replace(SMALL, train_bpe=None, tokenizer=str(repositories / "owner" / "tokens"))
    done = prepare_set(["hf:owner/texts"], str(tmp_path / "set"), settings)
    same = prepare_set([str(write_jsonl(tmp_path / "t.jsonl", TEXTS))], str(tmp_path / "same"), settings)
    assert done.content_hash == same.content_hash
    assert done.source.revision == f"owner/texts@{COMMIT}"
    assert done.source.files == 3
    ranges = [wanted for method, path, wanted in hub.requests if "resolve" in path]
    assert all(ranges)
    assert len(ranges) > 9
    assert all(COMMIT in path for _, path, _ in hub.requests if "resolve" in path)


def test_a_hub_that_is_busy_is_asked_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    files, _ = code.dataset_files("hf:owner/texts")
    hub.failures = 2
    with files[0].open() as file:
        assert file.read(4) == b"PAR1"
    assert hub.failures == 0


def test_a_pattern_chooses_files(hub: Hub) -> None:
    names = [file.name for file in code.dataset_files("hf:owner/texts:data/test-*.parquet")[0]]
    assert names == ["hf:owner/texts/data/test-00000.parquet"]
    with pytest.raises(ValueError, match=r"owner/texts: no file that fits 'x/\*'; it has README.md, data/test-00000"):
        code.dataset_files("hf:owner/texts:x/*")


def test_a_tokenizer_is_of_one_commit(hub: Hub, repositories: Path) -> None:
    for given in ("owner/tokens", "owner/tokens@main", f"hf:owner/tokens@{COMMIT}"):
        found = choose(given, None)
        assert found.content == (repositories / "owner" / "tokens" / "tokenizer.json").read_bytes()
        assert (found.source, found.revision) == ("hf:owner/tokens", COMMIT)


def test_the_revision_of_a_tokenizer_is_part_of_the_identity(hub: Hub, repositories: Path, tmp_path: Path) -> None:
    text = str(write_jsonl(tmp_path / "t.jsonl", TEXTS))
    by_path = replace(SMALL, train_bpe=None, tokenizer=str(repositories / "owner" / "tokens"))
    one = prepare_set([text], str(tmp_path / "one"), by_path)
    two = prepare_set([text], str(tmp_path / "two"), replace(by_path, tokenizer="owner/tokens"))
    assert one.tokenizer.sha256 == two.tokenizer.sha256
    assert one.content_hash != two.content_hash


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "hf:gated/data",
            r"dataset gated/data is gated: accept its terms at http://\S+/datasets/gated/data, and set HF_T",
        ),
        (
            "hf:owner/nothing",
            r"dataset owner/nothing: http://\S+ knows no such repository, or it is private; correct the",
        ),
        ("hf:owner/texts@v9", r"dataset owner/texts has no revision 'v9'; see http"),
        ("hf:texts", "a dataset is hf:OWNER/NAME"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: Hub, given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        code.dataset_files(given)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(ValueError, match=r"tokenizer owner/nothing: http://\S+ knows no such repository"):
        choose("owner/nothing", None)


def test_a_hub_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    point_at("http://127.0.0.1:9", tmp_path, monkeypatch)  # the port to throw things away at: nobody listens
    for ask in (lambda: code.dataset_files("hf:owner/texts"), lambda: choose("owner/tokens", None)):
        with pytest.raises(
            ValueError, match=r"http://127\.0\.0\.1:9 does not answer \(.*\); check the network and HF_EN"
        ):
            ask()


def test_offline_the_snapshot_on_this_machine_serves(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="dataset owner/texts is not in the hub's cache on this machine"):
        code.dataset_files("hf:owner/texts")
    folder = tmp_path / "cache" / "datasets--owner--texts"
    shutil.copytree(repositories / "datasets" / "owner" / "texts", folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    settings = replace(SMALL, train_bpe=None, tokenizer=str(repositories / "owner" / "tokens"))
    done = prepare_set(["hf:owner/texts"], str(tmp_path / "set"), settings)
    assert done.source.revision == f"owner/texts@{COMMIT}"
    assert done.documents.train + done.documents.validation == 60
    assert "manifest.json" in contents(tmp_path / "set")
