"""How many worker groups a sweep uses at a time, here and on clusters."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from ray_jobs import launch
from ray_jobs.launch import SLOT_MEMORY
from search_spaces.spec import Resources

GPU = Resources(workers=2, cpus_per_worker=2, gpus_per_worker=1)  # a slot takes 4 CPUs and 2 GPUs


def slots(
    monkeypatch: pytest.MonkeyPatch, held: dict[str, float], resources: Resources = GPU, *, private: bool = False
) -> int:
    """Of twenty runs, on a Ray that holds so much."""
    monkeypatch.setattr(launch.ray, "cluster_resources", lambda: held)
    return launch._slots(resources, 20, private=private)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(("cpus", "gpus", "count"), [(4, 2, 1), (40, 6, 3), (12, 60, 3), (400, 400, 20)])
def test_slots_fill_what_is_there_and_are_no_more_than_runs(
    monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: int, count: int, private: bool
) -> None:
    held = {"CPU": cpus, "GPU": gpus, "memory": 100.0 * SLOT_MEMORY}
    assert slots(monkeypatch, held, private=private) == count


@pytest.mark.parametrize(("memory", "count"), [(0.5, 1), (11.4, 11), (64, 20)])
def test_slots_of_a_cluster_that_starts_from_nothing_are_what_its_head_can_drive(
    monkeypatch: pytest.MonkeyPatch, memory: float, count: int
) -> None:
    assert slots(monkeypatch, {"memory": memory * SLOT_MEMORY}) == count


def test_slots_are_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Resources(gpus_per_worker=1, max_concurrent=6)
    assert slots(monkeypatch, {"memory": 64.0 * SLOT_MEMORY}, asked) == 6
    assert slots(monkeypatch, {"CPU": 2, "GPU": 2}, asked) == 6


def test_slots_of_a_tenth_of_a_gpu_are_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slots(monkeypatch, {"CPU": 16, "GPU": 1}, Resources(gpus_per_worker=0.1)) == 10


def test_a_machine_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^a run needs 4 CPUs and 2 GPUs, this machine has 8 CPUs and 0 GPUs; "):
        slots(monkeypatch, {"CPU": 8, "memory": 64.0 * SLOT_MEMORY}, private=True)


class Connected(Exception):
    """Got past the checks."""


@pytest.mark.parametrize(
    ("alive", "cpus", "shared", "refused"),
    [
        ([True], 8, False, False),
        ([True, False], 8, False, False),  # a node that has left
        ([True, True], 8, False, True),
        ([True], 0, False, True),  # its workers are still to come
        ([True, True], 8, True, False),
    ],
)
def test_a_folder_serves_a_cluster_only_where_all_runs_reach_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alive: list[bool], cpus: int, shared: bool, refused: bool
) -> None:
    @contextlib.contextmanager
    def joined(*_: Any) -> Iterator[None]:
        yield

    def remote(**_: Any) -> None:
        raise Connected

    monkeypatch.setattr(launch, "connected", joined)
    monkeypatch.setattr(launch.ray, "nodes", lambda: [{"Alive": state} for state in alive])
    monkeypatch.setattr(launch.ray, "cluster_resources", lambda: {"CPU": cpus})
    monkeypatch.setattr(launch.ray, "remote", remote)
    message = f"^the runs would write to {tmp_path} on several machines, each to a disk of its own; give --store "
    with pytest.raises(ValueError, match=message) if refused else pytest.raises(Connected):
        launch.run_on_ray([RunConfig()], Folder(tmp_path), Resources(), address="auto", shared_folder=shared)
