"""The training loop in this process: rows, repeatability, seeds, and every way a run can end."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from analysis.store import open_store
from muon_core import compiled, environment, gpus, state
from muon_core import train as train_module
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.run import RunConfig
from muon_core.config.sizes import flops_per_token
from muon_core.evaluate import Evaluation
from muon_core.optim import optimizers
from muon_core.progress import Progress
from muon_core.state import TrainState, prepare
from muon_core.stopwatch import Stopwatch
from muon_core.store.folder import Folder
from muon_core.store.writer import RunWriter
from muon_core.tables import PROJECTIONS
from muon_core.throughput import COLUMNS, SHARES
from muon_core.train import Outcome, train

CPU = torch.device("cpu")


def rows(folder: Path, table: str) -> pl.DataFrame:
    """Rows of a table without what measures time."""
    timing = ("run_id", "step_time_s", "tokens_per_s", "elapsed_s", *COLUMNS)
    return open_store(folder).table(table).drop(timing, strict=False).sort("seq").collect()


def train_in(folder: Path, config: RunConfig, **options: Any) -> Outcome:
    return train(config, Folder(folder), **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_of_every_optimizer_learns_and_fills_its_tables(tmp_path: Path, run_config: RunConfig, name: str) -> None:
    config = run_config.replace(optimizer={"name": name})
    outcome = train_in(tmp_path, config)
    assert (outcome.status, outcome.steps) == ("done", 8)
    val, layers = rows(tmp_path, "val"), rows(tmp_path, "layers")
    assert val["step"].to_list() == [0, 4, 8]
    assert val["val_loss"][0] == pytest.approx(math.log(512), rel=0.05)  # nothing learned yet: uniform over the tokens
    assert val["val_loss"][-1] < val["val_loss"][0] - 0.2
    assert rows(tmp_path, "train")["step"].to_list() == list(range(1, 9))
    keys = layers.select("step", "layer", "projection").rows()
    assert sorted(keys) == sorted((step, layer, p) for step in (0, 4, 8) for layer in (0, 1) for p in PROJECTIONS)
    begun, initial = layers.filter(pl.col("step") > 0), layers.filter(step=0)
    assert begun.drop("projection").null_count().sum_horizontal().item() == 0
    of_the_weight = ["spectral_norm", "entropy", "effective_rank", "stable_rank", "weight_norm", "weight_norm_peak"]
    assert initial.select(of_the_weight).min_horizontal().min() > 0
    assert initial["weight_norm"].equals(initial["weight_norm_peak"], check_names=False)
    of_a_step = ["update_norm", "grad_norm", "grad_norm_peak", "left_alignment", "momentum_left_alignment", "ill_posed"]
    assert initial.select(of_a_step).null_count().row(0) == (initial.height,) * len(of_a_step)
    run = open_store(tmp_path).runs.collect().row(0, named=True)
    assert (run["status"], run["steps"], run["tokens"]) == ("done", 8, 8 * 8 * 32)
    assert run["final_val_loss"] == val["val_loss"][-1]


def test_spectra_are_written_at_their_period_the_milestones_and_the_end(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(
        tracking={"track_every": 4, "spectra_every": 3}, checkpoint={"milestones": [2 * run_config.tokens_per_step - 1]}
    )
    train_in(tmp_path, config)
    spectra, layers = rows(tmp_path, "spectra"), rows(tmp_path, "layers")
    assert spectra["step"].unique().sort().to_list() == [0, 2, 3, 6, 8]
    assert layers["step"].unique().sort().to_list() == [0, 2, 3, 4, 6, 8]
    both = spectra.join(layers, on=["step", "layer", "projection"])
    assert both.height == spectra.height == 5 * 2 * len(PROJECTIONS)
    for row in both.iter_rows(named=True):
        s = torch.tensor(row["singular_values"], dtype=torch.float64)
        assert len(s) == min(row["rows"], row["cols"])
        assert row["effective_rank"] == pytest.approx(torch.special.entr(s / s.sum()).sum().exp().item(), rel=1e-5)
        assert row["spectral_norm"] == s[0]


def test_spectra_are_written_at_the_start_and_the_end_by_default(tmp_path: Path, run_config: RunConfig) -> None:
    train_in(tmp_path, run_config)
    assert rows(tmp_path, "spectra")["step"].unique().sort().to_list() == [0, 8]


def test_the_same_config_gives_the_same_rows_bit_for_bit(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(optimizer={"name": "orthonoise", "alpha": 0.1})
    train_in(tmp_path / "a", config)
    torch.manual_seed(123)  # what happened in the process before must not matter
    train_in(tmp_path / "b", config)
    for table in ("train", "val", "layers"):
        assert rows(tmp_path / "a", table).equals(rows(tmp_path / "b", table)), table


def test_measuring_more_often_changes_no_result(tmp_path: Path, run_config: RunConfig) -> None:
    train_in(tmp_path / "a", run_config)
    train_in(tmp_path / "b", run_config.replace(tracking={"eval_every": 1, "track_every": 1}))
    a, b = (rows(tmp_path / name, "train").drop("seq") for name in "ab")
    assert a.equals(b)


def test_micro_batches_change_only_rounding(tmp_path: Path, run_config: RunConfig) -> None:
    whole, parts = (train(run_config.replace(micro_batches=n), None).final for n in (1, 4))
    assert whole is not None
    assert parts is not None
    assert parts.val_loss == pytest.approx(whole.val_loss, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch.compile's own
def test_a_compiled_run_gives_the_same_rows_to_rounding_and_goes_on_bit_for_bit(
    tmp_path: Path, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one layer, for each of its twenty kernels costs seconds; in float32, for bfloat16 enlarges a rounding.

    Newton-Schulz as well, as on a GPU; evaluation ends with fewer windows, which are a shape that a run which goes on
    meets first.
    """
    monkeypatch.setattr(compiled, "PAYS", {"cpu"})
    small = {"model": run_config.model.replace(num_layers=1), "optimizer": {"name": "muon", "ns_dtype": "fp32"}}
    plain = run_config.replace(steps=4, data=run_config.data.replace(validation_tokens=11 * 32), **small)
    changed = plain.replace(compile=True)
    assert changed.run_id == plain.run_id
    assert train_in(tmp_path / "b", changed, report=lambda progress: progress.step < 2).steps == 2
    for name, config in (("plain", plain), ("a", changed), ("b", changed)):
        assert train_in(tmp_path / name, config).status == "done"
    for table in ("train", "val", "layers"):
        whole, parted = (rows(tmp_path / name, table).drop("attempt", "seq") for name in ("a", "b"))
        assert whole.equals(parted), table
    for table, column, rel in (
        ("val", "val_loss", 1e-6),
        ("layers", "effective_rank", 1e-5),
        ("layers", "update_norm", 1e-4),
    ):
        ours, theirs = (rows(tmp_path / name, table)[column].drop_nulls().to_list() for name in ("a", "plain"))
        assert ours == pytest.approx(theirs, rel=rel), column


def test_seeds_vary_the_initial_weights_and_the_batches(tmp_path: Path, run_config: RunConfig) -> None:
    for seed in (1, 2):
        train_in(tmp_path, run_config.replace(seed=seed, steps=1))
    runs = open_store(tmp_path).runs.collect()
    assert runs["init_hash"].n_unique() == 2
    assert runs["first_batch_hash"].n_unique() == 2
    assert runs["data_hash"].n_unique() == 1


def test_a_stream_set_apart_varies_alone(run_config: RunConfig) -> None:
    def weights(config: RunConfig) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in prepare(config, CPU, Stopwatch()).model.parameters()])

    base = weights(run_config)
    assert torch.equal(base, weights(run_config.replace(seeds={"data": 7, "noise": 7, "dropout": 7})))
    assert not torch.equal(base, weights(run_config.replace(seeds={"init": 7})))


def test_a_diverged_run_ends_before_the_update_and_is_a_result(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(
        optimizer={"name": "adamw", "lr": 1e30, "embedding_lr": 1e30}, schedule={"warmup_steps": 0}
    )
    outcome = train_in(tmp_path, config)
    assert outcome.status == "diverged"
    run = open_store(tmp_path).runs.collect().row(0, named=True)
    assert run["status"] == "diverged"
    assert run["error"] == "gradient norm nan at step 1"
    assert rows(tmp_path, "train")["step"].to_list() == list(range(1, outcome.steps + 1))


def test_a_run_that_ends_without_a_finite_loss_is_diverged_not_done(
    tmp_path: Path, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        train_module, "evaluate", lambda *_, **__: Evaluation(math.nan, 0.0)
    )  # as a last bad update does
    outcome = train_in(tmp_path, run_config.replace(tracking={"eval_every": 100}))
    assert (outcome.status, outcome.error) == ("diverged", "val loss nan after step 8")


def meddle(monkeypatch: pytest.MonkeyPatch, at: int, change: Callable[[list[Tensor], float], float]) -> None:
    """Let `change` have the gradients and the loss of the step after `at` optimizer steps, and decide the loss."""
    real = train_module._gradients

    def meddled(config: RunConfig, state: TrainState) -> Tensor:
        loss = real(config, state)
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        return torch.tensor(change(gradients, float(loss))) if state.step == at else loss

    monkeypatch.setattr(train_module, "_gradients", meddled)


def test_a_loss_spike_is_counted_or_ends_the_run(
    tmp_path: Path, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle(monkeypatch, 5, lambda gradients, loss: loss + 3)
    spike = {"above": 2.0, "window": 3}
    assert train_in(tmp_path / "flag", run_config.replace(spike=spike)).status == "done"
    assert open_store(tmp_path / "flag").runs.collect()["loss_spikes"].to_list() == [1]
    ended = train_in(tmp_path / "end", run_config.replace(spike=spike | {"action": "end"}))
    assert (ended.status, ended.steps) == ("diverged", 5)
    assert ended.error is not None
    assert ended.error.endswith(" at step 5 spiked by more than 2.0 nats")
    assert rows(tmp_path / "end", "train")["step"].to_list() == [1, 2, 3, 4, 5]


def spoil(gradients: list[Tensor], loss: float) -> float:
    gradients[0].fill_(math.inf)
    return loss


@pytest.mark.parametrize("change", [spoil, lambda gradients, loss: math.nan])
def test_a_step_that_is_not_finite_is_skipped_where_the_config_says_so(
    tmp_path: Path, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    """Whatever it was of, the weights after it are those of before, and nothing is tracked at it."""
    meddle(monkeypatch, 3, change)
    assert train_in(tmp_path / "end", run_config).status == "diverged"
    skipping = run_config.replace(spike={"nonfinite": "skip"})
    assert skipping.run_id != run_config.run_id
    outcome = train_in(tmp_path / "skip", skipping)
    assert (outcome.status, outcome.steps) == ("done", 8)
    assert open_store(tmp_path / "skip").runs.collect()["skipped_steps"].to_list() == [1]
    assert rows(tmp_path / "skip", "train")["step"].to_list() == list(range(1, 9))
    assert rows(tmp_path / "skip", "layers")["step"].unique().sort().to_list() == [0, 8]
    val = rows(tmp_path / "skip", "val")["val_loss"]
    assert val[-1] < val[0] - 0.2


def test_a_run_that_is_beyond_repair_has_its_skipped_steps_counted(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(
        optimizer={"name": "adamw", "lr": 1e30, "embedding_lr": 1e30},
        schedule={"warmup_steps": 0},
        spike={"nonfinite": "skip"},
    )
    outcome = train_in(tmp_path, config)
    assert (outcome.status, outcome.steps) == ("done", 8)
    assert open_store(tmp_path).runs.collect()["skipped_steps"].to_list() == [7]


def test_a_spike_of_gradients_between_two_rows_is_in_the_peaks(
    tmp_path: Path, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enlarge(gradients: list[Tensor], loss: float) -> float:
        torch._foreach_mul_(gradients, 1e4)
        return loss

    meddle(monkeypatch, 1, enlarge)
    train_in(tmp_path, run_config)
    layers = rows(tmp_path, "layers")
    for step in (4, 8):
        at = layers.filter(step=step)
        assert (at["grad_norm_peak"] > 500 * at["grad_norm"]).all()
    first, second = (layers.filter(step=step)["grad_norm_peak"].to_list() for step in (4, 8))
    assert first == second


def test_peaks_of_weights_are_the_largest_of_all_steps(run_config: RunConfig) -> None:
    state = prepare(run_config, CPU, Stopwatch())
    for scale in (3.0, 0.1):
        for matrix in state.layout.matrices:
            matrix.parameter.data.mul_(scale)
        state.peaks.after_step()
    torch.testing.assert_close(state.peaks.weight_norm_peak, state.peaks.weight_norm * 10)


def test_attempts_in_different_environments_are_told_and_recorded(
    tmp_path: Path, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = environment.fingerprint
    train_in(tmp_path, run_config, report=lambda progress: progress.step < 2)
    monkeypatch.setattr(environment, "fingerprint", lambda: real() | {"threads": 7})
    with pytest.warns(UserWarning, match=r"goes on in another environment \(threads was 1\); its bits may be new"):
        train_in(tmp_path, run_config, report=lambda progress: progress.step < 5)
    train_in(tmp_path, run_config)  # as the attempt before it: nothing to say, and nothing forgotten
    (found,) = open_store(tmp_path).runs.collect()["environment_json"].to_list()
    assert json.loads(found) == real() | {"threads": 7, "resumed_from": {"threads": 1}}


def test_a_run_that_is_finished_is_not_trained_again(tmp_path: Path, run_config: RunConfig) -> None:
    """By whoever looked before it was: the outcome is that of the first, and no attempt hides it meanwhile."""
    first = train_in(tmp_path, run_config)
    reports: list[Progress] = []
    second = train_in(tmp_path, run_config, report=lambda progress: bool(reports.append(progress)) or True)
    assert (second, reports) == (first, [])
    assert open_store(tmp_path).runs.collect()["attempts"].to_list() == [1]


def test_a_run_that_is_stopped_or_asked_for_anew_is_trained(tmp_path: Path, run_config: RunConfig) -> None:
    assert train_in(tmp_path, run_config, report=lambda progress: progress.step < 3).status == "stopped"
    finished = train_in(tmp_path, run_config)
    assert (finished.status, finished.steps) == ("done", run_config.steps)
    assert train_in(tmp_path, run_config, resume=False) == finished
    assert open_store(tmp_path).runs.collect()["attempts"].to_list() == [3]


def test_a_start_that_fails_keeps_the_rows_of_the_attempts_before(tmp_path: Path, run_config: RunConfig) -> None:
    stopped = train_in(tmp_path, run_config, report=lambda progress: progress.step < 6)
    before = {table: rows(tmp_path, table) for table in ("train", "val", "layers")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "load_data", lambda *_: (_ for _ in ()).throw(ValueError("the corpus is gone")))
        with pytest.raises(ValueError, match="the corpus is gone"):
            train_in(tmp_path, run_config)
    run = open_store(tmp_path).runs.collect().row(0, named=True)
    assert (run["status"], run["attempts"]) == ("failed", 2)
    assert stopped.steps == 6
    for table, held in before.items():
        assert rows(tmp_path, table).equals(held), table
    assert train_in(tmp_path, run_config).status == "done"
    assert rows(tmp_path, "train")["step"].to_list() == list(range(1, 9))


def test_a_run_overtaken_at_its_last_step_ends_as_stopped(tmp_path: Path, run_config: RunConfig) -> None:
    def overtake(progress: Progress) -> bool:
        if progress.step == 8:
            RunWriter(Folder(tmp_path), run_config.run_id, {})
        return True

    outcome = train_in(tmp_path, run_config.replace(checkpoint={"model": False}), report=overtake)
    assert outcome.status == "stopped"
    assert outcome.error is not None
    assert "a newer attempt than" in outcome.error
    assert open_store(tmp_path).runs.collect()["status"].to_list() == ["running"]


def test_a_failing_run_is_recorded_with_its_traceback_and_keeps_its_rows(
    tmp_path: Path, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the evaluation broke")

    real = train_module.evaluate
    calls = iter([real, explode])
    monkeypatch.setattr(train_module, "evaluate", lambda *args, **kwargs: next(calls)(*args, **kwargs))
    with pytest.raises(RuntimeError, match="the evaluation broke"):
        train_in(tmp_path, run_config)
    run = open_store(tmp_path).runs.collect().row(0, named=True)
    assert run["status"] == "failed"
    assert "Traceback" in run["error"]
    assert run["error"].strip().endswith("RuntimeError: the evaluation broke")
    assert rows(tmp_path, "train")["step"].to_list() == [1, 2, 3, 4]


def test_a_run_that_cannot_start_is_recorded_as_failed(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(data=run_config.data.replace(corpus=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="nowhere"):
        train_in(tmp_path / "store", config)
    assert open_store(tmp_path / "store").runs.collect()["status"].to_list() == ["failed"]


def test_a_run_told_to_stop_ends_at_once_and_says_so(tmp_path: Path, run_config: RunConfig) -> None:
    outcome = train_in(tmp_path, run_config, report=lambda progress: progress.step < 3)
    assert (outcome.status, outcome.steps) == ("stopped", 3)
    assert open_store(tmp_path).runs.collect()["status"].to_list() == ["stopped"]


def test_progress_is_reported_from_the_first_evaluation_to_the_last_step(run_config: RunConfig) -> None:
    seen: list[Progress] = []
    train(run_config, None, report=lambda progress: seen.append(progress) is None)
    assert [progress.step for progress in seen] == [0, *range(9)]  # the first before anything was computed
    assert seen[0].val_loss is None
    assert seen[1].val_loss is not None
    assert seen[1].train_loss is None
    assert seen[-1].val_loss is not None


def test_rows_are_readable_while_the_run_trains(tmp_path: Path, run_config: RunConfig) -> None:
    config = run_config.replace(tracking={"flush_every_s": 1e-6})
    met: list[int] = []

    def look(progress: Progress) -> bool:
        if progress.step >= 6:
            deadline = time.monotonic() + 10  # rows are written off the training path, or with the next step's
            while not met and time.monotonic() < deadline:
                met.extend(rows(tmp_path, "train")["step"].to_list())
            assert open_store(tmp_path).runs.collect()["status"].to_list() == ["running"]
        return True

    train_in(tmp_path, config, report=look)
    assert met
    assert met == list(range(1, len(met) + 1))


def test_the_time_health_takes_counts_as_tracking_and_not_as_the_step(
    tmp_path: Path, run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at, pause = optimizers.look_at, 0.5

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(pause)
        return look_at(*arguments, **options)

    monkeypatch.setattr(optimizers, "look_at", slowly)
    train_in(tmp_path, run_config.replace(steps=3, tracking={"track_every": 1}))
    run = open_store(tmp_path).runs.collect().row(0, named=True)
    assert run["tracking_s"] > 3 * pause
    assert run["train_s"] < 3 * pause
    assert open_store(tmp_path).table("train").collect()["step_time_s"].median() < pause


def test_rows_tell_where_time_and_memory_go(tmp_path: Path, run_config: RunConfig) -> None:
    """With the peak of a GPU that the CPU is taken for, the model's FLOPs over it are the utilisation."""
    config = run_config.replace(tracking={"eval_every": 4, "track_every": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gpus, "find", lambda device: gpus.Gpu("any", bf16=4e9, fp32=2e9, memory=0, node=None, source="made up")
        )
        train_in(tmp_path, config)
    opened = open_store(tmp_path)
    train, run = opened.train.sort("step").collect(), opened.runs.collect().row(0, named=True)
    expected = flops_per_token(config) * train["tokens_per_s"] / 2e9
    assert train["mfu"].to_list() == pytest.approx(expected.to_list(), rel=1e-6)
    assert run["mfu"] == pytest.approx(flops_per_token(config) * run["tokens_per_s"] / 2e9)
    assert run["tokens_per_s"] == pytest.approx(run["tokens"] / run["train_s"])
    assert train["peak_memory_bytes"].is_sorted()
    assert 2**26 < train["peak_memory_bytes"][0] <= run["peak_memory_bytes"]
    shares = train.select(f"{part}_share" for part in SHARES)
    assert (shares.min_horizontal() >= 0).all()
    assert (shares.sum_horizontal() <= 1).all()
    found = [(row["step"], row["evaluation_share"] > 0) for row in train.iter_rows(named=True)]
    assert [step for step, evaluated in found if evaluated] == [1, 5]  # after 0 and 4; no row is behind that of 8


def test_what_no_peak_is_known_of_has_no_utilisation(tmp_path: Path, run_config: RunConfig) -> None:
    train_in(tmp_path, run_config.replace(steps=2))
    assert open_store(tmp_path).train.collect()["mfu"].to_list() == [None, None]
    assert open_store(tmp_path).runs.collect()["mfu"].to_list() == [None]
