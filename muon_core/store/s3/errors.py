"""What went wrong with an S3 request, in one line with the remedy and without a secret.

Servers answer one mistake in many ways (a code, a status, both, or text of their own), and botocore's and Polars'
messages may quote access keys. So only codes that look like codes are repeated, and each is mapped to what the user can
do about it. Trouble is transient where the same request may succeed later: `muon_core.store.storage.patiently` waits
for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from muon_core.store.storage import StoreClosed, StoreError, StoreUnavailable


class Trouble(NamedTuple):
    """A message; `transient` if the same request may succeed later, `closed` if none gets in under these settings."""

    text: str
    transient: bool = False
    closed: bool = False

    def error(self) -> StoreError:
        kind = StoreUnavailable if self.transient else StoreClosed if self.closed else StoreError
        return kind(self.text)


_NO_KEYS = "no AWS credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_NETWORK = "check the network and AWS_ENDPOINT_URL"
_NO_SERVER = "correct its name, or AWS_ENDPOINT_URL if that is no S3 server"
_CREDENTIALS = "check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REGION = "the bucket lies in another region; set AWS_DEFAULT_REGION, or `region` of the profile, to the bucket's own"
_LOGIN = "the credentials have expired; log in again (aws sso login) or renew them"
_STILL_EXPIRED = "Credentials were refreshed, but"  # the one error of botocore's that is of no class of its own
_CODES = {
    "NoSuchBucket": "there is no such bucket; create it, or correct the name or AWS_ENDPOINT_URL",
    "InvalidBucketName": "the server refuses this bucket name; choose another",
    "InvalidAccessKeyId": f"the server does not know the access key; {_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key; {_CREDENTIALS}",
    "ExpiredToken": _LOGIN,
    "ExpiredTokenException": _LOGIN,
    "InvalidToken": _LOGIN,
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's; set the clock (NTP)",
    "RequestExpired": "this machine's clock differs too much from the server's; set the clock (NTP)",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "EntityTooLarge": "an object is larger than the server takes; raise its limit, or store less in one",
    "QuotaExceeded": "the quota is used up; free space or raise it",
    "MethodNotAllowed": "the server refuses writing; is AWS_ENDPOINT_URL an S3 server?",
    "405": "the server refuses writing; is AWS_ENDPOINT_URL an S3 server?",
}
_CLOSED = {
    *("NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestTimeTooSkewed", "RequestExpired"),
}
_CODE = re.compile(r"[A-Za-z0-9_.]{1,64}")
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_BUSY = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "RequestTimeout"),
    *("InternalError", "ServiceUnavailable"),  # of one key among many they come without an HTTP status
    "OperationAborted",  # something else is under way with the same object or bucket
    "NoSuchUpload",  # the server has cleared its parts away
}
_BUSY_STATUSES = (408, 429)  # and all from 500 on


@contextmanager
def translated_errors(
    url: str, key: str | None = None, endpoint: str | None = None, *, anonymous: bool = False
) -> Iterator[None]:
    """Raise botocore's errors as StoreError, in one line; as FileNotFoundError where the object `key` is missing."""
    try:
        yield
    except (boto.BotoCoreError, boto.ClientError, ResponseParserError) as error:
        trouble = explain(error, url, endpoint, anonymous=anonymous)
        if trouble is None and key is not None:
            raise FileNotFoundError(f"{url}/{key}") from None
        no_bucket = f"store {url}: the server knows no such bucket (404); {_NO_SERVER}"
        # The cause is cut off: botocore's texts may quote an access key.
        raise (trouble or Trouble(no_bucket, closed=True)).error() from None
    except RuntimeError as error:
        if not str(error).startswith(_STILL_EXPIRED):
            raise
        raise Trouble(f"store {url}: {_LOGIN}", closed=True).error() from None


def explain(error: Exception, url: str, endpoint: str | None, *, anonymous: bool) -> Trouble | None:
    """The trouble behind a botocore error, None for a missing object. `endpoint` is the server's URL."""
    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code", "Unknown"))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return _explain_answer(code, status, url, anonymous=anonymous)
    server = _host(endpoint) if endpoint else "the server"
    if isinstance(error, ResponseParserError):
        return Trouble(f"store {url}: {server} answers as no S3 server does; check AWS_ENDPOINT_URL")
    if isinstance(error, boto.SSLError):
        return Trouble(f"store {url}: {server} shows no valid certificate; set AWS_CA_BUNDLE or use http://")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError):
        return Trouble(f"store {url}: no answer from {server} ({type(error).__name__}); {_NETWORK}", transient=True)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return Trouble(f"store {url}: {_NO_KEYS}", closed=True)
    if isinstance(error, boto.SSOError | boto.TokenRetrievalError):
        return Trouble(f"store {url}: {_LOGIN}", closed=True)
    if isinstance(error, boto.ProfileNotFound):
        return Trouble(f"store {url}: AWS_PROFILE names a profile that ~/.aws/config does not have; correct it")
    name = type(error).__name__
    return Trouble(
        f"store {url}: the AWS settings cannot be used ({name}); check ~/.aws/config and the AWS_* variables"
    )


def explain_polars(text: str, url: str) -> Trouble:
    """The trouble behind an error of Polars' own S3 client, whose `text` quotes the server's answer."""
    code, status = (re.search(pattern, text) for pattern in (r"<Code>(\w+)</Code>", r"status code: (\d{3})"))
    if "certificate" in text and not (code or status):
        return Trouble(f"store {url}: the server shows no valid certificate; set AWS_CA_BUNDLE and no SSL_CERT_FILE")
    if not (code or status):
        return Trouble(f"store {url}: no answer from the server; {_NETWORK}", transient=True)
    number = int(status[1]) if status else 0
    trouble = _explain_answer(code[1] if code else str(number), number, url, anonymous=False)
    return trouble or Trouble(f"store {url}: an object was removed while it was read; ask again", transient=True)


def _explain_answer(code: str, status: int, url: str, *, anonymous: bool) -> Trouble | None:
    if not _CODE.fullmatch(code):  # what is no code is not repeated: nobody knows what the server quotes there
        code = str(status or "Unknown")
    if code in _MISSING:
        return None
    if code in _CODES:
        return Trouble(f"store {url}: {_CODES[code]}", closed=code in _CLOSED)
    if code in _BUSY or status in _BUSY_STATUSES or status >= 500:
        return Trouble(f"store {url}: the server is overloaded or failing ({code}); try again later", transient=True)
    if anonymous:  # servers have many ways to say that they want to know who asks
        return Trouble(f"store {url}: {_NO_KEYS}", closed=True)
    if code in _DENIED or status in (401, 403):
        denied = f"access denied; let this user read and write the bucket, or {_CREDENTIALS}"
        return Trouble(f"store {url}: {denied}", closed=True)
    return Trouble(f"store {url}: the server refuses the request ({code}); is AWS_ENDPOINT_URL an S3 server?")


def _host(endpoint: str) -> str:
    """Scheme, host and port: a password in the URL stays out."""
    parts = urlsplit(endpoint)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"
