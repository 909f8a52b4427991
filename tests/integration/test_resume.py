"""A run that was stopped, killed or moved goes on as if nothing had happened: the same rows and weights."""

import hashlib
import io
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from analysis.tables import open_store
from muon_core import checkpoint
from muon_core.checkpoint import CheckpointError
from muon_core.config import RunConfig
from muon_core.progress import Progress
from muon_core.results import RunWriter
from muon_core.storage import Folder, Listed, StoreUnavailable
from muon_core.tables import SERIES
from muon_core.train import train

TIMING = ("attempt", "step_time_s", "tokens_per_s", "elapsed_s")


@pytest.fixture
def config(small: dict[str, Any]) -> RunConfig:
    """A run with everything that has state: noise, dropout, momentum, peaks."""
    return RunConfig.model_validate(
        small
        | {
            "model": small["model"] | {"dropout": 0.1},
            "optimizer": {"name": "orthonoise", "alpha": 0.1, "ns_dtype": "fp32"},
            "steps": 12,
            "micro_batches": 2,
            "tracking": {"eval_every": 3, "track_every": 3, "spectra_every": 5},
            "checkpoint": {"every_steps": 4},
        }
    )


def rows(store: Path, table: str) -> pl.DataFrame:
    return open_store(store).table(table).drop(TIMING, strict=False).sort("seq").collect()


def weights(store: Path, config: RunConfig) -> dict[str, torch.Tensor]:
    keys = [key for key, _ in Folder(store).list(f"checkpoints/{config.run_id}/model/")]
    state = torch.load(io.BytesIO(Folder(store).get(keys[-1])), weights_only=True)
    model: dict[str, torch.Tensor] = state["model"]
    return model


def assert_same_run(a: Path, b: Path, config: RunConfig) -> None:
    for table in SERIES:
        left, right = rows(a, table), rows(b, table)
        assert left.height > 0
        assert left.equals(right), table
    left_weights, right_weights = weights(a, config), weights(b, config)
    assert all(torch.equal(left_weights[name], right_weights[name]) for name in left_weights)


class Killed(BaseException):
    """Stands for the death of the process: nothing of the run's own code may answer it."""


def train_until(store: Path, config: RunConfig, step: int) -> None:
    """Train to `step` and die there, before anything of that step is saved."""

    def die(progress: Progress) -> bool:
        if progress.step == step:
            raise Killed
        return True

    with pytest.raises(Killed):
        train(config, Folder(store), report=die)


def steps_reported(store: Path, config: RunConfig) -> list[int]:
    """Train to the end; the steps on the way, of which the first tells where the run was taken up."""
    seen: list[int] = []
    assert train(config, Folder(store), report=lambda progress: seen.append(progress.step) is None).status == "done"
    return seen


@pytest.mark.parametrize(("died_at", "saved_at"), [(0, 0), (1, 0), (4, 0), (5, 4), (8, 4), (11, 8), (12, 8)])
def test_a_run_that_died_continues_bitwise(tmp_path: Path, config: RunConfig, died_at: int, saved_at: int) -> None:
    train_until(tmp_path / "killed", config, died_at)
    begun = [0] if saved_at == 0 else []  # before the first evaluation
    assert steps_reported(tmp_path / "killed", config) == [*begun, *range(saved_at, 13)]
    train(config, Folder(tmp_path / "whole"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole", config)


def test_a_run_that_died_again_and_again_continues_bitwise(tmp_path: Path, config: RunConfig) -> None:
    for step in (5, 7, 10, 3 + 8):
        train_until(tmp_path / "killed", config, step)
    train(config, Folder(tmp_path / "killed"))
    train(config, Folder(tmp_path / "whole"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole", config)
    assert open_store(tmp_path / "killed").runs.collect()["attempts"].to_list() == [5]


def test_a_stopped_run_saves_itself_and_loses_no_step(tmp_path: Path, config: RunConfig) -> None:
    rare = config.replace(checkpoint={"every_s": None})
    outcome = train(rare, Folder(tmp_path / "stopped"), report=lambda progress: progress.step < 7)
    assert (outcome.status, outcome.steps) == ("stopped", 7)
    assert steps_reported(tmp_path / "stopped", rare) == list(range(7, 13))
    train(rare, Folder(tmp_path / "whole"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole", rare)


def test_a_run_begun_again_goes_on_from_its_own_checkpoints(tmp_path: Path, config: RunConfig) -> None:
    train(config, Folder(tmp_path / "again"))

    def die(progress: Progress) -> bool:
        if progress.step == 9:
            raise Killed
        return True

    with pytest.raises(Killed):
        train(config.replace(checkpoint={"every_steps": 4, "keep_last": 1}), Folder(tmp_path / "again"),
              report=die, resume=False)  # fmt: skip
    assert steps_reported(tmp_path / "again", config) == list(range(8, 13))
    assert set(rows_with_attempt(tmp_path / "again")) == {2, 3}
    train(config, Folder(tmp_path / "whole"))
    assert_same_run(tmp_path / "again", tmp_path / "whole", config)


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


def test_checkpoints_wait_for_a_store_that_is_away(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muon_core.storage.FIRST_PAUSE_S", 0.01)
    store = Absent(tmp_path / "absent")
    assert train(config, store, report=lambda progress: progress.step < 7).status == "stopped"
    assert train(config, store).status == "done"
    assert store.refused.total() > 12
    train(config, Folder(tmp_path / "whole"))
    assert_same_run(tmp_path / "absent", tmp_path / "whole", config)


def test_resuming_with_other_micro_batches_differs_only_in_rounding(tmp_path: Path, config: RunConfig) -> None:
    plain = config.replace(model=config.model.replace(dropout=0.0))  # dropout is keyed by micro-batch
    train_until(tmp_path / "moved", plain, 6)
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
    assert folders == ["config.json", "latest", "model", "step_3_0.000768M_tokens", "step_7_0.001792M_tokens"]
    steps = [item.step for item in checkpoint.saved(Folder(tmp_path), config.run_id)]
    assert steps == [12, 10, 7, 3]
    stored = RunConfig.model_validate_json(Folder(tmp_path).get(f"checkpoints/{config.run_id}/config.json"))
    assert stored == config


def latest(store: Path, config: RunConfig) -> Path:
    return store / checkpoint.saved(Folder(store), config.run_id)[0].key


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, config: RunConfig, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    train_until(tmp_path / "killed", config, 10)  # checkpoints at 4 and 8
    path = latest(tmp_path / "killed", config)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "truncated": data[:middle],
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "empty": b"",
            "foreign": b"not a checkpoint",
        }[damage]
    )
    assert steps_reported(tmp_path / "killed", config)[0] == 4
    assert [record.message for record in caplog.records if str(path.name) in record.message]
    train(config, Folder(tmp_path / "whole"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole", config)


UP = "blocks.0.mlp.up.weight"


def rewrite(store: Path, config: RunConfig, **changes: Any) -> None:
    """Replace the newest checkpoint by one whose content was changed; None takes a part out."""
    item = checkpoint.saved(Folder(store), config.run_id)[0]
    state = torch.load(io.BytesIO(Folder(store).get(item.key)), weights_only=True)
    Folder(store).delete([item.key])
    if changes.get("optimizers"):  # of some parameters
        changes = {"optimizers": state["optimizers"] | changes["optimizers"]}
    state = {key: value for key, value in (state | changes).items() if value is not None}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    key = f"checkpoints/{config.run_id}/latest/{item.step:09d}.{item.attempt}.{item.seq:012d}.{digest}.pt"
    Folder(store).put(key, buffer.getvalue())


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
    ],
)
def test_a_checkpoint_that_does_not_belong_is_refused_and_nothing_overwritten(
    tmp_path: Path, config: RunConfig, changes: dict[str, Any], message: str
) -> None:
    train_until(tmp_path, config, 6)
    rewrite(tmp_path, config, **changes)
    before = {key for key, _ in Folder(tmp_path).list("checkpoints/")}
    with pytest.raises(CheckpointError, match=message):
        train(config, Folder(tmp_path))
    assert {key for key, _ in Folder(tmp_path).list("checkpoints/")} == before


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


PROGRAM = """
import sys
import torch
from muon_core.config import RunConfig
from muon_core.storage import Folder, Listed, StoreUnavailable
from muon_core.tables import SERIES
from muon_core.train import train
torch.set_num_threads(1)
train(RunConfig.model_validate_json(sys.argv[2]), Folder(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_process_killed_at_any_instant_continues_bitwise(tmp_path: Path, config: RunConfig) -> None:
    """A few SIGKILLs of a real process; `tests/bench/torture.py` does many, also on Ray."""
    config = config.replace(steps=60, tracking={"eval_every": 5, "track_every": 5, "flush_every_s": 0.05})
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "killed"), config.model_dump_json()]
    kills = 0
    for delay in (0.05, 0.4, 0.25, 0.6):
        process = subprocess.Popen(command)
        attempts = Folder(tmp_path / "killed").list("attempts/")
        while process.poll() is None and Folder(tmp_path / "killed").list("attempts/") == attempts:
            time.sleep(0.01)
        time.sleep(delay)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2
    subprocess.run(command, check=True)
    train(config, Folder(tmp_path / "whole"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole", config)


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))" + PROGRAM


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_ends_the_run_clearly_and_spares_what_is_there(
    tmp_path: Path, config: RunConfig
) -> None:
    """No file may grow beyond 60 kB, as on a full disk: rows fit, a checkpoint does not."""
    train_until(tmp_path, config, 6)
    before = {key: Folder(tmp_path).get(key) for key, _ in Folder(tmp_path).list("checkpoints/")}
    command = [sys.executable, "-c", LIMITED, str(tmp_path), config.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("File too large; free space there or choose another store"), done.stderr
    assert {key: Folder(tmp_path).get(key) for key, _ in Folder(tmp_path).list("checkpoints/")} == before
    assert open_store(tmp_path).runs.collect()["status"].to_list() == ["failed"]
    assert steps_reported(tmp_path, config)[0] == 4
