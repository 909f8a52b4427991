"""A sweep's workers prove that they write to its store, and are told where its server is."""

from pathlib import Path

import pytest

from muon_core.store.folder import Folder
from muon_core.store.open import open_storage
from muon_core.store.storage import StoreUnwritable
from ray_jobs.same_store import check_mark, marked, store_environment


def test_a_worker_that_opens_another_store_is_told(tmp_path: Path) -> None:
    ours, theirs = Folder(tmp_path / "ours"), Folder(tmp_path / "theirs")
    with marked(ours, "run-queue-1") as mark:
        check_mark(ours, mark)
        with pytest.raises(StoreUnwritable, match=f"finds another store at {theirs.place} than the process"):
            check_mark(theirs, mark)
    assert ours.list("") == []


def test_the_server_travels_and_credentials_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text(
        "[default]\nregion = eu-west-1\nservices = own\n[services own]\ns3 =\n  endpoint_url = http://127.0.0.1:9\n"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage = open_storage("s3://bucket/prefix")
    assert store_environment(storage) == {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "eu-west-1"
    }  # fmt: skip
    assert store_environment(Folder(tmp_path)) == {}
