"""Copies on this machine of prepared data sets that lie on S3. Imports no torch.

A set is fetched once by a machine, whole, since an epoch reads windows from all over it. The processes that want it
wait at one lock while the first of them fetches, and hold another for as long as they live, so that a set in use is not
removed. Where the copies would exceed `MUON_DATA_CACHE_BYTES`, those used longest ago go first. A shard is compared
with its sha256 before it gets its name, and a copy that was damaged later is fetched again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING

from muon_core.data.manifest import MANIFEST, TOKENIZER, Manifest, Shard
from muon_core.data.soundness import AT_ONCE, damaged_files, describe_damage
from muon_core.store.storage import StoreError, patiently
from muon_core.user_cache import user_cache

if TYPE_CHECKING:
    from muon_core.store.s3.bucket import Bucket

MAX_BYTES = 200 * 2**30  # MUON_DATA_CACHE_BYTES sets another bound
RANGE = 8 * 2**20  # bytes of one request: bounds the memory of a fetch
TRIES = 3  # of a shard whose bytes are not what the manifest says
PATIENCE_S = 60.0
_held: dict[Path, IO[str]] = {}  # of the sets that this process has open
_holding = threading.Lock()


def cache_root() -> Path:
    """Of copies of data sets, and of what is known of those on this machine."""
    return user_cache() / "muon-jobs" / "sets"


def fetched(corpus: str, manifest: Manifest, root: Path) -> Path:
    """The folder below `root` with the files of the set at `corpus`. Raises StoreError."""
    folder = root / manifest.content_hash[:16]
    try:
        root.mkdir(parents=True, exist_ok=True)
        _hold(folder)
        with _lock(_beside(folder, "fetch")):
            if damaged := damaged_files(folder, manifest, root):
                for name in (name for name in damaged if (folder / name).exists()):
                    logging.getLogger(__name__).warning("%s/%s is damaged and fetched again", folder, name)
                _make_room(root, folder, manifest.num_bytes)
                _fetch(corpus, manifest, folder, damaged)
        os.utime(folder)  # it was used last
    except OSError as error:
        raise StoreError(f"data sets cannot be kept in {root}: {error.strerror}; XDG_CACHE_HOME moves it") from error
    return folder


def _fetch(corpus: str, manifest: Manifest, folder: Path, names: list[str]) -> None:
    """Bring the files `names` of the set into `folder`, several at a time. Raises StoreError, OSError."""
    from muon_core.store.s3.bucket import open_bucket  # boto3 takes 0.2 s to import

    bucket, shards = open_bucket(corpus), {shard.name: shard for shard in manifest.all_shards}
    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            wanted = (name for name in names if name != TOKENIZER)
            list(pool.map(lambda name: _fetch_shard(bucket, shards[name], folder), wanted))
            if TOKENIZER in names:
                _fetch_tokenizer(bucket, manifest, folder)
        except FileNotFoundError as error:
            raise StoreError(f"{error} is missing, though {MANIFEST} names it; prepare the data again") from error
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2))


def _fetch_tokenizer(bucket: Bucket, manifest: Manifest, folder: Path) -> None:
    text = patiently(lambda: bucket.get(TOKENIZER), PATIENCE_S)
    if hashlib.sha256(text).hexdigest() != manifest.tokenizer.sha256:
        raise StoreError(describe_damage(bucket.url, [TOKENIZER]))
    _write(folder / TOKENIZER, lambda file: file.write(text))


def _fetch_shard(bucket: Bucket, shard: Shard, folder: Path) -> None:
    def part(start: int) -> bytes:
        length = min(RANGE, shard.bytes - start)
        return patiently(lambda: bucket.read(shard.name, start, length), PATIENCE_S)

    def download(file: IO[bytes]) -> bool:
        digest = hashlib.sha256()
        for start in range(0, shard.bytes, RANGE):
            data = part(start)
            digest.update(data)
            file.write(data)
        return digest.hexdigest() == shard.sha256

    for _ in range(TRIES):
        if _write(folder / shard.name, download):
            return
    raise StoreError(describe_damage(bucket.url, [shard.name]))


def _write(path: Path, fill: Callable[[IO[bytes]], object]) -> bool:
    """The file at `path`, whole or not at all: it gets its name once `fill` has answered that it is right."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("xb") as file:
            is_right = bool(fill(file))
        if is_right:
            aside.rename(path)
        return is_right
    finally:
        aside.unlink(missing_ok=True)


def _make_room(root: Path, coming: Path, num_bytes: int) -> None:
    """Remove the sets used longest ago until so many more bytes fit. Raises StoreError if they never will."""
    text = os.environ.get("MUON_DATA_CACHE_BYTES") or str(MAX_BYTES)
    if not text.isdecimal():
        raise StoreError(f"MUON_DATA_CACHE_BYTES is {text!r}; give whole bytes, such as {MAX_BYTES}")
    if num_bytes > int(text):
        raise StoreError(
            f"the data set takes {num_bytes / 1e9:.3g} GB, {root} may take {int(text) / 1e9:.3g}; raise "
            f"MUON_DATA_CACHE_BYTES to {num_bytes} at least"
        )
    others = [path for path in root.iterdir() if (path / MANIFEST).is_file() and path != coming]
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
    for path in sorted(others, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) + num_bytes <= int(text):
            return
        with _unless_used(path) as is_free:
            if is_free:
                shutil.rmtree(path)
                del sizes[path]


def _hold(folder: Path) -> None:
    """Keep `folder` from being removed for as long as this process lives."""
    with _holding:  # threads may ask at once
        if folder not in _held:
            _held[folder] = _beside(folder, "use").open("w")
            fcntl.flock(_held[folder], fcntl.LOCK_SH)


@contextlib.contextmanager
def _unless_used(folder: Path) -> Iterator[bool]:
    """Whether no process has `folder` open; none can open it meanwhile."""
    with _beside(folder, "use").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process of this machine at a time; the system gives it back when that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}.lock")
