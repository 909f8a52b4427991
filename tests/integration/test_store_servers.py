"""The store alike in a folder and on real S3 servers: objects, rows, compaction, and errors that say what to do."""

import logging
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from botocore.paginate import Paginator
from servers.fault_proxy import FaultProxy
from servers.fixtures import CHECKING_SIGNATURES, Servers, clear_aws, enter, fresh_url
from servers.s3_servers import BUCKET, S3Server, client, free_port

from analysis.store import open_store
from muon_core.store.compaction import compact
from muon_core.store.open import open_storage
from muon_core.store.reader import read_statuses
from muon_core.store.s3 import bucket as s3
from muon_core.store.s3 import connection as s3_connection
from muon_core.store.storage import Storage, StoreError, StoreUnavailable, check_writable, store_time
from muon_core.store.writer import RunWriter
from ray_jobs.cli.main import main

AT_ONCE = -60.0
START = {"arm_id": "muon-1", "arm": "muon", "seed": 1, "optimizer": "muon"}


def train(storage: Storage, run: str, steps: int = 8) -> None:
    """A run that is killed once: attempt 1 writes too far, attempt 2 goes on from its barrier."""
    first = RunWriter(storage, run, START)
    write(first, 0, steps // 2)
    point = first.barrier()
    write(first, steps // 2, steps)
    second = RunWriter(storage, run, START, parent=point.attempt, resume_seq=point.seq)
    write(second, steps // 2, steps)
    write(first, steps, 2 * steps)  # a zombie
    second.end(status="done", final_val_loss=0.5)


def write(writer: RunWriter, first: int, last: int) -> None:
    for step in range(first, last):
        writer.emit("train", step=step, tokens=0, train_loss=1 / (step + 1))
        writer.emit("val", step=step, tokens=0, val_loss=float(step))
        if step % 3 == 0:
            writer.flush()
    writer.flush()


def read(storage: Storage, table: str) -> pl.DataFrame:
    order = ["run_id"] if table == "runs" else ["run_id", "seq"]
    return open_store(storage.url).table(table).sort(order).collect()


def test_objects_are_written_listed_read_and_removed(storage: Storage) -> None:
    objects = {f"a/{n}": b"x" * n for n in range(5)} | {"b/ä": b"text"}
    for key, data in objects.items():
        storage.put(key, data)
    assert dict(storage.list("a/")) == {f"a/{n}": n for n in range(5)}
    assert storage.list("nothing/") == []
    assert storage.get_many(objects) == list(objects.values())
    storage.delete(["a/0", "a/1", "a/1", "never"])
    assert [key for key, _ in storage.list("")] == ["a/2", "a/3", "a/4", "b/ä"]
    with pytest.raises(FileNotFoundError):
        storage.get("a/0")
    check_writable(storage)


def many(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """As many objects as are fetched directly, under a lower bound."""
    objects = {f"a/run={n}/ä b.{n}": b"x" * n for n in range(1, 9)}
    storage.put_many(objects)
    monkeypatch.setattr(s3, "MANY", len(objects))
    return objects


def assert_fetched_directly(storage: Storage, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(s3.Bucket, "get", lambda self, key: pytest.fail(f"{key} took an ordinary request"))
        assert storage.get_many(objects) == list(objects.values())


def test_many_objects_are_fetched_without_an_ordinary_request(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(s3_url)
    objects = many(storage, monkeypatch)
    assert_fetched_directly(storage, objects, monkeypatch)
    with pytest.raises(FileNotFoundError, match="a/never"):
        storage.get_many([*objects, "a/never"])


def test_what_fails_of_many_objects_is_fetched_again(faults: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(fresh_url())
    objects = many(storage, monkeypatch)
    faults.script.extend(["reset_before", "slow_down", "truncated", "reset_after"])
    assert storage.get_many(objects) == list(objects.values())
    assert not faults.script


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> memoryview:
    """An object of three parts, under a lower bound for those that are sent so."""
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 1 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    return memoryview(b"0123456789abcdef" * (11 << 16))


def test_a_large_object_is_sent_in_parts(storage: Storage, large: memoryview) -> None:
    storage.put("a/large", large)
    storage.put("a/small", large[:10])
    assert storage.get("a/large") == large
    assert storage.list("a/") == [("a/large", 11 << 20), ("a/small", 10)]


def test_an_upload_that_fails_in_the_middle_leaves_nothing(
    faults: FaultProxy, s3_server: S3Server, large: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_connection, "TRIES", 1)
    storage = open_storage(fresh_url())
    faults.script.extend(["ok", "reset_before"])  # it begins, and its first part is lost
    with pytest.raises(StoreUnavailable, match="no answer from"):
        storage.put("large", large)
    assert storage.list("") == []
    prefix = storage.uri("large").removeprefix(f"s3://{BUCKET}/")
    uploads = client(s3_server).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert prefix not in {upload["Key"] for upload in uploads}


def test_an_upload_whose_last_answer_is_lost_is_complete(faults: FaultProxy, large: memoryview) -> None:
    storage = open_storage(fresh_url())
    faults.script.extend(["ok"] * 4 + ["reset_after"])  # its beginning, three parts, its end
    storage.put("large", large)
    assert faults.counts["reset_after"] == 1
    assert storage.get("large") == large


def test_objects_carry_the_time_of_the_stores_clock(storage: Storage) -> None:
    before = store_time(storage)
    storage.put("a", b"")
    assert before <= storage.stat("")[0].modified <= store_time(storage) + 1  # Swift counts whole seconds


def test_listing_pages_through_more_objects_than_one_answer_holds(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(s3_url)
    for n in range(7):
        storage.put(f"a/{n}", b"")
    paginate, pages = Paginator.paginate, list[int]()

    def counted(self: Any, **request: Any) -> Iterator[Any]:
        for page in paginate(self, **request):
            pages.append(page["KeyCount"])
            yield page

    monkeypatch.setattr(s3, "LIST_PAGE", 2)
    monkeypatch.setattr(Paginator, "paginate", counted)
    assert [key for key, _ in storage.list("a/")] == [f"a/{n}" for n in range(7)]
    assert pages == [2, 2, 2, 1]


def test_each_row_is_read_once_before_and_after_compaction(storage: Storage) -> None:
    for run in ("r1", "r2"):
        train(storage, run)
    before = {table: read(storage, table) for table in ("train", "val", "runs")}
    done = compact(storage, grace_s=AT_ONCE)
    assert done.problems == {}
    assert storage.list("live/") == []
    for table, frame in before.items():
        assert read(storage, table).equals(frame)
    assert before["val"]["step"].to_list() == list(range(8)) * 2
    assert before["val"]["attempt"].to_list() == ([1] * 4 + [2] * 4) * 2
    assert read_statuses(storage) == {"r1": "done", "r2": "done"}


def test_many_runs_write_at_once_without_coordination(storage: Storage) -> None:
    threads = [threading.Thread(target=train, args=(storage, f"r{n}")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    frame = read(storage, "val")
    assert frame.group_by("run_id").len()["len"].to_list() == [8] * 4


def test_a_silent_server_is_asked_again(faults: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_connection, "READ_TIMEOUT_S", 1)
    storage = open_storage(fresh_url())
    faults.script.append("silent")
    storage.put("a", b"1")
    assert storage.get("a") == b"1"
    assert faults.counts["silent"] == 1


def test_a_truncated_download_is_repeated(faults: FaultProxy) -> None:
    storage = open_storage(fresh_url())
    storage.put("a", b"0123456789")
    faults.script.extend(["truncated", "truncated"])
    assert storage.get("a") == b"0123456789"


def test_polars_scans_through_a_proxy_that_fails_a_fifth_of_the_requests(faults: FaultProxy) -> None:
    storage = open_storage(fresh_url())
    train(storage, "r")
    faults.rate = 0.2
    assert read(storage, "val").height == 8


def test_a_missing_bucket_is_one_line(s3_server: S3Server) -> None:
    with pytest.raises(StoreError, match=r"^store s3://no-such-bucket/x: there is no such bucket; create it, or"):
        check_writable(open_storage("s3://no-such-bucket/x"))


def test_an_unreachable_server_is_one_line(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setattr(s3_connection, "TRIES", 1)
    with pytest.raises(
        StoreUnavailable, match=f"no answer from {endpoint} .*; check the network and AWS_ENDPOINT_URL$"
    ):
        open_storage("s3://muon/x").list("")


@pytest.mark.parametrize("name", CHECKING_SIGNATURES)
def test_a_wrong_secret_is_one_line_without_it(name: str, s3_servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(s3_servers.get(name), monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    with pytest.raises(StoreError, match="secret key does not fit the access key; check AWS_PROFILE") as error:
        open_storage("s3://muon/x").list("")
    assert "hush" not in str(error.value)
    assert "tester" not in str(error.value)


@pytest.mark.parametrize("name", CHECKING_SIGNATURES)
@pytest.mark.parametrize("minutes", [-60, 60])
def test_a_client_whose_clock_is_off_is_told_so(
    name: str, minutes: int, s3_servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(s3_servers.get(name), monkeypatch)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: datetime.now(UTC) + timedelta(minutes=minutes))
    with pytest.raises(StoreError, match=r"clock differs too much from the server's; set the clock \(NTP\)$"):
        open_storage("s3://muon/x").list("")


@pytest.mark.s3
def test_a_client_of_another_region_is_told_so_where_its_requests_do_not_follow(
    s3_servers: Servers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """boto3 follows the server to the region it expects; Polars, which reads what was not copied here, does not."""
    enter(s3_servers.get("swift"), monkeypatch)
    url = fresh_url()
    train(open_storage(url), "r")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    monkeypatch.setenv("MUON_CACHE_BYTES", "0")
    with pytest.raises(SystemExit) as stop:
        main(["query", "SELECT step, val_loss FROM val", "--store", url])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"muon: store {url}: the bucket lies in another region; "
        "set AWS_DEFAULT_REGION, or `region` of the profile, to the bucket's own\n"
    )


def ask(url: str, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str]:
    """Exit code and stderr of a query that reads the objects of `url` through Polars."""
    with pytest.raises(SystemExit) as stop:
        main(["query", "SELECT step, val_loss FROM val", "--store", url])
    return stop.value.code, capsys.readouterr().err


@pytest.fixture
def for_polars(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes storage options and credentials that Polars gets, and nobody else; nothing is read from the cache."""
    monkeypatch.setenv("MUON_CACHE_BYTES", "0")
    honest = s3_connection.Connection.polars_options

    def change(options: dict[str, Any], keys: dict[str, str]) -> None:
        def changed(*arguments: Any) -> dict[str, Any]:
            given = honest(*arguments)
            keys_of = given["credential_provider"]
            return {
                "storage_options": given["storage_options"] | options,
                "credential_provider": lambda: (keys_of()[0] | keys, None),
            }

        monkeypatch.setattr(s3_connection.Connection, "polars_options", changed)

    return change


@pytest.mark.parametrize("name", CHECKING_SIGNATURES)
def test_a_refusal_that_only_polars_meets_is_one_line_without_the_key(
    name: str,
    s3_servers: Servers,
    for_polars: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    enter(s3_servers.get(name), monkeypatch)
    url = fresh_url()
    train(open_storage(url), "r")
    for_polars({}, {"aws_secret_access_key": "hush-hush"})
    with caplog.at_level(logging.DEBUG):
        code, told = ask(url, capsys)
    assert (code, told) == (
        7,
        f"muon: store {url}: the secret key does not fit the access key; "
        "check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY\n",
    )
    assert "the error was raised here" in caplog.text
    assert "tester" not in caplog.text
    assert "hush" not in caplog.text


def test_a_network_error_that_only_polars_meets_is_one_of_the_store(
    s3_url: str, for_polars: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    train(open_storage(s3_url), "r")
    for_polars({"aws_endpoint_url": f"http://127.0.0.1:{free_port()}", "max_retries": 0}, {})
    assert ask(s3_url, capsys) == (
        7,
        f"muon: store {s3_url}: no answer from the server; check the network and AWS_ENDPOINT_URL\n",
    )


def test_a_server_with_a_certificate_of_its_own_is_read_through_polars_too(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lab -keyout {key} -out {certificate}"
    extensions = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*command.split(), *extensions], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", "")  # what the code sets goes with the test
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("MUON_CACHE_BYTES", "0")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    proxy = FaultProxy(s3_server.endpoint)
    proxy._server.socket = context.wrap_socket(proxy._server.socket, server_side=True)
    with proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint.replace("http:", "https:"))
        storage = open_storage(fresh_url())
        train(storage, "r")
        assert read(storage, "val").height == 8
        assert_fetched_directly(storage, many(storage, monkeypatch), monkeypatch)


@pytest.mark.s3
def test_a_private_bucket_without_credentials_says_how_to_give_them(
    s3_servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear_aws(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_servers.get("swift").endpoint)
    with pytest.raises(StoreError, match="no AWS credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID"):
        open_storage("s3://muon/x").list("")


@pytest.mark.s3
def test_a_public_bucket_is_read_without_credentials(s3_servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """ministack checks no signatures, so every bucket is public there; the request must not be signed either."""
    server = s3_servers.get("ministack")
    clear_aws(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    storage = open_storage(fresh_url())
    train(storage, "r")
    assert read(storage, "val").height == 8
    assert storage.polars_options()["storage_options"]["aws_skip_signature"] == "true"
