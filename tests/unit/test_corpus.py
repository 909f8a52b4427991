import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from muon_core.data import corpus
from muon_core.data.corpus import Document, corpus_sha256, documents, is_validation


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    for name, text in {"b.txt": "two", "a/z.txt": "one", "b/a.md": "three"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_documents_of_a_folder_are_sorted_by_relative_path(texts: Path) -> None:
    expected = [Document("a/z.txt", b"one"), Document("b.txt", b"two"), Document("b/a.md", b"three")]
    assert documents(str(texts)) == expected
    assert documents(f"{texts}/") == expected


def test_documents_leave_hidden_files_and_caches_out(texts: Path) -> None:
    before = documents(str(texts))
    for name in (".git/config", "__pycache__/x.pyc", "a/.DS_Store"):
        (texts / name).parent.mkdir(exist_ok=True)
        (texts / name).write_bytes(b"\0")
    assert documents(str(texts)) == before


def test_documents_of_a_single_file(texts: Path) -> None:
    assert documents(str(texts / "b.txt")) == [Document("b.txt", b"two")]


def test_documents_are_cut_at_end_of_text_marks(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("one<|endoftext|>\ntwo\n<|endoftext|>\n")
    assert documents(str(tmp_path / "stories.txt")) == [
        Document("stories.txt#000000000", b"one"),
        Document("stories.txt#000000001", b"\ntwo\n"),
    ]


def test_stdlib_is_python_source_without_tests_and_other_packages() -> None:
    paths = [document.path for document in documents("stdlib")]
    assert {"abc.py", "json/decoder.py", "email/message.py"} <= set(paths)
    assert all(path.endswith(".py") for path in paths)
    parts = {part for path in paths for part in path.split("/")[:-1]}
    assert not parts & {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}


def test_stdlib_keeps_some_validation_documents_of_many_sizes() -> None:
    held_out = [len(document.data) for document in documents("stdlib") if is_validation(document.path, 0.05)]
    assert len(held_out) >= 15
    assert max(held_out) < sum(held_out) / 3  # no single file is the validation text


@pytest.mark.parametrize("ask", [documents, corpus_sha256])
def test_corpus_that_does_not_exist_is_refused(ask: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus '.*nowhere': does not exist; give 'stdlib', a text file, a folder"):
        ask(str(tmp_path / "nowhere"))  # type: ignore[operator]


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is an empty folder; give"):
        corpus_sha256(str(tmp_path))


def test_binary_file_is_refused_by_name(texts: Path) -> None:
    (texts / "a" / "image.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(ValueError, match=r"a/image\.png is a binary file; a corpus takes text files only"):
        corpus_sha256(str(texts))


@pytest.mark.parametrize("ask", [documents, corpus_sha256])
def test_file_that_cannot_be_read_is_refused_by_name(ask: object, texts: Path) -> None:
    (texts / "dangling.txt").symlink_to(texts / "gone")
    with pytest.raises(ValueError, match=r"cannot read .*dangling\.txt: No such file or directory; make it readable"):
        ask(str(texts))  # type: ignore[operator]


def test_corpus_sha256_is_of_paths_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert corpus_sha256(str(tmp_path)) == hashlib.sha256(b'["a.txt",4]' + b"text").hexdigest()


def test_corpus_sha256_changes_with_a_name_or_a_byte(texts: Path) -> None:
    first = corpus_sha256(str(texts))
    (texts / "b.txt").rename(texts / "c.txt")
    renamed = corpus_sha256(str(texts))
    (texts / "c.txt").write_text("twO")
    assert len({first, renamed, corpus_sha256(str(texts))}) == 3


def test_corpus_sha256_is_remembered_without_reading_the_text(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_TRUSTED_AFTER_S", -1.0)  # as if the files were older than they are
    first = corpus_sha256(str(texts), tmp_path / "cache")
    monkeypatch.setattr(corpus, "_read", lambda files: pytest.fail("the text was read again"))
    assert corpus_sha256(str(texts), tmp_path / "cache") == first


def test_corpus_sha256_sees_an_edit_that_keeps_size_and_time(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_TRUSTED_AFTER_S", -1.0)
    first, before = corpus_sha256(str(texts), tmp_path / "cache"), (texts / "b.txt").stat()
    (texts / "b.txt").write_text("TWO")
    os.utime(texts / "b.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert corpus_sha256(str(texts), tmp_path / "cache") != first


def test_corpus_sha256_does_not_trust_the_times_of_fresh_files(texts: Path, tmp_path: Path) -> None:
    corpus_sha256(str(texts), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_corpus_sha256_needs_no_cache(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = corpus_sha256(str(texts))
    monkeypatch.setattr(corpus, "_TRUSTED_AFTER_S", -1.0)
    assert corpus_sha256(str(texts), texts / "b.txt") == expected  # a file where the cache folder should be


def test_is_validation_follows_the_written_rule() -> None:
    assert hashlib.sha256(b"validation:optparse.py").hexdigest()[:4] == "04b7"  # 0x04b7 / 2^16 = 0.0184
    assert is_validation("optparse.py", 0.0185)
    assert not is_validation("optparse.py", 0.0184)


def test_corpus_and_shards_import_neither_torch_nor_tokenizers() -> None:
    check = "import sys, muon_core.data.shards; sys.exit(bool({'torch', 'tokenizers', 'ray'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], check=True)
