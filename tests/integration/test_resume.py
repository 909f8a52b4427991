"""A run that was stopped, killed or moved goes on as if nothing had happened: the same rows and weights."""

import hashlib
import io
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from support.ranks import start_process
from support.saved_runs import steps_reported, train_until, weights

from analysis.store import open_store
from muon_core import checkpoint
from muon_core.checkpoint import CheckpointError
from muon_core.config.run import RunConfig
from muon_core.progress import Progress
from muon_core.store.folder import Folder
from muon_core.store.keys import parse_checkpoint
from muon_core.store.reader import read_attempts
from muon_core.store.storage import Listed, StoreUnavailable
from muon_core.store.writer import ResumePoint, RunWriter
from muon_core.tables import SERIES
from muon_core.throughput import COLUMNS
from muon_core.train import train
from ray_jobs.cli.main import main
from search_spaces.run_file import resolve_run

pytestmark = pytest.mark.slow
MUON = str(Path(sys.executable).with_name("muon"))
TIMING = ("attempt", "step_time_s", "tokens_per_s", "elapsed_s", *COLUMNS)


@pytest.fixture(scope="module")
def run_file(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that has state: noise, dropout, momentum, peaks; of one layer, for it is trained often."""
    fields = {
        "model": small["model"] | {"num_layers": 1, "dropout": 0.1},
        "optimizer": {"name": "orthonoise", "alpha": 0.1, "ns_dtype": "fp32"},
        "steps": 12,
        "micro_batches": 2,
        "tracking": {"eval_every": 3, "track_every": 3, "spectra_every": 5},
        "checkpoint": {"every_steps": 4},
    }
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text(RunConfig.model_validate(small | fields).model_dump_json())  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def config(run_file: Path) -> RunConfig:
    """That run as the command resolves it: its corpus goes by its hash."""
    return resolve_run(str(run_file), None, {})


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of that run, trained without interruption; how often it saved itself shows nowhere in it."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(config, Folder(folder)).status == "done"
    return folder


@pytest.fixture(scope="module")
def cut_once(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of that run after it died at step 6; its checkpoint is of step 4."""
    folder = tmp_path_factory.mktemp("cut")
    train_until(Folder(folder), config, 6)
    return folder


@pytest.fixture
def cut(cut_once: Path, tmp_path: Path) -> Path:
    """That store, to be changed."""
    return shutil.copytree(cut_once, tmp_path / "cut")


def rows(store: Path, table: str) -> pl.DataFrame:
    return open_store(store).table(table).drop(TIMING, strict=False).sort("seq").collect()


def assert_same_run(a: Path, b: Path, config: RunConfig) -> None:
    for table in SERIES:
        left, right = rows(a, table), rows(b, table)
        assert left.height > 0
        assert left.equals(right), table
    left_weights, right_weights = weights(Folder(a), config), weights(Folder(b), config)
    assert all(torch.equal(left_weights[name], right_weights[name]) for name in left_weights)


Pretrain = Callable[[Path], tuple[Any, list[str]]]


@pytest.mark.parametrize(("died_at", "saved_at"), [(0, 0), (1, 0), (4, 0), (5, 4), (8, 4), (11, 8), (12, 8)])
def test_a_run_that_died_continues_bitwise(
    tmp_path: Path, whole: Path, config: RunConfig, died_at: int, saved_at: int
) -> None:
    train_until(Folder(tmp_path / "killed"), config, died_at)
    begun = [0] if saved_at == 0 else []  # before the first evaluation
    assert steps_reported(Folder(tmp_path / "killed"), config) == [*begun, *range(saved_at, 13)]
    assert_same_run(tmp_path / "killed", whole, config)


@pytest.mark.parametrize("optimizer", ["soap", "normuon"])
def test_an_optimizer_with_another_state_continues_bitwise(tmp_path: Path, config: RunConfig, optimizer: str) -> None:
    """Bases of another shape than the weight's, and a number for each row; momentum's columns too."""
    fields = {"name": optimizer} | ({"precondition_frequency": 3} if optimizer == "soap" else {"lr": 0.005})
    other = config.replace(optimizer=fields)
    assert train(other, Folder(tmp_path / "whole")).status == "done"
    train_until(Folder(tmp_path / "killed"), other, 8)
    assert steps_reported(Folder(tmp_path / "killed"), other) == list(range(4, 13))
    assert_same_run(tmp_path / "killed", tmp_path / "whole", other)
    shown = rows(tmp_path / "whole", "layers").filter(pl.col("step") > 0)["momentum_left_alignment"]
    assert shown.null_count() == 0
    assert shown.max() > 0


def test_a_run_that_died_again_and_again_continues_bitwise(tmp_path: Path, whole: Path, config: RunConfig) -> None:
    for step in (5, 7, 10, 3 + 8):
        train_until(Folder(tmp_path / "killed"), config, step)
    train(config, Folder(tmp_path / "killed"))
    assert_same_run(tmp_path / "killed", whole, config)
    assert open_store(tmp_path / "killed").runs.collect()["attempts"].to_list() == [5]


def test_a_stopped_run_saves_itself_and_loses_no_step(tmp_path: Path, whole: Path, config: RunConfig) -> None:
    rare = config.replace(checkpoint={"every_s": None})
    outcome = train(rare, Folder(tmp_path / "stopped"), report=lambda progress: progress.step < 7)
    assert (outcome.status, outcome.steps) == ("stopped", 7)
    assert steps_reported(Folder(tmp_path / "stopped"), rare) == list(range(7, 13))
    assert_same_run(tmp_path / "stopped", whole, rare)


def test_the_clock_saves_a_run_without_a_step_period(tmp_path: Path, whole: Path, config: RunConfig) -> None:
    usual = RunConfig().checkpoint
    assert (usual.every_s, usual.every_steps) == (60, None)
    for name, every_s in (("never", None), ("seldom", 3600), ("often", 1e-6)):
        train_until(Folder(tmp_path / name), config.replace(checkpoint={"every_s": every_s}), 6)
    assert checkpoint.saved(Folder(tmp_path / "never"), config.run_id) == []
    assert checkpoint.saved(Folder(tmp_path / "seldom"), config.run_id) == []
    kept = checkpoint.saved(Folder(tmp_path / "often"), config.run_id)
    assert [(item.name, item.step) for item in kept] == [("latest", 5), ("latest", 4)]
    assert steps_reported(Folder(tmp_path / "often"), config) == list(range(5, 13))
    assert_same_run(tmp_path / "often", whole, config)


def test_a_run_begun_again_goes_on_from_its_own_checkpoints(tmp_path: Path, whole: Path, config: RunConfig) -> None:
    train(config, Folder(tmp_path / "again"))
    train_until(
        Folder(tmp_path / "again"), config.replace(checkpoint={"every_steps": 4, "keep_last": 1}), 9, resume=False
    )
    assert steps_reported(Folder(tmp_path / "again"), config) == list(range(8, 13))
    assert set(rows_with_attempt(tmp_path / "again")) == {2, 3}
    assert_same_run(tmp_path / "again", whole, config)


def rows_with_attempt(store: Path) -> list[int]:
    return open_store(store).train.collect()["attempt"].to_list()


class Absent(Folder):
    """A folder that does not answer the first three times a checkpoint is asked for or written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.refused = Counter[str]()

    def _refuse(self, key: str) -> None:
        if key.startswith("checkpoints/") and self.refused[key] < 3:
            self.refused[key] += 1
            raise StoreUnavailable("no answer")

    def put(self, key: str, data: bytes) -> None:
        self._refuse(key)
        super().put(key, data)

    def get(self, key: str) -> bytes:
        self._refuse(key)
        return super().get(key)

    def stat(self, prefix: str) -> list[Listed]:
        self._refuse(prefix)
        return super().stat(prefix)

    def keys(self, prefix: str) -> list[str]:
        self._refuse(prefix)
        return super().keys(prefix)


def test_checkpoints_wait_for_a_store_that_is_away(
    tmp_path: Path, whole: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muon_core.store.storage.FIRST_PAUSE_S", 0.01)
    store = Absent(tmp_path / "absent")
    assert train(config, store, report=lambda progress: progress.step < 7).status == "stopped"
    assert train(config, store).status == "done"
    assert store.refused.total() > 12
    assert_same_run(tmp_path / "absent", whole, config)


def test_resuming_with_other_micro_batches_differs_only_in_rounding(tmp_path: Path, config: RunConfig) -> None:
    plain = config.replace(model=config.model.replace(dropout=0.0))  # dropout is keyed by micro-batch
    train_until(Folder(tmp_path / "moved"), plain, 6)
    moved = train(plain.replace(micro_batches=4), Folder(tmp_path / "moved")).final
    whole = train(plain, None).final
    assert moved is not None
    assert whole is not None
    assert moved.val_loss == pytest.approx(whole.val_loss, abs=1e-3)


def test_milestones_are_kept_and_rolling_checkpoints_pruned(tmp_path: Path, config: RunConfig) -> None:
    per_step = config.tokens_per_step  # 256
    config = config.replace(
        checkpoint={"every_steps": 2, "milestones": [per_step * 3 - 5, per_step * 7], "keep_last": 2}
    )
    train(config, Folder(tmp_path))
    folders = sorted({key.split("/")[2] for key, _ in Folder(tmp_path).list(f"checkpoints/{config.run_id}/")})
    assert folders == ["config.json", "latest", "model", "step_3_0.000763M_tokens", "step_7_0.001792M_tokens"]
    steps = [item.step for item in checkpoint.saved(Folder(tmp_path), config.run_id)]
    assert steps == [12, 10, 7, 3]
    stored = RunConfig.model_validate_json(Folder(tmp_path).get(f"checkpoints/{config.run_id}/config.json"))
    assert stored == config


def objects(store: Path, config: RunConfig) -> dict[str, list[tuple[int, int]]]:
    """(step, number of the attempt) of each checkpoint there is, by name, whether it is of use or not."""
    found: dict[str, list[tuple[int, int]]] = {}
    for key, _ in Folder(store).list(f"checkpoints/{config.run_id}/"):
        if told := parse_checkpoint(key):
            found.setdefault(told.name.split("_0.")[0], []).append((told.step, int(told.attempt[:5])))
    return found


def test_attempts_that_were_given_up_leave_no_checkpoints(tmp_path: Path, config: RunConfig) -> None:
    train(config, Folder(tmp_path))
    assert objects(tmp_path, config) == {"latest": [(8, 1), (12, 1)], "model": [(12, 1)]}
    train_until(Folder(tmp_path), config, 5, resume=False)
    assert objects(tmp_path, config) == {"latest": [(4, 2)], "model": [(12, 1)]}  # the only weights there are
    train(config, Folder(tmp_path), resume=False)
    train(config, Folder(tmp_path), resume=False)
    assert objects(tmp_path, config) == {"latest": [(8, 4), (12, 4)], "model": [(12, 4)]}


def test_torn_checkpoints_go_with_the_first_that_is_written_after_them(tmp_path: Path, config: RunConfig) -> None:
    train_until(Folder(tmp_path), config.replace(checkpoint={"every_steps": 2, "keep_last": 3}), 9)  # at 4, 6 and 8
    for item in checkpoint.saved(Folder(tmp_path), config.run_id)[:2]:
        (tmp_path / item.key).write_bytes(b"")
    train_until(Folder(tmp_path), config.replace(checkpoint={"every_steps": 1}), 6)
    assert objects(tmp_path, config) == {"latest": [(4, 1), (5, 2)]}


def test_a_milestone_of_a_given_up_attempt_stays_until_there_is_another(tmp_path: Path, config: RunConfig) -> None:
    milestones = [config.tokens_per_step * step for step in (3, 7)]
    config = config.replace(checkpoint={"every_steps": 4, "milestones": milestones})
    train_until(Folder(tmp_path), config, 9)
    train_until(Folder(tmp_path), config, 5, resume=False)
    assert objects(tmp_path, config) == {"latest": [(4, 2)], "step_3": [(3, 2)], "step_7": [(7, 1)]}
    train(config, Folder(tmp_path))
    kept = {"latest": [(8, 3), (12, 3)], "model": [(12, 3)], "step_3": [(3, 2)], "step_7": [(7, 3)]}
    assert objects(tmp_path, config) == kept


def test_an_overtaken_attempt_removes_no_checkpoint(tmp_path: Path, config: RunConfig) -> None:
    train_until(Folder(tmp_path), config, 9)
    train_until(Folder(tmp_path), config, 9, resume=False)
    old, new = sorted(read_attempts(Folder(tmp_path), config.run_id)[config.run_id])
    once = config.replace(checkpoint={"keep_last": 1})
    checkpoint.write(Folder(tmp_path), once, "latest", 10, ResumePoint(old, 30), {})
    checkpoint.write(Folder(tmp_path), once, "model", 12, ResumePoint(old, 40), {})
    assert objects(tmp_path, config) == {"latest": [(4, 2), (8, 2), (10, 1)], "model": [(12, 1)]}
    assert checkpoint.saved(Folder(tmp_path), config.run_id)[0].step == 8
    checkpoint.prune(Folder(tmp_path), config.run_id, 1, new)
    assert objects(tmp_path, config) == {"latest": [(8, 2)], "model": [(12, 1)]}


class Overtaken(Folder):
    """A folder where another attempt takes a run over once `moment` has come: a listing, or just before a removal."""

    def __init__(self, root: Path, config: RunConfig, moment: str) -> None:
        super().__init__(root)
        self._config, self._moment = config, moment

    def _at(self, moment: str) -> None:
        if moment == self._moment:
            self._moment = ""
            train_until(Folder(self.root), self._config.replace(checkpoint={"every_steps": 1, "keep_last": 9}), 11)

    def stat(self, prefix: str) -> list[Listed]:
        found = super().stat(prefix)
        self._at(prefix.split("/")[0])
        return found

    def keys(self, prefix: str) -> list[str]:
        found = super().keys(prefix)
        self._at(prefix.split("/")[0])
        return found

    def delete(self, keys: Iterable[str]) -> None:
        self._at("removal")
        super().delete(keys)


@pytest.mark.parametrize(("moment", "left"), [("checkpoints", [(4, 1)]), ("attempts", []), ("removal", [])])
def test_who_is_overtaken_while_it_prunes_leaves_the_others_checkpoints(
    tmp_path: Path, config: RunConfig, moment: str, left: list[tuple[int, int]]
) -> None:
    train_until(Folder(tmp_path), config, 9)  # at 4 and 8
    (attempt,) = read_attempts(Folder(tmp_path), config.run_id)[config.run_id]
    checkpoint.prune(Overtaken(tmp_path, config, moment), config.run_id, 1, attempt)
    assert objects(tmp_path, config)["latest"] == [*left, (8, 1), (9, 2), (10, 2)]


class Moving(Folder):
    """A folder where the checkpoint that is asked for first gives way to a newer one."""

    moved = False

    def get(self, key: str) -> bytes:
        told = parse_checkpoint(key)
        if told and not self.moved:
            self.moved = True
            self.put(key.replace(f"/{told.step:09d}.", f"/{told.step + 1:09d}."), super().get(key))
            self.delete([key])
        return super().get(key)


def test_a_checkpoint_pruned_while_it_is_read_gives_way_to_the_newer_one(tmp_path: Path, config: RunConfig) -> None:
    train_until(Folder(tmp_path), config, 10)  # at 4 and 8
    found = checkpoint.newest(Moving(tmp_path), config)
    assert found
    assert found[0].step == 9


def latest(store: Path, config: RunConfig) -> Path:
    return store / checkpoint.saved(Folder(store), config.run_id)[0].key


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, whole: Path, config: RunConfig, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    train_until(Folder(tmp_path / "killed"), config, 10)  # checkpoints at 4 and 8
    path = latest(tmp_path / "killed", config)
    data = path.read_bytes()
    middle = len(data) // 2
    torn = {
        "truncated": data[:middle],
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "empty": b"",
        "foreign": b"not a checkpoint",
    }[damage]
    path.write_bytes(torn)
    assert steps_reported(Folder(tmp_path / "killed"), config)[0] == 4
    (told,) = [record.message for record in caplog.records if path.name in record.message]
    assert told.endswith(f"is torn or was changed ({len(torn)} bytes); that of step 4 is read instead")
    assert_same_run(tmp_path / "killed", whole, config)


UP = "blocks.0.mlp.up.weight"


def rewrite(store: Path, config: RunConfig, **changes: Any) -> None:
    """Replace the newest checkpoint by one whose content was changed; None takes a part out."""
    state = torch.load(latest(store, config), weights_only=True)
    if isinstance(optimizers := changes.get("optimizers"), dict) and optimizers:  # of some parameters
        changes = changes | {"optimizers": state["optimizers"] | optimizers}
    replace_newest(store, config, saved_by_torch({k: v for k, v in (state | changes).items() if v is not None}))


def saved_by_torch(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def checkpoints(store: Path) -> dict[str, bytes]:
    """What lies there of them, by key."""
    return {key: Folder(store).get(key) for key, _ in Folder(store).list("checkpoints/")}


def replace_newest(store: Path, config: RunConfig, data: bytes) -> None:
    """Put `data` in the place of the newest checkpoint, under the hash it then has."""
    item = checkpoint.saved(Folder(store), config.run_id)[0]
    Folder(store).delete([item.key])
    Folder(store).put(item.key.replace(item.digest, hashlib.sha256(data).hexdigest()[:16]), data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "has schema 99, this version reads up to 1; update"),
        ({"run_id": "muon-s1-00000000"}, "is of run muon-s1-00000000"),
        ({"optimizers": None}, "lacks optimizers"),
        ({"optimizers": {}}, "does not fit the model"),
        ({"optimizers": {UP: {}}}, rf"after step \d it has no optimizer state of {UP}"),
        ({"optimizers": {UP: {"momentum": torch.zeros(64, 32)}}}, f"optimizer state of {UP} lacks momentum_buffer"),
        ({"optimizers": {"embedding.weight": {"exp_avg": torch.zeros(512, 32)}}}, "lacks exp_avg_sq"),
        ({"model": {}}, "does not fit the model"),
        ({"data_hash": "other"}, "trained on other text or tokens"),
        ({"optimizers": [1]}, "^optimizers of checkpoint .* is list, not dict"),
        ({"optimizers": {UP: [1]}}, "does not fit the model"),
        ({"step": "4"}, "^step of checkpoint .* is str, not int"),
        ({"model": [1]}, "^model of checkpoint .* is list, not dict"),
        ({"peaks": []}, "^peaks of checkpoint .* is list, not dict"),
        ({"recorder": {"final": [1]}}, "does not fit the model"),
    ],
)
def test_a_checkpoint_that_does_not_belong_is_refused_and_nothing_overwritten(
    cut: Path, config: RunConfig, changes: dict[str, Any], message: str
) -> None:
    rewrite(cut, config, **changes)
    before = checkpoints(cut)
    with pytest.raises(CheckpointError, match=message):
        train(config, Folder(cut))
    assert checkpoints(cut) == before


@pytest.mark.parametrize(
    "data",
    [
        saved_by_torch([1, 2]),
        saved_by_torch({"schema": 1}, _use_new_zipfile_serialization=False),
        saved_by_torch({"schema": Path()}, pickle_protocol=4),
        pickle.dumps({"schema": Path()}, protocol=4),
        b"PK\x03\x04 and no archive",
        b"not a checkpoint",
    ],
    ids=["torch", "old torch", "torch pickle 4", "pickle 4", "zip", "text"],
)
def test_an_object_with_the_right_hash_that_holds_no_state_is_refused(
    cut: Path, config: RunConfig, data: bytes
) -> None:
    """Any warning beside the error would fail the test."""
    replace_newest(cut, config, data)
    before = checkpoints(cut)
    with pytest.raises(CheckpointError, match=r"holds no state of ours|lacks run_id"):
        train(config, Folder(cut))
    assert checkpoints(cut) == before


def but_progress(stderr: str) -> list[str]:
    """The lines that do not just say how far the run is."""
    return [line for line in stderr.splitlines() if not line.startswith(("training ", "tokens: ", "step "))]


@pytest.fixture
def pretrain(run_file: Path, capsys: pytest.CaptureFixture[str]) -> Pretrain:
    """Run `muon pretrain` of that file in a store; its exit code and what it says beside its progress."""

    def call(store: Path) -> tuple[Any, list[str]]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["pretrain", str(run_file), "--store", str(store)])
        return stop.value.code, but_progress(capsys.readouterr().err)

    return call


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, r"does not fit the model of \S+: .*; remove checkpoints/"),
        ({"schema": 99}, "has schema 99, this version reads up to 1; update, or remove checkpoints/"),
        ({"optimizers": {UP: {}}}, f"after step 4 it has no optimizer state of {UP}; remove checkpoints/"),
    ],
    ids=["another model", "newer schema", "no optimizer state"],
)
def test_the_command_ends_with_one_line_for_a_checkpoint_it_must_not_continue(
    cut: Path, config: RunConfig, pretrain: Pretrain, changes: dict[str, Any], message: str
) -> None:
    rewrite(cut, config, **changes)
    before = checkpoints(cut)
    code, said = pretrain(cut)
    assert code == 3, said
    assert len(said) == 1, said
    assert re.match(f"failed: {config.run_id}: CheckpointError: .*{message}", said[0]), said
    assert checkpoints(cut) == before


def test_the_command_says_that_it_starts_anew_when_the_only_checkpoint_is_torn(
    cut: Path, whole: Path, config: RunConfig, run_file: Path
) -> None:
    """As a process of its own: the line comes from the log, which belongs to pytest in this one."""
    path = latest(cut, config)
    path.write_bytes(path.read_bytes()[:1000])
    done = subprocess.run([MUON, "pretrain", run_file, "--store", cut], capture_output=True, text=True, check=False)
    said = but_progress(done.stderr)
    assert done.returncode == 0, said
    assert said[0] == (
        f"checkpoint {path.relative_to(cut)} is torn or was changed (1000 bytes); "
        "no earlier one is whole; training starts from step 0"
    )
    assert [line.split(":")[0] for line in said[1:]] == ["done", "next"], said
    assert_same_run(cut, whole, config)


def test_an_attempt_that_was_overtaken_stops_and_leaves_the_record_alone(tmp_path: Path, config: RunConfig) -> None:
    def overtake(progress: Progress) -> bool:
        if progress.step == 2:
            RunWriter(Folder(tmp_path), config.run_id, {"arm": "the other attempt"})
        return True

    outcome = train(config, Folder(tmp_path), report=overtake)
    assert outcome.status == "stopped"
    assert outcome.error is not None
    assert "a newer attempt" in outcome.error
    assert open_store(tmp_path).runs.collect()["arm"].to_list() == ["the other attempt"]
    assert open_store(tmp_path).runs.collect()["status"].to_list() == ["running"]


def train_alone(store: Path, config: str) -> None:
    """What a process of its own does."""
    torch.set_num_threads(1)
    train(RunConfig.model_validate_json(config), Folder(store))


def test_a_process_killed_at_any_instant_continues_bitwise(tmp_path: Path, config: RunConfig) -> None:
    """A few SIGKILLs of a real process; `tests/bench/torture.py` does many, also on Ray."""
    config = config.replace(steps=80, tracking={"eval_every": 5, "track_every": 5, "flush_every_s": 0.05})
    store = Folder(tmp_path / "killed")
    kills = 0
    for delay in (0.05, 0.4, 0.25, 0.6):
        attempts = store.list("attempts/")
        process = start_process(train_alone, tmp_path / "killed", config.model_dump_json())
        while process.is_alive() and store.list("attempts/") == attempts:
            time.sleep(0.01)
        time.sleep(delay)
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills >= 2
    assert train(config, store).status == "done"
    train(config, Folder(tmp_path / "whole"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole", config)


def train_on_a_full_disk(store: Path, config: str, stderr: Path) -> None:
    """A process in which no file may grow beyond 60 kB: rows fit, a checkpoint does not."""
    with stderr.open("wb") as file:
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    train_alone(store, config)


def test_a_checkpoint_that_does_not_fit_ends_the_run_clearly_and_spares_what_is_there(
    cut: Path, config: RunConfig, tmp_path: Path
) -> None:
    before = checkpoints(cut)
    process = start_process(train_on_a_full_disk, cut, config.model_dump_json(), tmp_path / "stderr")
    process.join()
    stderr = (tmp_path / "stderr").read_text()
    assert process.exitcode == 1, stderr
    last = stderr.strip().splitlines()[-1]
    assert last.endswith("File too large; free space there or choose another store"), stderr
    assert checkpoints(cut) == before
    assert open_store(cut).runs.collect()["status"].to_list() == ["stopped"]
    assert steps_reported(Folder(cut), config)[0] == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, unmounted after the test."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_ends_the_command_with_one_line_and_spares_what_is_there(
    cut_once: Path, whole: Path, config: RunConfig, pretrain: Pretrain, small_disk: Path
) -> None:
    shutil.copytree(cut_once, small_disk, dirs_exist_ok=True)
    before = checkpoints(small_disk)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(bytes(free - latest(small_disk, config).stat().st_size // 2))
    code, said = pretrain(small_disk)
    assert code == 2, said
    assert said == [
        f"muon: cannot write to {small_disk}: No space left on device; free space there or choose another store"
    ]
    assert checkpoints(small_disk) == before
    (small_disk / "other").unlink()
    assert steps_reported(Folder(small_disk), config)[0] == 4
    assert_same_run(small_disk, whole, config)
