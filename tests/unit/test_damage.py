"""Objects that cannot be read: each is named in one line, and the rest is read on request."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import test_cli
from support.analysis_fixtures import FakeRun, write_store
from test_cache import Remote
from test_cli import Muon

from analysis.read_errors import explain
from analysis.store import Store, open_store
from muon_core.store.cache import Cached, cached
from muon_core.store.damage import check_objects
from muon_core.store.folder import Folder
from muon_core.store.keys import final_key, pack_key
from muon_core.store.parquet import decode, digest, encode
from muon_core.store.storage import StoreClosed, StoreError, StoreUnavailable
from muon_core.tables import VAL

muon = test_cli.muon
ROWS = [{"run_id": "r", "attempt": 1, "seq": n, "step": n, "tokens": n, "val_loss": 1 / (n + 1)} for n in range(50)]
REPORT = ("report", "demo", "-o", "page", "--metric", "effective_rank", "--projection", "q")
SQL = "SELECT run_id, SUM(val_loss) AS loss FROM val GROUP BY run_id ORDER BY run_id"


def flip(data: bytes, first: int, last: int) -> bytes:
    """`data` with other bits from byte `first` to before byte `last`, counted from the end if negative."""
    changed = bytearray(data)
    for at in range(first, last):
        changed[at] ^= 0x5A
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "pages": lambda data: flip(data, 8, len(data) // 3),
    "footer": lambda data: flip(data, -40, -8),
    "length of the footer": lambda data: data[:-8] + b"\xff\xff\xff\x7f" + data[-4:],
}


@pytest.fixture
def damage(tmp_path: Path) -> Callable[[str], str]:
    """A store of two runs; called with a kind of damage it damages the `val` rows of the first and returns its path."""
    write_store(tmp_path / "results", [FakeRun("muon", seed, {0: 7.0, 200: 3.0}, block="b") for seed in (1, 2)])
    (path,) = (tmp_path / "results").glob("live/table=val/run=muon-s1-*/*.parquet")

    def apply(kind: str) -> str:
        path.write_bytes(DAMAGES[kind](path.read_bytes()))
        return str(path)

    return apply


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("command", [("query", SQL), REPORT], ids=["query", "report"])
def test_a_damaged_object_is_named_in_one_line_and_the_rest_read_on_request(
    muon: Muon, damage: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, kind: str, command: tuple[str, ...]
) -> None:
    path = damage(kind)
    done = muon(*command)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"muon: {path} is {Path(path).stat().st_size} bytes, a damaged object; ")
    assert "set MUON_SKIP_DAMAGED=1 to read the rest" in done.err
    monkeypatch.setenv("MUON_SKIP_DAMAGED", "1")
    done = muon(*command)
    assert done.code == 0, done.err
    if command[0] == "query":
        assert done.out.splitlines()[1:] == ["muon-s2-0badcafe    10"]


def test_a_mistake_in_a_query_does_not_read_the_store_through(muon: Muon, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(Path("results"), [FakeRun("muon", 1, {0: 7.0})])
    monkeypatch.setattr(Store, "damaged", lambda self: pytest.fail("read through"))
    for sql in ("SELECT los FROM val", "SELECT * FORM val", "SELECT CAST(run_id AS INT) FROM val"):
        done = muon("query", sql)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err


def test_an_error_of_polars_over_whole_objects_stays_what_it_is(tmp_path: Path) -> None:
    write_store(tmp_path, [FakeRun("muon", 1, {0: 7.0})])
    from polars.exceptions import ComputeError

    assert open_store(tmp_path).damaged() is None
    assert explain(ComputeError("parquet: of another store"), str(tmp_path)) is None
    assert explain(ValueError("parquet"), str(tmp_path)) is None


def test_checksums_tell_flipped_bits_that_would_read_as_other_numbers() -> None:
    data = encode(ROWS, VAL)
    assert decode(data)["val_loss"].to_pylist() == [row["val_loss"] for row in ROWS]
    import pyarrow as pa
    import pyarrow.parquet as pq

    losses = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(VAL.schema.names.index("val_loss"))
    last = losses.data_page_offset + losses.total_compressed_size - 1
    with pytest.raises(OSError, match="CRC"):
        decode(flip(data, last, last + 1))


def final_of(data: bytes) -> str:
    """Key of a final of another run for each content."""
    return final_key("val", f"r{digest(data)[:4]}", "00001.ab", 50, digest(data))


def test_a_glance_finds_flipped_bits_where_a_digest_tells_and_a_thorough_look_all(tmp_path: Path) -> None:
    storage, data = Folder(tmp_path), encode(ROWS, VAL)
    pack = pack_key("val", digest(data))
    changes = {"flipped": flip(data, 8, 9), "cut": data[:-1], "empty": b""}
    objects = {f"live/{change}": changed for change, changed in changes.items()} | {"live/whole": data}
    objects |= {final_of(data): data, pack: changes["flipped"]}
    for key, content in objects.items():
        storage.put(key, content)
    sizes = {key: len(content) for key, content in objects.items()} | {"live/removed": 9}
    check = partial(check_objects, storage, sizes)
    assert set(check(thorough=False).damaged) == {"live/cut", "live/empty", pack}
    assert set(check(thorough=True).damaged) == {"live/cut", "live/empty", pack, "live/flipped"}


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize("change", [lambda data: bytes(len(data)), lambda data: flip(data, 8, 9)], ids=["0", "bit"])
def test_a_damaged_copy_is_fetched_anew_and_the_object_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes], thorough: bool
) -> None:
    """Of the right length: a power cut leaves zeros."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = encode(ROWS, VAL)
    key = final_of(data)
    remote = Remote(tmp_path / "store", "http://here/bucket/x")
    remote.put(key, data)
    store, sizes = cached(remote), {key: len(data)}
    assert isinstance(store, Cached)
    copy = Path(store.local_copies(sizes).files[key])
    copy.write_bytes(change(data))
    assert check_objects(store, sizes, thorough=thorough) == ([], {key: str(copy)})
    assert copy.read_bytes() == data
    assert remote.fetched == [key] * 2


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("400 Bad Request: <Error><Code>AuthorizationHeaderMalformed</Code>", StoreError, "lies in another region"),
        ("403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code>", StoreClosed, "set the clock"),
        ("403 Forbidden: ", StoreClosed, "access denied"),
        ("503 Service Unavailable: <Error><Code>SlowDown</Code>", StoreUnavailable, "overloaded or failing (SlowDown)"),
        ("404 Not Found: <Error><Code>NoSuchKey</Code>", StoreUnavailable, "removed while it was read; ask again"),
    ],
)
def test_what_polars_says_of_a_server_becomes_one_line(text: str, kind: type[StoreError], told: str) -> None:
    error = OSError(
        f"object-store error: Server returned non-2xx status code: {text} <AWSAccessKeyId>AK</AWSAccessKeyId>"
    )
    found = explain(error, "s3://data/x")
    assert type(found) is kind
    assert str(found).startswith("store s3://data/x: ")
    assert told in str(found)
    assert "AK" not in str(found)


def test_a_server_that_went_away_under_polars_is_no_trouble_of_ray() -> None:
    error = ConnectionRefusedError(
        "object-store error: error sending request (path: s3://data/x)\n\nCaused by:\n 0: tcp"
    )
    found = explain(error, "s3://data/x")
    assert type(found) is StoreUnavailable
    assert str(found) == "store s3://data/x: no answer from the server; check the network and AWS_ENDPOINT_URL"
    assert explain(ConnectionError("no Ray"), "s3://data/x") is None
