"""What an s3:// URL and the ambient AWS settings turn into, and what each error says. No server is asked."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as boto
from botocore.stub import Stubber
from servers.fixtures import clear_aws

from muon_core.store.open import open_storage
from muon_core.store.s3.bucket import Bucket, open_bucket
from muon_core.store.s3.direct import DirectGets
from muon_core.store.s3.errors import explain, explain_polars
from muon_core.store.storage import OUT_OF_USE, StoreClosed, StoreError, StoreUnavailable, patiently

SECRET = "s3cr3t/hush"


@pytest.fixture(autouse=True)
def _no_ambient_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_aws(monkeypatch)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for ~/.aws/config with credentials in the profile `lab`; tests append to it."""
    path = tmp_path / "config"
    path.write_text(
        f"[profile lab]\naws_access_key_id = LABKEY\naws_secret_access_key = {SECRET}\nregion = eu-west-1\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    return path


class NoServer(BaseHTTPRequestHandler):
    """Something else than S3 that answers 404 to everything."""

    def answer(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass

    do_GET = do_PUT = do_POST = do_HEAD = answer


@pytest.fixture
def no_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The endpoint is a web server that knows nothing of S3."""
    with ThreadingHTTPServer(("127.0.0.1", 0), NoServer) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield
        server.shutdown()


class Moved(NoServer):
    """Sends everyone elsewhere; `asked` counts the requests."""

    asked = 0

    def do_GET(self) -> None:
        Moved.asked += 1
        self.send_response(301)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.parametrize(("proxy", "asked"), [("", 1), ("http://127.0.0.1:9", 0)])
def test_a_bucket_that_wants_to_be_asked_otherwise_is_left_to_ordinary_requests(
    proxy: str, asked: int, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Moved, "asked", 0)
    monkeypatch.setenv("http_proxy", proxy)
    for name in ("no_proxy", "NO_PROXY"):  # which hosts of Ray on loopback set for their process
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Moved) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        with DirectGets(open_bucket("s3://data/x")._client, "data", None) as direct:
            assert [direct.get("x/a"), direct.get("x/b")] == [None, None]
        server.shutdown()
    assert Moved.asked == asked


def options(bucket: Bucket) -> dict[str, str]:
    return dict(bucket.polars_options()["storage_options"])


def test_a_profile_with_an_endpoint_reaches_boto3_and_polars_alike(config: Path) -> None:
    config.write_text(f"{config.read_text()}endpoint_url = http://localhost:9000\n")
    bucket = open_bucket("s3://data/runs/")
    assert bucket.url == "s3://data/runs"
    assert bucket.uri("a/b") == "s3://data/runs/a/b"
    assert options(bucket) == {
        "aws_endpoint_url": "http://localhost:9000",
        "aws_region": "eu-west-1",
        "aws_virtual_hosted_style_request": "false",
        "aws_allow_http": "true",
        "timeout": "60s",
        "connect_timeout": "5s",
    }
    keys, expiry = bucket.polars_options()["credential_provider"]()
    assert keys == {"aws_access_key_id": "LABKEY", "aws_secret_access_key": SECRET}
    assert expiry is None


def test_a_services_section_gives_the_endpoint(config: Path) -> None:
    config.write_text(
        f"{config.read_text()}services = here\n[services here]\ns3 =\n  endpoint_url = https://s3.lab:9000\n"
    )
    assert options(open_bucket("s3://data"))["aws_endpoint_url"] == "https://s3.lab:9000"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environment_gives_endpoint_region_and_session_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {name: "http://localhost:9000", "AWS_REGION": "us-west-2", "AWS_ACCESS_KEY_ID": "K",
                "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": "T"}  # fmt: skip
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    bucket = open_bucket("s3://data/x")
    assert options(bucket)["aws_endpoint_url"] == "http://localhost:9000"
    assert options(bucket)["aws_region"] == "us-west-2"
    assert bucket.polars_options()["credential_provider"]()[0]["aws_session_token"] == "T"


@pytest.mark.parametrize(
    ("style", "endpoint", "virtual"),
    [
        ("virtual", "https://data.s3.lab", "true"),
        ("path", "https://s3.lab", "false"),
        ("auto", "https://s3.lab", "false"),
    ],
)
def test_the_addressing_style_of_a_profile_holds_for_boto3_and_polars(
    style: str, endpoint: str, virtual: str, config: Path
) -> None:
    config.write_text(f"{config.read_text()}endpoint_url = https://s3.lab\ns3 =\n  addressing_style = {style}\n")
    bucket = open_bucket("s3://data/x")
    chosen = options(bucket)
    assert (chosen["aws_endpoint_url"], chosen["aws_virtual_hosted_style_request"]) == (endpoint, virtual)
    assert sent_to(bucket) == endpoint + ("" if virtual == "true" else "/data")


def sent_to(bucket: Bucket) -> str:
    """Where boto3 sends a request for an object, without the object's key."""
    hosts: list[str] = []

    def see(request: Any, **_: Any) -> None:
        hosts.append(request.url)
        raise StoreError("seen")

    bucket._client.meta.events.register("before-send.s3", see)
    with pytest.raises(StoreError, match="seen"):
        bucket.get("a")
    return hosts[0].removesuffix("/x/a")


def test_on_aws_no_endpoint_is_named_and_the_bucket_tells_its_region(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = open_bucket("s3://data/x")
    monkeypatch.setattr(bucket._client, "head_bucket", lambda **_: {"BucketRegion": "ap-south-1"})
    assert options(bucket) == {
        "aws_region": "ap-south-1",
        "aws_virtual_hosted_style_request": "true",
        "timeout": "60s",
        "connect_timeout": "5s",
    }
    assert sent_to(bucket) == "https://data.s3.eu-west-1.amazonaws.com"


VPC = "https://bucket.vpce-1a2b-5.s3.eu-west-1.vpce.amazonaws.com"


@pytest.mark.parametrize(
    ("settings", "endpoint"),
    [
        ({"AWS_ENDPOINT_URL": VPC}, VPC),
        ({"AWS_USE_FIPS_ENDPOINT": "true", "AWS_REGION": "us-west-2"}, "https://data.s3-fips.us-west-2.amazonaws.com"),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "https://data.s3.dualstack.eu-west-1.amazonaws.com"),
        ({"AWS_DEFAULT_REGION": "cn-north-1"}, "https://data.s3.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_other_endpoints_of_aws_reach_polars_too(
    settings: dict[str, str], endpoint: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "AWS_REGION" in settings:  # which counts after the profile's
        config.write_text(config.read_text().replace("eu-west-1", settings["AWS_REGION"]))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    bucket = open_bucket("s3://data/x")
    monkeypatch.setattr(bucket._client, "head_bucket", lambda **_: {})
    chosen = options(bucket)
    assert chosen["aws_endpoint_url"] == endpoint
    assert sent_to(bucket) == endpoint + ("" if chosen["aws_virtual_hosted_style_request"] == "true" else "/data")


def test_a_bucket_with_dots_is_addressed_by_path_for_its_certificate(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = open_bucket("s3://my.data/x")
    monkeypatch.setattr(bucket._client, "head_bucket", lambda **_: {})
    assert options(bucket)["aws_virtual_hosted_style_request"] == "false"


def test_certificates_of_the_aws_settings_reach_polars(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(f"{config.read_text()}endpoint_url = https://s3.lab\nca_bundle = /lab.pem\n")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "")  # what the code sets goes with the test
    monkeypatch.delenv("SSL_CERT_FILE")
    open_bucket("s3://data/x").polars_options()
    assert os.environ["SSL_CERT_FILE"] == "/lab.pem"
    monkeypatch.setenv("AWS_CA_BUNDLE", "/other.pem")
    open_bucket("s3://data/x").polars_options()
    assert os.environ["SSL_CERT_FILE"] == "/lab.pem"  # somebody's own choice stays


def test_renewed_credentials_are_seen(config: Path) -> None:
    config.write_text(f"{config.read_text()}endpoint_url = http://localhost:9000\n")
    open_bucket("s3://data/x")
    config.write_text(config.read_text().replace("LABKEY", "NEWKEY"))
    os.utime(config, ns=(1, 1))  # another time than before, whatever the file system's resolution
    keys, _ = open_bucket("s3://data/x").polars_options()["credential_provider"]()
    assert keys["aws_access_key_id"] == "NEWKEY"


@pytest.mark.parametrize(
    "endpoint",
    ["user:hush@host:9", "user:hush@host", "http://user:hush@host:9", "http://hush@host", "ftp://hush", "hush:9000",
     "http://host:99999/hush", "http://host:9?hush", "http://host#hush"],
)  # fmt: skip
def test_an_endpoint_that_is_none_or_holds_a_password_is_refused_without_repeating_it(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreError, match=r"^the S3 endpoint in AWS_ENDPOINT_URL\(_S3\) or .* is no http://") as error:
        open_bucket("s3://data/x")
    assert "hush" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_a_store_is_opened_without_words_of_where_its_credentials_lie(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config.write_text(f"{config.read_text()}endpoint_url = http://127.0.0.1:9\n")
    assert sent_to(open_bucket("s3://data/x")) == "http://127.0.0.1:9/data"
    assert caplog.text == ""


def test_debug_logs_show_no_session_token(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "K", "AWS_SECRET_ACCESS_KEY": "S",
                "AWS_SESSION_TOKEN": "hush"}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.DEBUG):
        assert sent_to(open_bucket("s3://data/x")) == "http://127.0.0.1:9/data"
    assert "hush" not in caplog.text


def test_a_server_that_is_no_s3_server_is_one_line_where_no_object_was_asked_for(no_s3: None) -> None:
    bucket = open_bucket("s3://data/x")
    told = r"^store s3://data/x: the server knows no such bucket \(404\); correct its name, or AWS_ENDPOINT_URL if that"
    for request in (lambda: bucket.put("a", b""), lambda: bucket.list(""), lambda: bucket.delete(["a"])):
        with pytest.raises(StoreError, match=told):
            request()
    with pytest.raises(FileNotFoundError, match=r"^s3://data/x/a$"):
        bucket.get("a")


@pytest.mark.parametrize(
    ("answer", "passing", "remedy"),
    [
        ("HTTP error: error sending request\n 1: invalid peer certificate: UnknownIssuer", False, "set AWS_CA_BUNDLE"),
        ("HTTP error: error sending request\n 1: tcp connect error", True, "check the network and AWS_ENDPOINT_URL"),
        (
            "status code: 403 Forbidden: <Code>InvalidAccessKeyId</Code><AWSAccessKeyId>hush</A",
            False,
            "access key; check",
        ),
        ("status code: 401 Unauthorized: ", False, "access denied; let this user read"),
    ],
)
def test_each_error_of_polars_says_what_to_do(answer: str, passing: bool, remedy: str) -> None:
    trouble = explain_polars(f"object-store error: for path hush/x.parquet: {answer}", "s3://data/x")
    assert trouble.transient == passing
    assert remedy in trouble.text
    assert "hush" not in trouble.text


def test_an_expired_login_says_how_to_renew_it(config: Path) -> None:
    sso = "sso_start_url = https://lab\nsso_region = eu-west-1\nsso_account_id = 1\nsso_role_name = r\n"
    config.write_text(f"[profile lab]\n{sso}endpoint_url = http://127.0.0.1:9\n")
    bucket = open_bucket("s3://data/x")
    for request in (lambda: bucket.list(""), lambda: bucket.polars_options()["credential_provider"]()):
        with pytest.raises(StoreError, match=r"^store s3://data/x: the credentials have expired; .*aws sso login"):
            request()


@pytest.mark.parametrize("prefix", ["a//b", "/b", "b//", ".", "a/..", "a/./b", "../b"])
def test_a_prefix_that_polars_cannot_read_is_refused(prefix: str) -> None:
    with pytest.raises(StoreError, match=r"Polars cannot read below a prefix with '//', '\.' or '\.\.' in it"):
        open_bucket(f"s3://data/{prefix}")


def test_without_credentials_requests_are_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    bucket = open_bucket("s3://data/x")
    assert options(bucket)["aws_skip_signature"] == "true"
    assert bucket.polars_options()["credential_provider"] is None


def test_an_unknown_profile_is_one_line(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="AWS_PROFILE names a profile that"):
        open_bucket("s3://data/x")


@pytest.mark.parametrize(
    "url", ["s3://", "s3://A_B/x", f"s3://KEY:{SECRET}@bucket/x", "s3://bucket/x?secret=1", "s3://b\n"]
)
def test_a_malformed_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(StoreError, match="is no s3://bucket/prefix") as error:
        open_storage(url)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("code", "status", "passing", "remedy"),
    [
        ("NoSuchBucket", 404, False, "create it, or correct the name"),
        ("AccessDenied", 403, False, "let this user read and write the bucket"),
        ("InvalidAccessKeyId", 403, False, "check AWS_PROFILE"),
        ("SignatureDoesNotMatch", 403, False, "secret key does not fit"),
        ("ExpiredToken", 400, False, "log in again"),
        ("EntityTooLarge", 400, False, "an object is larger than the server takes"),
        ("RequestTimeTooSkewed", 403, False, "set the clock"),
        ("PermanentRedirect", 301, False, "set AWS_DEFAULT_REGION"),
        ("AuthorizationHeaderMalformed", 400, False, "set AWS_DEFAULT_REGION"),
        ("NoSuchUpload", 404, True, "try again later"),
        ("SlowDown", 503, True, "try again later"),
        ("InternalError", 500, True, "try again later"),
        *((code, 0, True, "try again later") for code in ("InternalError", "ServiceUnavailable", "SlowDown")),
        ("OperationAborted", 409, True, "try again later"),
        ("429", 429, True, "try again later"),
        ("408", 408, True, "try again later"),
        ("MethodNotAllowed", 405, False, "is AWS_ENDPOINT_URL an S3 server"),
        ("Weird", 418, False, "(Weird); is AWS_ENDPOINT_URL an S3 server"),
    ],
)
def test_each_answer_says_what_to_do(code: str, status: int, passing: bool, remedy: str) -> None:
    error = boto.ClientError(
        {"Error": {"Code": code, "Message": SECRET}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )
    trouble = explain(error, "s3://data/x", "http://host:1", anonymous=False)
    assert trouble is not None
    assert trouble.transient == passing
    assert remedy in trouble.text
    assert trouble.text.startswith("store s3://data/x: ")
    assert "\n" not in trouble.text
    assert SECRET not in trouble.text


@pytest.mark.parametrize(
    ("code", "status", "anonymous", "error"),
    [
        ("NoSuchBucket", 404, False, StoreClosed),
        ("AccessDenied", 403, False, StoreClosed),
        ("AccessDenied", 403, True, StoreClosed),
        ("ExpiredToken", 400, False, StoreClosed),
        ("SlowDown", 503, False, StoreUnavailable),
        ("EntityTooLarge", 400, False, StoreError),
    ],
)
def test_a_store_that_lets_nobody_in_is_told_from_one_request_that_failed(
    code: str, status: int, anonymous: bool, error: type[StoreError]
) -> None:
    """Each run would meet the one, and only some the other."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    trouble = explain(boto.ClientError(answer, "PutObject"), "s3://data/x", None, anonymous=anonymous)  # type: ignore[arg-type]
    assert trouble is not None
    assert type(trouble.error()) is error
    assert (error in OUT_OF_USE) == (error is not StoreError)


@pytest.fixture
def bucket(config: Path) -> Iterator[tuple[Bucket, Stubber]]:
    """A bucket whose answers the test gives."""
    bucket = open_bucket("s3://data/x")
    with Stubber(bucket._client) as stub:
        yield bucket, stub


@pytest.mark.parametrize("code", ["InternalError", "ServiceUnavailable", "SlowDown", "OperationAborted"])
def test_a_key_that_could_not_be_deleted_for_now_is_deleted_by_the_next_try(
    bucket: tuple[Bucket, Stubber], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muon_core.store.storage.FIRST_PAUSE_S", 0.001)
    bucket[1].add_response("delete_objects", {"Errors": [{"Key": "x/a", "Code": code, "Message": "We failed."}]})
    bucket[1].add_response("delete_objects", {})
    patiently(lambda: bucket[0].delete(["a", "b"]), 10)
    bucket[1].assert_no_pending_responses()


@pytest.mark.parametrize("code", ["AccessDenied", f"denied to {SECRET}", SECRET, "", None])
def test_a_key_that_may_not_be_deleted_is_told_without_what_the_server_quotes(
    bucket: tuple[Bucket, Stubber], code: str | None
) -> None:
    error = {"Key": "x/a", "Message": f"{SECRET} may not"} | ({} if code is None else {"Code": code})
    bucket[1].add_response("delete_objects", {"Errors": [error]})
    with pytest.raises(StoreError, match=r"^store s3://data/x: (access denied|the server refuses)") as told:
        bucket[0].delete(["a"])
    assert not isinstance(told.value, StoreUnavailable)
    assert SECRET not in "".join(traceback.format_exception(told.value))


def test_a_missing_object_is_no_trouble_of_the_store() -> None:
    assert (
        explain(boto.ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject"), "s3://d", None, anonymous=False)
        is None
    )


def test_a_password_in_the_endpoint_is_not_repeated() -> None:
    error = boto.EndpointConnectionError(endpoint_url="x")
    trouble = explain(error, "s3://data/x", f"https://user:{SECRET.replace('/', '')}@host:9", anonymous=False)
    assert trouble is not None
    assert trouble.text == "store s3://data/x: no answer from https://host:9 (EndpointConnectionError); " \
        "check the network and AWS_ENDPOINT_URL"  # fmt: skip


def test_a_folder_does_not_load_boto3() -> None:
    code = "import sys, muon_core.store.open as s; s.open_storage('x'); print('boto3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("process", "told"),
    [
        ("false", "the AWS settings cannot be used (CredentialRetrievalError); check ~/.aws/config"),
        ("cat {expired}", "the credentials have expired; log in again (aws sso login) or renew them"),
    ],
)
def test_credentials_that_cannot_be_had_are_told_in_one_line_and_botocore_adds_none(
    process: str, told: str, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, no_s3: None
) -> None:
    expired = tmp_path / "expired.json"
    keys = {"Version": 1, "AccessKeyId": "K", "SecretAccessKey": SECRET, "SessionToken": SECRET}
    expired.write_text(json.dumps(keys | {"Expiration": "2020-01-01T00:00:00Z"}))
    config.write_text(f"[profile lab]\ncredential_process = {process.format(expired=expired)}\n")
    with pytest.raises(StoreError, match=rf"^store s3://data/x: {re.escape(told)}[^\n]*$") as error:
        open_bucket("s3://data/x").list("")
    assert caplog.records == []
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_credentials_that_are_renewed_too_late_are_used_until_then_without_a_word(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From a quarter of an hour before they expire, botocore asks for others at each request."""
    soon, asked = tmp_path / "soon.json", tmp_path / "asked"
    expires = (datetime.now(UTC) + timedelta(minutes=12)).isoformat()
    soon.write_text(json.dumps({"Version": 1, "AccessKeyId": "K", "SecretAccessKey": SECRET, "Expiration": expires}))
    once = tmp_path / "once.sh"
    once.write_text(f"[ -e {asked} ] && exit 1; touch {asked}; cat {soon}\n")
    config.write_text(f"[profile lab]\ncredential_process = sh {once}\n")
    credentials = open_bucket("s3://data/x")._connection.credentials
    assert [credentials.get_frozen_credentials().access_key for _ in range(2)] == ["K", "K"]
    assert caplog.records == []
