"""`micro_batches: auto`: what a device has room for is taken, recorded, and taken again."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.beside import measure_beside
from support.ranks import run_ranks, start_process
from support.saved_runs import train_until, weights

from analysis.store import open_store
from muon_core import environment, fit, recorder
from muon_core.config.memory import DoesNotFit, memory
from muon_core.config.run import RunConfig
from muon_core.state import TrainState
from muon_core.store.folder import Folder
from muon_core.train import train


def device_for(sequences: int, tried: list[int]) -> Callable[..., None]:
    """Stands for a device that has memory for so many sequences at a time; `tried` takes down what it was asked for."""

    def step(config: RunConfig, state: TrainState, pieces: int, beside: int) -> None:
        tried.append(pieces)
        real(config, state, pieces, beside)
        if config.batch_size // pieces > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory")

    real = fit.measured_step
    return step


def taken(store: Path) -> list[int]:
    """What the record of each run says."""
    environments = open_store(store).runs.collect()["environment_json"]
    return [json.loads(text)["micro_batches"] for text in environments]


@pytest.fixture
def auto(run_config: RunConfig) -> RunConfig:
    """Eight sequences a step, cut as the device has it."""
    return run_config.replace(micro_batches="auto", checkpoint={"every_steps": 4})


def test_as_few_as_fit_are_taken_and_recorded(tmp_path: Path, auto: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(fit, "measured_step", device_for(2, tried))
    assert train(auto, Folder(tmp_path / "auto")).status == "done"
    assert tried == [1, 2, 4]
    assert taken(tmp_path / "auto") == [4]
    train(auto.replace(micro_batches=4), Folder(tmp_path / "four"))
    automatic, four = (weights(Folder(tmp_path / name), auto) for name in ("auto", "four"))
    assert all(torch.equal(automatic[name], four[name]) for name in four)  # what was tried left nothing behind


def test_the_search_begins_where_the_estimate_says(
    tmp_path: Path, auto: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = memory(auto.replace(micro_batches=2)).peak  # of which some is left alone, and weights are there already
    monkeypatch.setattr(environment, "free_memory_bytes", lambda device: int(free / (1 - fit.SPARE)))
    tried: list[int] = []
    monkeypatch.setattr(fit, "measured_step", device_for(8, tried))
    train(auto.replace(steps=1), Folder(tmp_path))
    assert tried == taken(tmp_path) == [2]


def test_room_is_left_for_what_is_measured_beside_training(
    tmp_path: Path, auto: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = (memory(auto.replace(micro_batches=pieces)) for pieces in (1, 2))
    assert whole.peak < half.peak + half.tracking < whole.peak + whole.tracking
    free = int((half.peak + half.tracking) / (1 - fit.SPARE))
    monkeypatch.setattr(environment, "free_memory_bytes", lambda device: free)
    tried: list[int] = []
    monkeypatch.setattr(fit, "measured_step", device_for(8, tried))
    train(auto.replace(steps=1), Folder(tmp_path / "waits"))
    measure_beside(monkeypatch)
    train(auto.replace(steps=1), Folder(tmp_path / "beside"))
    assert tried == [1, 2]


def test_halving_skips_what_is_nearly_as_large(
    tmp_path: Path, auto: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(fit, "measured_step", device_for(4, tried))
    train(auto.replace(steps=1, batch_size=12), Folder(tmp_path))
    assert tried == [1, 2, 4]  # of 12, 6 and 3: not 4, of which there would be three
    assert taken(tmp_path) == [4]


def test_a_run_that_is_continued_takes_the_same(
    tmp_path: Path, auto: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(fit, "measured_step", device_for(2, tried))
    train_until(Folder(tmp_path), auto, 6)
    tried.clear()
    monkeypatch.setattr(fit, "measured_step", device_for(8, tried))
    assert train(auto, Folder(tmp_path)).status == "done"
    assert (tried, taken(tmp_path)) == ([], [4])
    (text,) = open_store(tmp_path).runs.collect()["environment_json"]
    assert "resumed_from" not in json.loads(text)


def test_what_was_taken_without_room_for_copies_is_continued_without_them(
    tmp_path: Path, auto: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = auto.replace(tracking={"track_every": 1}), memory(auto.replace(micro_batches=1))
    lacks = whole.peak + whole.tracking - whole.weights - whole.optimizer
    assert memory(auto).peak + whole.tracking < 0.8 * lacks  # smaller micro-batches would have room for them
    measured: list[bool] = []
    begin = recorder.begin

    def noted(work: Any, device: torch.device, *, beside: bool) -> Any:
        measured.append(beside)
        return begin(work, device, beside=beside)

    monkeypatch.setattr(recorder, "begin", noted)
    monkeypatch.setattr(fit, "measured_step", device_for(8, []))
    train_until(Folder(tmp_path), run, 6)
    measure_beside(monkeypatch)
    for share, beside in ((0.99, False), (1.01, True)):
        free = int(share * lacks / (1 - fit.SPARE))
        monkeypatch.setattr(environment, "free_memory_bytes", lambda device, free=free: free)
        measured.clear()
        train_until(Folder(tmp_path), run, 6)
        assert (set(measured), taken(tmp_path)) == ({beside}, [1])


def test_what_was_taken_is_named_where_a_run_goes_on_with_a_number(
    tmp_path: Path, auto: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "measured_step", device_for(4, []))
    train_until(Folder(tmp_path), auto, 6)
    with pytest.warns(UserWarning, match=r"goes on in another environment \(micro_batches was 2\)"):
        train(auto.replace(micro_batches=1), Folder(tmp_path))


def test_a_device_without_room_for_one_sequence_is_told_in_one_line(
    auto: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "measured_step", device_for(0, []))
    with pytest.raises(DoesNotFit, match=r"^a step ran out of memory in micro-batches of 1 sequence, the smallest .*$"):
        train(auto, None)


def test_other_errors_of_the_step_are_not_taken_for_want_of_memory(
    auto: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(fit, "measured_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(auto, None)


def test_tree_reduction_takes_a_power_of_two(tmp_path: Path, auto: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(fit, "measured_step", device_for(5, tried))
    train(auto.replace(steps=1, batch_size=12, reduction="tree"), Folder(tmp_path))
    assert (tried, taken(tmp_path)) == ([1, 2, 4], [4])


def test_choices_divide_the_batch_and_are_dealt_out_evenly() -> None:
    assert RunConfig(batch_size=12, micro_batches="auto").micro_batch_choices(1) == [1, 2, 3, 4, 6, 12]
    assert RunConfig(batch_size=12, micro_batches="auto").micro_batch_choices(2) == [2, 4, 6, 12]
    assert RunConfig(batch_size=12, reduction="tree").micro_batch_choices(2) == [2, 4]
    with pytest.raises(ValueError, match=r"finds no power of two that divides batch_size 12 and that 3 workers divide"):
        RunConfig(batch_size=12, micro_batches="auto", reduction="tree").check_workers(3)
    with pytest.raises(ValueError, match=r"finds no number that divides batch_size 12 and that 5 workers divide"):
        RunConfig(batch_size=12, micro_batches="auto").check_workers(5)


def cramped(config: str, store: Path) -> None:
    """A process that the system refuses memory, at a third of what the estimate asks for the whole batch at once."""
    run = RunConfig.model_validate_json(config)
    whole = memory(run.replace(micro_batches=1)).peak
    room, real = whole // 3, fit.measured_step
    environment.free_memory_bytes = lambda device: 2 * whole  # which is not true

    def step(config: RunConfig, state: TrainState, pieces: int, beside: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, resource.RLIM_INFINITY))
        try:
            real(config, state, pieces, beside)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    fit.measured_step = step
    train(run, Folder(store))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_a_step_that_the_system_refuses_memory_is_halved(tmp_path: Path, auto: RunConfig) -> None:
    process = start_process(cramped, auto.replace(steps=1, batch_size=1024).model_dump_json(), tmp_path)
    process.join()
    (pieces,) = taken(tmp_path)
    assert 1 < pieces < 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_halves_until_a_step_fits(tmp_path: Path, auto: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config, device = auto.replace(steps=1, batch_size=8192), torch.device("cuda", 0)
    whole = memory(config.replace(micro_batches=1)).peak
    monkeypatch.setattr(environment, "free_memory_bytes", lambda device: 2 * whole)  # which is not true
    limit = torch.cuda.memory_allocated(device) + whole // 2
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory, device)
    try:
        assert train(config, Folder(tmp_path), device=device).status == "done"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    (pieces,) = taken(tmp_path)
    assert 1 < pieces < 64


def small_second(rank: int, config: str, stores: Path) -> None:
    """One of two ranks, of which the second has less memory."""
    tried: list[int] = []
    fit.measured_step = device_for(4 if rank == 0 else 2, tried)
    run = RunConfig.model_validate_json(config)
    assert train(run, Folder(stores / "auto")).status == "done"
    assert tried == [2, 4]
    assert train(run.replace(micro_batches=4), Folder(stores / "four")).status == "done"


@pytest.mark.slow
def test_two_workers_take_what_the_smaller_has_room_for(tmp_path: Path, auto: RunConfig) -> None:
    run_ranks(2, tmp_path / "together", small_second, auto.model_dump_json(), tmp_path)
    assert taken(tmp_path / "auto") == [4]
    automatic, four = (weights(Folder(tmp_path / name), auto) for name in ("auto", "four"))
    assert all(torch.equal(automatic[name], four[name]) for name in four)
