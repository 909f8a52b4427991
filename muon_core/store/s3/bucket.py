"""An S3 bucket as a place for objects: AWS and every server that speaks its protocol.

Objects are put, fetched, listed and deleted, nothing more, because that much works alike on all servers: an object
appears whole, with the request that ends its upload, and listings show it from then on. Every request may be repeated,
so the SDK's own retries are left on. Errors leave here as StoreError or, where repeating may help, StoreUnavailable.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError

from muon_core.store.range_file import RangeFile
from muon_core.store.s3.connection import CONCURRENCY, Connection, connect
from muon_core.store.s3.direct import DirectGets
from muon_core.store.s3.errors import translated_errors
from muon_core.store.s3.listing import LISTED
from muon_core.store.storage import Listed, StoreError, put_side_by_side

GET_TRIES = 4
MANY = 128  # objects that are fetched over connections of their own, which cost a handshake each
BATCH = 16  # keys that one thread takes at a time, for to hand them over costs as much as to sign a request
LIST_PAGE = 1_000  # keys, the most one answer names
DELETE_BATCH = 1_000  # keys, the most one request may name
MULTIPART_BYTES = 256 << 20  # above it an object is sent in parts; S3 takes at most 5 GiB in one request
PART_BYTES = 16 << 20  # at most ten parts are in memory beside the object
PARTS_AT_ONCE = 8

_URL = re.compile(r"s3://([a-z0-9][a-z0-9._-]{1,62})(?:/([^?#\x00-\x1f\x7f]*))?")


def open_bucket(url: str) -> Bucket:
    """The place `url` (`s3://bucket/prefix`) names, without a request to it yet. Raises StoreError."""
    match = _URL.fullmatch(url)
    if not match:  # the url is not repeated: someone may have put a secret into it
        raise StoreError(
            "this s3:// store is no s3://bucket/prefix; bucket names hold 3 to 63 of a-z, 0-9, '.', '_' and '-', "
            "and credentials belong into AWS_PROFILE or the environment"
        )
    bucket, prefix = match[1], (match[2] or "").removesuffix("/")
    if prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/")):
        raise StoreError(
            f"store {url}: Polars cannot read below a prefix with '//', '.' or '..' in it; write it without"
        )
    with translated_errors(url):
        return Bucket(bucket, prefix, connect())


class Bucket:
    """Objects below a prefix of a bucket; each becomes visible as a whole, by the request that ends its upload."""

    is_local = False

    def __init__(self, bucket: str, prefix: str, connection: Connection) -> None:
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self.place = f"{connection.endpoint}/{bucket}/{prefix}"
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._connection, self._client = connection, connection.client
        self._polars: dict[str, Any] | None = None

    def put(self, key: str, data: bytes | memoryview) -> None:
        body = data if isinstance(data, bytes) else _as_file(data)
        with self._translated_errors():
            if len(data) <= MULTIPART_BYTES:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body)
            else:
                parts = TransferConfig(MULTIPART_BYTES, PARTS_AT_ONCE, PART_BYTES)
                self._client.upload_fileobj(_as_file(data), self._bucket, self._prefix + key, Config=parts)

    def get(self, key: str) -> bytes:
        return self._received(key)

    def _received(self, key: str, **options: str) -> bytes:
        with self._translated_errors(key):
            for attempt in range(GET_TRIES):  # the SDK repeats a request, but not one whose answer breaks off
                body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **options)["Body"]
                try:
                    return bytes(body.read())
                except BotoCoreError:
                    if attempt + 1 == GET_TRIES:
                        raise
        raise AssertionError("unreachable")

    def read(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes of one object from `start` on, fewer at its end. Raises FileNotFoundError if there is none."""
        if length <= 0:
            return b""
        wanted = f"bytes={start}-{start + length - 1}"
        return self._received(key, Range=wanted)

    def get_many(self, keys: Iterable[str]) -> builtins.list[bytes]:
        wanted = list(keys)
        if len(wanted) < MANY:
            return _side_by_side(self.get, wanted)
        with DirectGets(self._client, self._bucket, self._connection.ca_bundle) as direct:
            return _side_by_side(lambda key: direct.get(self._prefix + key) or self.get(key), wanted)

    def list(self, prefix: str) -> builtins.list[tuple[str, int]]:
        return [(key, size) for key, size, _ in self.stat(prefix)]

    def keys(self, prefix: str) -> builtins.list[str]:
        return [key for key, *_ in self.stat(prefix)]

    def stat(self, prefix: str) -> builtins.list[Listed]:
        lists = self._client.get_paginator("list_objects_v2")
        size, skip = {"PageSize": LIST_PAGE}, len(self._prefix)
        with self._translated_errors():
            return sorted(
                Listed(key[skip:], size, modified)
                for page in lists.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, PaginationConfig=size)
                for key, size, modified in page[LISTED]
            )

    def put_many(self, objects: Mapping[str, bytes]) -> None:
        put_side_by_side(self.put, objects, CONCURRENCY)

    def delete(self, keys: Iterable[str]) -> None:
        names = [self._prefix + key for key in keys]
        for first in range(0, len(names), DELETE_BATCH):
            batch = names[first : first + DELETE_BATCH]
            with self._translated_errors():
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": name} for name in batch], "Quiet": True}
                )
                # A batch succeeds as a request even if the server kept some of its keys.
                for error in answer.get("Errors", []):
                    raise ClientError({"Error": {"Code": error.get("Code", "Unknown")}}, "DeleteObjects")

    def remove_leftovers(self, older_than_s: float) -> None:
        """Nothing: parts of an upload that did not end are no object, and S3 clears them by the bucket's own rule."""

    def uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def polars_options(self) -> dict[str, Any]:
        if self._polars is None:
            with self._translated_errors():
                self._polars = self._connection.polars_options(self._bucket, self._region(), self.url)
        return self._polars

    def _region(self) -> str:
        """Where the bucket is: boto3 follows AWS's redirect to another region, Polars does not."""
        own = str(self._client.meta.region_name)
        if not self._connection.is_aws:
            return own
        return str(self._client.head_bucket(Bucket=self._bucket).get("BucketRegion") or own)

    def _translated_errors(self, key: str | None = None) -> AbstractContextManager[None]:
        connection = self._connection
        return translated_errors(self.url, key, connection.endpoint, anonymous=connection.credentials is None)


def _side_by_side(get: Callable[[str], bytes], keys: builtins.list[str]) -> builtins.list[bytes]:
    """What `get` gives for each of `keys`, in their order. Raises as it does, and asks for no more then."""
    if len(keys) < 2:
        return [get(key) for key in keys]
    size = max(1, min(BATCH, len(keys) // CONCURRENCY))
    groups = [keys[first : first + size] for first in range(0, len(keys), size)]
    with ThreadPoolExecutor(min(CONCURRENCY, len(groups))) as pool:
        return [data for group in pool.map(lambda some: [get(key) for key in some], groups) for data in group]


def _as_file(data: bytes | memoryview) -> RangeFile:
    """`data` to be read, without a copy of the whole."""
    view = memoryview(data)
    return RangeFile(lambda start, length: view[start : start + length], len(view))
