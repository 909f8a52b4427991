"""Training, compaction and reading through a network that fails a fifth of the requests, and uploads that break off."""

import random
import time
from pathlib import Path

import pytest
import torch
from servers.fault_proxy import FAULTS, FaultProxy, Upload
from servers.fixtures import fresh_url
from servers.s3_servers import S3Server
from servers.whole_tables import assert_same_tables
from support.saved_runs import weights

from muon_core.config.run import RunConfig
from muon_core.progress import Progress
from muon_core.store.compaction import compact
from muon_core.store.folder import Folder
from muon_core.store.open import open_storage
from muon_core.store.reader import list_keys, read_statuses
from muon_core.store.s3 import bucket as s3
from muon_core.store.s3 import connection as s3_connection
from muon_core.store.storage import StoreUnavailable, patiently
from muon_core.train import train

PATIENCE_S = 60.0
SERVERS_NOTICE_S = 0.5  # that a connection is gone


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives a silent server up in a few seconds, sends checkpoints in parts, and keeps no copies."""
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 32 << 10)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)  # servers take smaller parts only as the last
    monkeypatch.setattr(s3_connection, "READ_TIMEOUT_S", 3)
    monkeypatch.setattr(s3_connection, "POLARS_TIMEOUT_S", 4)
    monkeypatch.setenv("MUON_CACHE_BYTES", "0")


def tracked(run_config: RunConfig) -> RunConfig:
    """That run with a checkpoint and rows of every table at every other step."""
    tracking = run_config.tracking.replace(log_every=1, eval_every=2, track_every=2, spectra_every=2, flush_every_s=0.1)
    checkpoint = run_config.checkpoint.replace(every_steps=2, every_s=None)
    return run_config.replace(tracking=tracking, checkpoint=checkpoint)


def test_a_training_through_a_failing_network_equals_one_in_a_folder(
    faults: FaultProxy, impatient: None, run_config: RunConfig, tmp_path: Path
) -> None:
    config, whole = tracked(run_config), Folder(tmp_path)
    train(config, whole)
    faults.rate, faults.faults = 0.2, (*FAULTS, "silent")
    storage = open_storage(fresh_url())

    def half_way(progress: Progress) -> bool:
        return progress.step < config.steps // 2

    assert train(config, storage, report=half_way).status == "stopped"
    assert train(config, storage).steps == config.steps
    assert patiently(lambda: compact(storage, grace_s=-60.0), PATIENCE_S).problems == {}
    patiently(lambda: assert_same_tables(storage.url, whole.url), PATIENCE_S)
    failed = faults.counts.total() - faults.counts["ok"]
    print(f"{failed} of {faults.counts.total()} requests failed: {dict(faults.counts)}")
    assert all(faults.counts[fault] for fault in faults.faults)
    assert failed > faults.counts.total() / 10
    faults.rate = 0.0
    assert read_statuses(storage) == {config.run_id: "done"}
    assert list_keys(storage, "live/") == []
    ours, theirs = weights(storage, config), weights(whole, config)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("size", [100, 64 << 10, 9 << 20])
def test_half_an_upload_is_neither_listed_nor_read(
    size: int, faults: FaultProxy, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_connection, "TRIES", 1)
    storage, data = open_storage(fresh_url()), random.Random(size).randbytes(size)
    storage.put("before", b"")
    uploads: list[Upload] = []
    faults.watch = uploads.append
    faults.script.append("half_sent")
    with pytest.raises(StoreUnavailable, match="no answer from"):
        storage.put("a", data)
    assert size // 2 <= uploads[-1].sent < size
    for pause in (0.0, SERVERS_NOTICE_S):
        time.sleep(pause)
        assert storage.list("") == [("before", 0)]
        with pytest.raises(FileNotFoundError):
            storage.get("a")
    storage.put("a", data)
    assert storage.get("a") == data


def test_half_an_upload_leaves_an_object_of_that_name_as_it_was(
    faults: FaultProxy, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a request that the server has carried out is sent again, because its answer was lost."""
    monkeypatch.setattr(s3_connection, "TRIES", 1)
    storage, data = open_storage(fresh_url()), bytes(1 << 20)
    storage.put("a", data)
    faults.script.append("half_sent")
    with pytest.raises(StoreUnavailable, match="no answer from"):
        storage.put("a", data)
    time.sleep(SERVERS_NOTICE_S)
    assert storage.get("a") == data
