"""Where the text of a data set comes from: files, folders and globs, here or on S3, and Hugging Face datasets.

Each input becomes a sorted list of files with names, sizes and a way to open them, so that whatever reads them knows no
place, and takes up again in the middle. Nothing is read here. Imports no torch.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Literal

from muon_core.config.base import canonical_json
from muon_core.spelling import did_you_mean
from muon_core.store.range_file import buffered
from muon_core.store.storage import patiently

Kind = Literal["text", "jsonl", "parquet"]
KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "text", ".md": "text",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
PATIENCE_S = 120.0
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of text."""

    name: str
    """As messages call it."""
    size: int
    """Bytes, as it lies there."""
    open: Callable[[], BinaryIO]
    """A seekable file of these bytes."""
    version: str
    """Changes with what is in it, like the time it was written."""

    @property
    def compression(self) -> str | None:
        """`gzip`, `zstd` or None, by the ending of its name."""
        return COMPRESSIONS.get(_ending(self.name))

    @property
    def kind(self) -> Kind:
        """What lies in it, by the ending of its name; any other one is text."""
        name = self.name.removesuffix(_ending(self.name)) if self.compression else self.name
        return KINDS.get(_ending(name), "text")

    def place(self, number: int) -> str:
        """What messages call the record of that `number`."""
        return f"{self.name}, row {number}" if self.kind == "parquet" else f"{self.name} at byte {number}"


@dataclass(frozen=True, slots=True)
class Source:
    """All files of a data set, in the order in which they are read."""

    inputs: tuple[str, ...]
    files: tuple[InputFile, ...]
    revision: str | None
    """Commits of the Hugging Face datasets among the inputs."""

    @property
    def num_bytes(self) -> int:
        """Of all files, as they lie there."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str:
        """Over names and sizes of the files, folders above the input left out."""
        facts = [[os.path.basename(file.name), file.size] for file in self.files]
        return hashlib.sha256(canonical_json(facts).encode()).hexdigest()

    @property
    def version(self) -> str:
        """Changes when a file does, also where its size stays; copies of the same files have others."""
        return hashlib.sha256(canonical_json([file.version for file in self.files]).encode()).hexdigest()


def find_source(inputs: Sequence[str]) -> Source:
    """The files of `inputs`, each a file, a folder, a glob, `s3://bucket/prefix`, or `hf:NAME[@REVISION][:GLOB]`.

    Raises: ValueError for an input that has none; StoreError.
    """
    files: list[InputFile] = []
    revisions: list[str] = []
    for given in inputs:
        if given.startswith("hf:"):
            from muon_core.data.hub import dataset_files  # only who asks for one pays for the import

            found, revision = dataset_files(given)
            revisions.append(revision)
        else:
            found = _on_s3(given) if given.startswith("s3://") else _here(given)
        files += found
    for file in files:
        if file.kind == "parquet" and file.compression:
            raise ValueError(f"{file.name}: Parquet is compressed by itself; unpack it")
    return Source(tuple(inputs), tuple(files), " ".join(revisions) or None)


def near_file(path: str) -> str:
    """` (did you mean 'text.jsonl'?)`: what lies beside it and is called nearly so."""
    folder = os.path.dirname(path)
    beside = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    return did_you_mean(path, [os.path.join(folder, name) for name in beside], 0.8)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _here(given: str) -> list[InputFile]:
    path = os.path.expanduser(given)
    if os.path.isfile(path):
        names: Iterable[str] = [path]
    elif os.path.isdir(path):
        names = _below(path)
    else:
        names = (name for name in glob.glob(path, recursive=True) if os.path.isfile(name)) if _WILD.search(path) else ()
    found = sorted(names)
    if not found:
        missing = "holds no files" if os.path.isdir(path) else f"there is no such file or folder{near_file(path)}"
        raise ValueError(f"input {given!r}: {missing}; give a file, a folder, a glob in quotes, s3://... or hf:NAME")
    return [local_file(name, name) for name in found]


def _below(root: str) -> Iterable[str]:
    """Files below a folder, without hidden ones."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (f"{folder}/{name}" for name in names if not name.startswith("."))


def _on_s3(given: str) -> list[InputFile]:
    from muon_core.store.s3.bucket import open_bucket  # boto3 takes 0.2 s to import

    wild = _WILD.search(given)
    folder = given[: wild.start()].rpartition("/")[0] if wild else given
    pattern = given.removeprefix(f"{folder}/") if wild else "*"
    bucket = open_bucket(folder)
    listed = patiently(lambda: bucket.stat(""), PATIENCE_S)
    listed = [one for one in listed if fnmatch.fnmatchcase(one.key, pattern) and not one.key.endswith("/")]
    if not listed and not wild:  # not a prefix: one object
        folder, _, name = given.rpartition("/")
        bucket = open_bucket(folder)
        listed = [one for one in patiently(lambda: bucket.stat(""), PATIENCE_S) if one.key == name]
    if not listed:
        raise ValueError(f"input {given!r}: there is no such object; correct the bucket, the prefix or the pattern")

    def opened(key: str, size: int) -> BinaryIO:
        return buffered(lambda start, length: patiently(lambda: bucket.read(key, start, length), PATIENCE_S), size)

    return [
        InputFile(f"{folder}/{one.key}", one.size, partial(opened, one.key, one.size), str(one.modified))
        for one in listed
    ]


def local_file(name: str, path: str) -> InputFile:
    """The file at `path`, called `name`."""

    def opened() -> BinaryIO:
        return open(path, "rb")

    status = os.stat(path)
    return InputFile(name, status.st_size, opened, str(status.st_mtime_ns))
