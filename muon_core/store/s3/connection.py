"""Connects to S3 under the ambient AWS settings, and hands what botocore found to Polars.

Two clients read one bucket: boto3 all objects whole, and Polars the columns it wants. Polars on its own knows only part
of the places where AWS tools look for settings, so botocore looks (environment, profile, services section, SSO,
instance role) and Polars is given the outcome: endpoint, region, style of address, and a function that returns fresh
credentials.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from muon_core.store.s3.errors import translated_errors
from muon_core.store.s3.listing import list_quickly
from muon_core.store.storage import StoreError

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30  # a server that accepts and stays silent costs this much per try
TRIES = 6  # of one request, inside the SDK; the writer repeats for minutes on top
CONCURRENCY = 32  # requests under way at once
POLARS_TIMEOUT_S = 60  # Polars waits for ever by default

_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")
_ORDINARY_AWS = re.compile(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com")
"""What Polars makes of a region by itself; FIPS, dualstack, VPC and Chinese endpoints have to be given to it."""
_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
_BAD_ENDPOINT = (  # the endpoint is not repeated: someone may have put a password into it
    "the S3 endpoint in AWS_ENDPOINT_URL(_S3) or ~/.aws/config is no http://host:port or https://host:port; "
    "correct it, without a user or password: these belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)

# What fails reaches the user as our error, in a line; their warnings are tracebacks of credentials that could not be
# renewed, for each request one. And debug quotes session tokens, info tells where they lie.
for _name in ("botocore", "boto3", "s3transfer"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

Provider = Callable[[], tuple[dict[str, str], int | None]]


@dataclass(frozen=True, slots=True)
class Connection:
    """A boto3 client and what it was made from; `credentials` are None where requests are anonymous."""

    client: Any
    credentials: Any
    ca_bundle: str | None

    @property
    def endpoint(self) -> str:
        """URL of the server."""
        return str(self.client.meta.endpoint_url)

    @property
    def is_aws(self) -> bool:
        """Whether the server is AWS's own."""
        return _is_aws(self.endpoint)

    def polars_options(self, bucket: str, region: str, url: str) -> dict[str, Any]:
        """Keyword arguments with which `pl.scan_parquet` reads `bucket`, as this client would; `url` names the store.

        Certificates are the exception: Polars takes them from SSL_CERT_FILE only, which is set unless it is already.
        """
        if self.ca_bundle:
            os.environ.setdefault("SSL_CERT_FILE", self.ca_bundle)
        virtual = self._is_virtual_host(bucket)
        options = {
            "aws_region": region,
            "aws_virtual_hosted_style_request": str(virtual).lower(),
            "timeout": f"{POLARS_TIMEOUT_S}s",
            "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        }
        if not _ORDINARY_AWS.fullmatch(self.endpoint):
            scheme, host = self.endpoint.split("://", 1)
            options["aws_endpoint_url"] = f"{scheme}://{bucket}.{host}" if virtual else self.endpoint
        if urlsplit(self.endpoint).scheme == "http":
            options["aws_allow_http"] = "true"
        if self.credentials is None:
            return {"storage_options": options | {"aws_skip_signature": "true"}, "credential_provider": None}
        return {"storage_options": options, "credential_provider": _provider(self.credentials, url)}

    def _is_virtual_host(self, bucket: str) -> bool:
        """Whether botocore puts the bucket's name before the host, which hangs on settings, endpoint and name."""
        address = self.client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
        return not urlsplit(address).path.endswith(f"/{bucket}/k")


def connect() -> Connection:
    """The connection that the settings of this moment give; no request is made. Raises StoreError, BotoCoreError."""
    # The cache's key is all that the answer depends on: renewed credentials make another connection.
    variables = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    files = [os.path.expanduser(os.environ.get(name) or default) for name, default in _FILES.items()]
    versions = [(path, _modified(path)) for path in files]
    return _connection((*variables, *versions), CONNECT_TIMEOUT_S, READ_TIMEOUT_S, TRIES)


def _modified(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


@lru_cache(maxsize=8)
def _connection(*_settings: object) -> Connection:
    """The connection under these settings; making one takes a tenth of a second and more."""
    session = boto3.Session()
    # boto3 has no public way to a profile's `ca_bundle` and `s3` section
    config = session._session
    credentials = session.get_credentials()
    style = (config.get_scoped_config().get("s3") or {}).get("addressing_style", "path")
    client = _client(session, style, anonymous=credentials is None)
    list_quickly(client)
    return Connection(client, credentials, config.get_config_variable("ca_bundle"))


def _client(session: boto3.Session, style: Any, *, anonymous: bool) -> Any:
    """A client; servers other than AWS get addresses of `style` and no checksum trailers, which many of them refuse."""
    common = Config(
        retries={"mode": "standard", "total_max_attempts": TRIES},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=2 * CONCURRENCY,
        tcp_keepalive=True,
    )
    if anonymous:
        common = common.merge(Config(signature_version=UNSIGNED))
    client = _checked_client(session, common)
    if _is_aws(client.meta.endpoint_url):
        return client
    plain = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": style},
    )
    return _checked_client(session, common.merge(plain))


def _checked_client(session: boto3.Session, config: Config) -> Any:
    """A client of the endpoint that the settings name. Raises StoreError if that is none or holds a password."""
    region = session.region_name or os.environ.get("AWS_REGION") or "us-east-1"
    try:
        client = session.client("s3", region_name=region, config=config)
        parts = urlsplit(client.meta.endpoint_url)
        is_sound = parts.scheme in ("http", "https") and parts.port != 0
    except BotoCoreError:
        raise
    except ValueError:  # botocore's for what is no URL, urlsplit's for its port
        raise StoreError(_BAD_ENDPOINT) from None
    if not is_sound or "@" in parts.netloc or parts.query or parts.fragment:
        raise StoreError(_BAD_ENDPOINT)
    return client


def _is_aws(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith(_AWS_HOSTS)


def _provider(credentials: Any, url: str) -> Provider:
    """A credential provider for Polars: fresh keys whenever it asks, with the time they expire."""

    def provide() -> tuple[dict[str, str], int | None]:
        with translated_errors(url):
            frozen = credentials.get_frozen_credentials()
        keys = {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
        if frozen.token:
            keys["aws_session_token"] = frozen.token
        expiry = getattr(credentials, "_expiry_time", None)  # refreshable credentials only; no public name
        return keys, int(expiry.timestamp()) if expiry else None

    return provide
