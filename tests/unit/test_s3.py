"""What an s3:// URL and the ambient AWS settings turn into, and what each error says. No server is asked."""

import subprocess
import sys
from pathlib import Path

import pytest
from botocore import exceptions as boto
from servers.fixtures import clear_aws

from muon_core.s3 import Bucket, open_bucket
from muon_core.s3_errors import explain
from muon_core.storage import StoreError, open_storage

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


def test_virtual_host_style_of_a_profile_is_kept(config: Path) -> None:
    style = "endpoint_url = https://s3.lab\ns3 =\n  addressing_style = virtual\n"
    config.write_text(config.read_text() + style)
    chosen = options(open_bucket("s3://data/x"))
    assert chosen["aws_endpoint_url"] == "https://data.s3.lab"
    assert chosen["aws_virtual_hosted_style_request"] == "true"


def test_on_aws_no_endpoint_is_named_and_the_bucket_tells_its_region(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = open_bucket("s3://data/x")
    monkeypatch.setattr(bucket._client, "head_bucket", lambda **_: {"BucketRegion": "ap-south-1"})
    assert options(bucket) == {"aws_region": "ap-south-1", "timeout": "60s", "connect_timeout": "5s"}


def test_without_credentials_requests_are_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    bucket = open_bucket("s3://data/x")
    assert options(bucket)["aws_skip_signature"] == "true"
    assert bucket.polars_options()["credential_provider"] is None


def test_an_unknown_profile_is_one_line(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="AWS_PROFILE names a profile that"):
        open_bucket("s3://data/x")


@pytest.mark.parametrize("url", ["s3://", "s3://A_B/x", f"s3://KEY:{SECRET}@bucket/x", "s3://bucket/x?secret=1"])
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
        ("RequestTimeTooSkewed", 403, False, "set the clock"),
        ("PermanentRedirect", 301, False, "set AWS_DEFAULT_REGION"),
        ("AuthorizationHeaderMalformed", 400, False, "set AWS_DEFAULT_REGION"),
        ("SlowDown", 503, True, "try again later"),
        ("InternalError", 500, True, "try again later"),
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
    assert trouble.passing == passing
    assert remedy in trouble.text
    assert trouble.text.startswith("store s3://data/x: ")
    assert "\n" not in trouble.text
    assert SECRET not in trouble.text


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
    code = "import sys, muon_core.storage as s; s.open_storage('x'); print('boto3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
