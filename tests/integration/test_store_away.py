"""A store that goes away while a run trains and stays away: the run ends with that error, and loses nothing."""

import logging
from pathlib import Path
from typing import Any

import pytest
from test_resume import assert_same_run, rows

from analysis.store import open_store
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.store.storage import StoreUnavailable
from muon_core.store.writer import RunWriter
from muon_core.tables import SERIES
from muon_core.train import train
from ray_jobs.cli.main import EXIT_UNREACHABLE, main

pytestmark = pytest.mark.slow
AWAY = "store s3://b/p: no answer from http://h; check the network and AWS_ENDPOINT_URL"


class Leaving(Folder):
    """A folder that takes nothing any more from the `nth` put below `prefix` on, until it is `back`."""

    def __init__(self, root: Path, prefix: str, nth: int) -> None:
        super().__init__(root)
        self._prefix, self._left, self.back = prefix, nth, False

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._left -= key.startswith(self._prefix)
        if self._left <= 0 and not self.back:
            raise StoreUnavailable(AWAY)
        super().put(key, data)


@pytest.fixture(scope="module")
def config(small: dict[str, Any]) -> RunConfig:
    """Eight steps; rows are flushed and the state is saved after every second, whatever the clock says."""
    return flushed(RunConfig.model_validate(small), every_s=1e9).replace(checkpoint={"every_steps": 2})


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of that run where the store stays."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(config, Folder(folder)).status == "done"
    return folder


def flushed(config: RunConfig, every_s: float) -> RunConfig:
    return config.replace(tracking=config.tracking.model_dump() | {"flush_every_s": every_s})


@pytest.fixture(autouse=True)
def _small_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = RunWriter.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "patience_s", 0.05)
    monkeypatch.setattr("muon_core.resume.PATIENCE_S", 0.05)
    monkeypatch.setattr("muon_core.store.storage.FIRST_PAUSE_S", 0.01)


@pytest.mark.parametrize(
    ("prefix", "nth", "saved_at"),
    [
        ("live/", 1, 0),
        ("checkpoints/", 4, 4),  # the config is the first
        ("live/table=layers/", 3, 6),  # there are rows of steps 0, 4 and 8
        ("final/table=val/", 1, 8),
        ("final/table=runs/", 1, 8),
    ],
)
def test_a_run_whose_store_stays_away_ends_so_and_continues_bitwise(
    tmp_path: Path, config: RunConfig, whole: Path, prefix: str, nth: int, saved_at: int
) -> None:
    store = Leaving(tmp_path / "left", prefix, nth)
    with pytest.raises(StoreUnavailable, match=r"no answer from http://h; .* \(gave up after 0 s\)$"):
        train(config, store)
    assert open_store(store.root).runs.collect()["status"].to_list() == ["running"]  # its end could not be told either
    for table in SERIES:
        left, uninterrupted = rows(store.root, table), rows(whole, table)
        assert left.equals(uninterrupted.head(left.height)), table
    store.back = True
    steps: list[int] = []
    assert train(config, store, report=lambda progress: steps.append(progress.step) is None).status == "done"
    begun = [0] if saved_at == 0 else []  # before the first evaluation
    assert steps == [*begun, *range(saved_at, config.steps + 1)]
    assert_same_run(store.root, whole, config)


def test_a_store_that_is_back_for_the_end_hears_why_the_run_stopped(tmp_path: Path, config: RunConfig) -> None:
    class Back(Leaving):
        def put(self, key: str, data: bytes | memoryview) -> None:
            self.back = key.startswith(("live/", "final/")) and self._left <= 0
            super().put(key, data)

    store = Back(tmp_path, "checkpoints/", 3)
    with pytest.raises(StoreUnavailable, match="gave up after"):
        train(config, store)
    (run,) = open_store(tmp_path).runs.collect().rows(named=True)
    assert run["status"] == "stopped"
    assert AWAY in run["error"]


def test_pretrain_says_so_in_one_line_and_its_exit_code(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Leaving(tmp_path / "store", "live/", 3)
    monkeypatch.setattr("ray_jobs.cli.pretrain.open_storage", lambda _: store)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    (tmp_path / "run.yaml").write_text(flushed(config, every_s=1e-6).model_dump_json())
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(tmp_path / "run.yaml"), "--store", store.url])
    assert ended.value.code == EXIT_UNREACHABLE == 7
    assert capsys.readouterr().err.splitlines()[-1] == f"muon: {AWAY} (gave up after 0 s)"
