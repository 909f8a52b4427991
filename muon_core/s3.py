"""An S3 bucket as a place for objects: AWS and every server that speaks its protocol.

botocore finds credentials, endpoint and region once (environment, profile, services section, SSO, instance role); what
it found is handed to Polars, which on its own knows only part of these sources.
"""

from __future__ import annotations

import builtins
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from muon_core.s3_errors import explain
from muon_core.storage import Listed, StoreError, StoreUnavailable

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30  # a server that accepts and stays silent costs this much per try
TRIES = 6  # of one request, inside the SDK; the writer repeats for minutes on top
GET_TRIES = 4  # of a download cut short, which the SDK does not repeat
CONCURRENCY = 32  # requests of `get_many` under way at once
DELETE_BATCH = 1_000  # keys, the most one request may name
POLARS_TIMEOUT_S = 60  # Polars waits for ever by default

_URL = re.compile(r"s3://([a-z0-9][a-z0-9._-]{1,62})(/[^?#]*)?")
_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")

Provider = Callable[[], tuple[dict[str, str], int | None]]


def open_bucket(url: str) -> Bucket:
    """The place `url` (`s3://bucket/prefix`) names, without a request to it yet. Raises StoreError."""
    match = _URL.fullmatch(url)
    if not match:  # the url is not repeated: someone may have put a secret into it
        raise StoreError(
            "this s3:// store is no s3://bucket/prefix; bucket names hold 3 to 63 of a-z, 0-9, '.', '_' and '-', "
            "and credentials belong into AWS_PROFILE or the environment"
        )
    bucket, prefix = match[1], (match[2] or "").strip("/")
    with _explained(url):
        settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        client, credentials = _client_for(settings, CONNECT_TIMEOUT_S, READ_TIMEOUT_S, TRIES)
        return Bucket(bucket, prefix, client, credentials)


@lru_cache(maxsize=8)
def _client_for(*_settings: object) -> tuple[Any, Any]:
    """Client and credentials under these settings; making them takes a tenth of a second and more."""
    session = boto3.Session()
    credentials = session.get_credentials()
    return _connect(session, anonymous=credentials is None), credentials


def _connect(session: boto3.Session, *, anonymous: bool) -> Any:
    """A client; servers other than AWS get path-style addresses and no checksum trailers, which many of them refuse."""
    region = session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
    common = Config(
        retries={"mode": "standard", "total_max_attempts": TRIES},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=2 * CONCURRENCY,
        tcp_keepalive=True,
    )
    if anonymous:
        common = common.merge(Config(signature_version=UNSIGNED))
    client = session.client("s3", region_name=region, config=common)
    if _is_aws(client.meta.endpoint_url):
        return client
    plain = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": _addressing_style(session)},
    )
    return session.client("s3", region_name=region, config=common.merge(plain))


def _is_aws(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith(_AWS_HOSTS)


def _addressing_style(session: boto3.Session) -> Any:
    """`path`, unless the profile's `s3 =` section says otherwise."""
    profile = session._session.get_scoped_config()  # boto3 has no public way to a profile's s3 section
    return (profile.get("s3") or {}).get("addressing_style", "path")


class Bucket:
    """Objects below a prefix of a bucket; one PUT an object, so each is there whole or not at all."""

    def __init__(self, bucket: str, prefix: str, client: Any, credentials: Any) -> None:
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self.place = f"{client.meta.endpoint_url}/{bucket}/{prefix}"  # tells stores of one name on two servers apart
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._client, self._credentials = client, credentials
        self._polars: dict[str, Any] | None = None

    def put(self, key: str, data: bytes) -> None:
        with self._explained():
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def get(self, key: str) -> bytes:
        with self._explained(key):
            for attempt in range(GET_TRIES):
                body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"]
                try:
                    return bytes(body.read())
                except BotoCoreError:
                    if attempt + 1 == GET_TRIES:
                        raise
        raise AssertionError("unreachable")

    def get_many(self, keys: Iterable[str]) -> builtins.list[bytes]:
        wanted = list(keys)
        if len(wanted) < 2:
            return [self.get(key) for key in wanted]
        with ThreadPoolExecutor(min(CONCURRENCY, len(wanted))) as pool:
            return list(pool.map(self.get, wanted))

    def list(self, prefix: str) -> builtins.list[tuple[str, int]]:
        return [(key, size) for key, size, _ in self.stat(prefix)]

    def stat(self, prefix: str) -> builtins.list[Listed]:
        with self._explained():
            return sorted(
                Listed(item["Key"].removeprefix(self._prefix), item["Size"], item["LastModified"].timestamp())
                for page in self._pages(prefix)
                for item in page.get("Contents", [])
            )

    def _pages(self, prefix: str, size: int = 1_000) -> Any:
        pages = self._client.get_paginator("list_objects_v2")
        return pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, PaginationConfig={"PageSize": size})

    def delete(self, keys: Iterable[str]) -> None:
        names = [self._prefix + key for key in keys]
        for first in range(0, len(names), DELETE_BATCH):
            batch = names[first : first + DELETE_BATCH]
            with self._explained():
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": name} for name in batch], "Quiet": True}
                )
                for error in answer.get("Errors", []):
                    raise ClientError({"Error": {"Code": error.get("Code", "Unknown")}}, "DeleteObjects")

    def uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def polars_options(self) -> dict[str, Any]:
        if self._polars is None:
            provider = None if self._credentials is None else _provider(self._credentials)
            self._polars = {"storage_options": self._storage_options(), "credential_provider": provider}
        return self._polars

    def _storage_options(self) -> dict[str, str]:
        endpoint = self._client.meta.endpoint_url
        options = {"timeout": f"{POLARS_TIMEOUT_S}s", "connect_timeout": f"{CONNECT_TIMEOUT_S}s"}
        if _is_aws(endpoint):
            options["aws_region"] = self._region()
        else:
            virtual = self._client.meta.config.s3["addressing_style"] == "virtual"
            host = urlsplit(endpoint)
            options["aws_region"] = self._client.meta.region_name
            options["aws_virtual_hosted_style_request"] = str(virtual).lower()
            options["aws_endpoint_url"] = f"{host.scheme}://{self._bucket}.{host.netloc}" if virtual else endpoint
        if endpoint.startswith("http://"):
            options["aws_allow_http"] = "true"
        if self._credentials is None:
            options["aws_skip_signature"] = "true"
        return options

    def _region(self) -> str:
        """Where the bucket is: boto3 follows AWS's redirect to another region, Polars does not."""
        with self._explained():
            answer = self._client.head_bucket(Bucket=self._bucket)
        return str(answer.get("BucketRegion") or self._client.meta.region_name)

    def _explained(self, key: str | None = None) -> Any:
        return _explained(self.url, key, self._client.meta.endpoint_url, anonymous=self._credentials is None)


def _provider(credentials: Any) -> Provider:
    """A credential provider for Polars: fresh keys whenever it asks, with the time they expire."""

    def provide() -> tuple[dict[str, str], int | None]:
        frozen = credentials.get_frozen_credentials()
        keys = {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
        if frozen.token:
            keys["aws_session_token"] = frozen.token
        expiry = getattr(credentials, "_expiry_time", None)  # refreshable credentials only; no public name
        return keys, int(expiry.timestamp()) if expiry else None

    return provide


@contextmanager
def _explained(
    url: str, key: str | None = None, endpoint: str | None = None, *, anonymous: bool = False
) -> Iterator[None]:
    """Turn botocore's errors into one line that says what to do; a missing object is FileNotFoundError."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        trouble = explain(error, url, endpoint, anonymous=anonymous)
        if trouble is None:
            raise FileNotFoundError(f"{url}/{key}") from None
        # The cause is cut off: botocore's texts may quote an access key.
        raise (StoreUnavailable if trouble.passing else StoreError)(trouble.text) from None
