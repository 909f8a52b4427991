"""From the URL of a store to the place it names: a folder or `s3://bucket/prefix`."""

from __future__ import annotations

import os
import re

from muon_core.store.folder import Folder
from muon_core.store.storage import Storage, StoreError


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The place `url` names: a folder or `s3://bucket/prefix`. Raises StoreError for a scheme nobody handles."""
    text = os.fspath(url)
    if re.match(r"s3:/?(?!/)", text):
        raise StoreError("a store on S3 is s3://bucket/prefix, as text with two slashes: a Path drops one of them")
    scheme = text.split("://")[0] if "://" in text else "file"
    if scheme == "s3":
        from muon_core.store.s3.bucket import open_bucket  # boto3 takes 0.2 s to import, which a folder need not pay

        return open_bucket(text)
    if scheme != "file":
        raise StoreError(f"store with unknown scheme {scheme!r}; give a folder or s3://bucket/prefix")
    return Folder(text.removeprefix("file://"))
