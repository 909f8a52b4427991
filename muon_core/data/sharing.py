"""Tokens that travel: prepared once where a sweep starts, kept in the results store, fetched once by each node.

Machines that tokenize for themselves may each read another text: the default corpus is the standard library, and two
releases of Python have two. So the nodes of a cluster take what the sweep was planned with, named after its content,
and look whether that is what they got. Imports no torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from muon_core.data.corpus import default_cache
from muon_core.data.manifest import MANIFEST, parse_manifest
from muon_core.data.shards import INDEX, TOKENIZER, TRAIN, VALIDATION, content_hash, is_complete, read_index
from muon_core.data.soundness import wanted_files
from muon_core.store.storage import Storage, StoreError

PART = 64 * 2**20  # bytes of one object: bounds the memory of both sides, and a store's limit for one


def publish(folder: Path, storage: Storage) -> str:
    """Put the tokens in `folder`, which `shards.prepare` returned, into `storage`; returns their `data_hash`.

    What is there already is left alone: a name says its content. Raises StoreError.
    """
    names, index, data_hash = _contents(folder)
    if storage.list(_key(data_hash, index)):
        return data_hash
    for name in names:
        with (folder / name).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for number, start in enumerate(range(0, len(content), PART)):
                storage.put(_key(data_hash, name, number), content[start : start + PART])
    storage.put(_key(data_hash, index, 0), (folder / index).read_bytes())  # last: now it is whole
    return data_hash


def _contents(folder: Path) -> tuple[tuple[str, ...], str, str]:
    """Names of the files beside the index, the index, and the `data_hash`, of tokens of either kind."""
    if (file := folder / MANIFEST).is_file():
        manifest = parse_manifest(file.read_bytes(), str(folder))
        return tuple(wanted_files(manifest)), MANIFEST, manifest.content_hash
    return (TRAIN, VALIDATION, TOKENIZER), INDEX, read_index(folder)["data_hash"]


def fetch(data_hash: str, storage: Storage, cache: Path | None = None) -> Path:
    """A folder of this machine with the tokens `data_hash` of `storage`; processes that ask at once fetch them once.

    Raises: StoreError if they are not there, cannot be kept, or are not what their name says.
    """
    root = (cache or default_cache()) / "fetched"
    folder = root / data_hash[:16]
    if _is_here(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{data_hash[:16]}.lock"):
            if not _is_here(folder):
                _download(data_hash, storage, folder)
    except OSError as error:
        raise StoreError(f"tokens cannot be kept in {root}: {error.strerror}; XDG_CACHE_HOME moves it") from error
    return folder


def _is_here(folder: Path) -> bool:
    return is_complete(folder) or (folder / MANIFEST).is_file()  # it was renamed into place, with all beside it


def _download(data_hash: str, storage: Storage, folder: Path) -> None:
    listed = [key.removeprefix(_key(data_hash)).split("/") for key, _ in storage.list(_key(data_hash))]
    parts: dict[str, list[str]] = {}
    for name, number in listed:
        parts.setdefault(name, []).append(number)
    if not {INDEX, MANIFEST} & set(parts):
        raise StoreError(f"{storage.place} has no tokens {data_hash[:12]}; run the sweep's command again")
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    aside.mkdir()
    try:
        digests: dict[str, str] = {}
        for name, numbers in parts.items():
            digest = hashlib.sha256()
            with (aside / Path(name).name).open("wb") as file:
                for number in sorted(numbers):
                    part = storage.get(f"{_key(data_hash, name)}{number}")
                    digest.update(part)
                    file.write(part)
            digests[name] = digest.hexdigest()
        if not _is_right(aside, digests, data_hash):
            raise StoreError(
                f"the tokens {data_hash[:12]} in {storage.place} are damaged; remove {_key(data_hash)} there and run "
                "the sweep's command again"
            )
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_right(folder: Path, digests: Mapping[str, str], data_hash: str) -> bool:
    """Whether the files of `folder`, which have these digests, are those that `data_hash` names."""
    if MANIFEST not in digests:
        return _found(read_index(folder), digests) == data_hash
    manifest = parse_manifest((folder / MANIFEST).read_bytes(), str(folder))
    is_whole = all(digests.get(name) == sha256 for name, sha256 in wanted_files(manifest).items())
    return is_whole and manifest.content_hash == data_hash


def _found(index: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """The `data_hash` of files with these digests."""
    shards = {name: facts | {"sha256": digests[name]} for name, facts in index["shards"].items()}
    return content_hash({"tokenizer_sha256": digests[TOKENIZER], "split": index["split"], "shards": shards})


def _key(data_hash: str, name: str = "", number: int | None = None) -> str:
    part = "" if number is None else f"{number:05d}"
    return f"data/{data_hash}/{name}/{part}" if name else f"data/{data_hash}/"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process of this machine at a time; the system gives it back when that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
