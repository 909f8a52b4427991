"""The source of an optimizer that is named by a file: kept in the results store, and loaded from there by workers."""

from __future__ import annotations

import hashlib

from muon_core.by_reference import file_of, remember, remembered
from muon_core.config.optimizers import OptimizerConfig
from muon_core.config.reference import ReferenceConfig
from muon_core.store.keys import source_key
from muon_core.store.storage import Storage, StoreError


def publish_source(optimizer: OptimizerConfig, storage: Storage) -> None:
    """Put the file of `optimizer`, as it was when the run was planned, into `storage`, if it has one and knows it.

    What is there already is left alone: a name says its content. Raises StoreError.
    """
    digest = _digest(optimizer)
    source = remembered(digest) if digest else None
    if digest and source is not None and not storage.list(source_key(digest)):
        storage.put(source_key(digest), source)


def fetch_source(optimizer: OptimizerConfig, storage: Storage) -> None:
    """Have the class of `optimizer` loaded from what `storage` has of its file; without it, from the file itself.

    Raises: StoreError if it is not what its name says.
    """
    digest = _digest(optimizer)
    if digest is None or remembered(digest) is not None:
        return
    try:
        source = storage.get(source_key(digest))
    except FileNotFoundError:
        return
    if hashlib.sha256(source).hexdigest() != digest:
        raise StoreError(
            f"{source_key(digest)} in {storage.place} is damaged; remove it there and run the sweep's command again"
        )
    remember(source)


def _digest(optimizer: OptimizerConfig) -> str | None:
    """Hash of the file that `optimizer` is in; None for a class of a package, and for built-in ones."""
    if isinstance(optimizer, ReferenceConfig) and file_of(optimizer.reference):
        return optimizer.source_sha256
    return None
