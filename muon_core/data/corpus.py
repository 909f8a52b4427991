"""The documents of a corpus, its content hash, and which documents are kept for validation. Imports no torch.

A document's own path decides its side of the split, by a hash. So files that are added or removed move no other to the
other side, the split needs no seed and no record, and whole documents are kept apart: a model cannot have seen half of
a text it is validated on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muon_core.config.base import canonical_json
from muon_core.data.prepared import is_prepared, read_manifest
from muon_core.store.folder import Folder
from muon_core.store.storage import StoreError
from muon_core.user_cache import user_cache

LIBRARY = "stdlib"
STANDS_IN = ".tokens.json"
END_OF_TEXT = "<|endoftext|>"
SPLIT_RULE = "validation where the first 8 bytes of sha256('validation:' + path) are below validation_share * 2^64"

# Tests hold broken source and binary strings; the others are tools, caches and other packages.
_NO_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
_TRUSTED_AFTER_S = 2.0  # coarsest time stamp of common file systems: younger files may change and look the same


@dataclass(frozen=True, slots=True)
class Document:
    """One text; `path` is relative to the corpus, with `/`, and decides on which side of the split it falls."""

    path: str
    data: bytes


def documents(corpus: str) -> list[Document]:
    """The documents of `corpus`, sorted by path.

    `stdlib` is the Python standard library's own source, without its tests, idlelib and lib2to3. Anything else is a
    text file or a folder of them, hidden ones left out. A file is one document, or several, cut at `<|endoftext|>`.

    Raises: ValueError if the path does not exist, holds no file, or holds one that is binary or cannot be read.
    """
    return _read(corpus_files(corpus))


def corpus_sha256(corpus: str, cache: Path | None = None) -> str:
    """sha256 over paths and contents of all documents; of a prepared data set its content hash.

    Raises ValueError as `documents` and `read_manifest` do.

    The cache remembers the hash under names, sizes and times of the files, so that asking again reads no text.
    """
    if stands_in := stand_in(corpus):
        return str(stands_in["sha256"])
    if is_prepared(corpus):
        return read_manifest(corpus).content_hash
    return _library_sha256(cache) if corpus == LIBRARY else _sha256(corpus, cache)


def stand_in(corpus: str) -> dict[str, Any] | None:
    """What is known of a corpus that was left where it is and only its tokens sent: a file beside its place says the
    `sha256` of its documents and, in `tokens`, a `data_hash` for each `split_name`. None for any other.
    """
    beside = Path(f"{corpus}{STANDS_IN}")
    if corpus == LIBRARY or not beside.is_file() or Path(corpus).exists():
        return None
    known: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    return known


def split_name(validation_share: float, vocab_size: int) -> str:
    """What of a run's config decides the tokens that are made of a corpus, in a word."""
    return f"{validation_share!r} {vocab_size}"


@functools.cache  # it does not change under a process, which may train one run after another on it
def _library_sha256(cache: Path | None) -> str:
    return _sha256(LIBRARY, cache)


def _sha256(corpus: str, cache: Path | None) -> str:
    files = corpus_files(corpus)
    stamp, is_trusted = _stamp(files)
    memory, key = Folder(cache or default_cache()), f"corpora/{stamp}"
    with contextlib.suppress(FileNotFoundError, StoreError):
        return memory.get(key).decode()
    digest = documents_sha256(_read(files))
    if is_trusted:
        with contextlib.suppress(StoreError):  # a cache that cannot be written costs time, nothing else
            memory.put(key, digest.encode())
    return digest


def documents_sha256(texts: list[Document]) -> str:
    """sha256 over paths and contents."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(canonical_json([text.path, len(text.data)]).encode())
        digest.update(text.data)
    return digest.hexdigest()


def is_validation(path: str, share: float) -> bool:
    """Whether the document at `path` is kept for validation: a property of its path alone, see `SPLIT_RULE`."""
    head = hashlib.sha256(f"validation:{path}".encode(errors="surrogateescape")).digest()[:8]
    return int.from_bytes(head, "big") < share * 2**64


def default_cache() -> Path:
    """Of prepared text and tokens: `muon-jobs/data` in the user's cache."""
    return user_cache() / "muon-jobs" / "data"


def corpus_files(corpus: str) -> dict[str, str]:
    """Relative path -> file, sorted. Raises ValueError if there is none."""
    if corpus == LIBRARY:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = {name: path for name, path in _walk(root, _is_no_library).items() if name.endswith(".py")}
        missing = f"{root} holds no Python source"
    else:
        root = Path(corpus).expanduser()
        if root.is_file():
            return {root.name: str(root)}
        files = _walk(root, lambda name: name.startswith(".") or name == "__pycache__")
        missing = "is an empty folder" if root.is_dir() else "does not exist"
    if not files:
        raise ValueError(
            f"corpus {corpus!r}: {missing}; give 'stdlib', a text file, a folder of text files or a "
            "data set of `muon data prepare`"
        )
    return files


def _is_no_library(name: str) -> bool:
    # The last two are build settings: with them one Python release would be another text on each machine.
    return name in _NO_LIBRARY or name.startswith(("config-", "_sysconfigdata"))


def _walk(root: Path, skip: Callable[[str], bool]) -> dict[str, str]:
    """Relative path -> file below `root`, sorted, without files and folders whose name is to be skipped."""
    found: dict[str, str] = {}
    start = len(str(root)) + 1
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not skip(name)]
        paths = [f"{folder}/{name}" for name in names if not skip(name)]  # strings: this runs at the start of every run
        found |= {path[start:]: path for path in paths}
    return dict(sorted(found.items()))


def _read(files: dict[str, str]) -> list[Document]:
    texts: list[Document] = []
    for name, path in files.items():
        with _readable():
            data = Path(path).read_bytes()
        if b"\0" in data:
            raise ValueError(f"{path} is a binary file; a corpus takes text files only, move it elsewhere")
        parts = data.split(END_OF_TEXT.encode())
        if len(parts) == 1:
            texts.append(Document(name, data))
        else:
            texts += [Document(f"{name}#{i:09d}", part) for i, part in enumerate(parts) if part.strip()]
    return texts


def _stamp(files: dict[str, str]) -> tuple[str, bool]:
    """What identifies the files without reading them, and whether they are old enough for it to be trusted."""
    with _readable():
        statuses = [(path, os.stat(path)) for path in files.values()]
    facts = [[path, status.st_size, status.st_mtime_ns, status.st_ctime_ns] for path, status in statuses]
    newest_ns = max(max(status.st_mtime_ns, status.st_ctime_ns) for _, status in statuses)
    is_trusted = time.time() - newest_ns / 1e9 > _TRUSTED_AFTER_S
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest(), is_trusted


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}; make it readable or remove it") from error
