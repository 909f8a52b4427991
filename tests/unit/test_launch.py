"""How many worker groups a sweep uses at a time, here and on clusters."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from search_spaces.spec import Resources

SLOT_MEMORY = 2**30
GPU = Resources(workers=2, cpus_per_worker=2, gpus_per_worker=1)  # a slot takes 4 CPUs and 2 GPUs


@dataclass(frozen=True)
class Launch:
    """The module under test with a Ray that is not there."""

    module: ModuleType
    patch: pytest.MonkeyPatch

    def slots(
        self, held: dict[str, float], resources: Resources = GPU, *, private: bool = False, grows: bool = False
    ) -> int:
        """Of twenty runs, on a Ray that holds so much, and may get more if it `grows`."""
        self.patch.setattr(self.module.ray, "cluster_resources", lambda: held)
        self.patch.setattr(self.module, "can_grow", lambda: grows)
        count: int = self.module._slots(resources, 20, private=private)
        return count


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Imported here: every process of a parallel run reads every file of tests, and Ray takes seconds to load."""
    from ray_jobs import launch

    assert launch.SLOT_MEMORY == SLOT_MEMORY
    return Launch(launch, monkeypatch)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(("cpus", "gpus", "count"), [(4, 2, 1), (40, 6, 3), (12, 60, 3), (400, 400, 20)])
def test_slots_fill_what_is_there_and_are_no_more_than_runs(
    launch: Launch, cpus: int, gpus: int, count: int, private: bool
) -> None:
    held = {"CPU": cpus, "GPU": gpus, "memory": 100.0 * SLOT_MEMORY}
    assert launch.slots(held, private=private) == count


@pytest.mark.parametrize(("memory", "count"), [(0.5, 1), (11.4, 11), (64, 20)])
def test_slots_of_a_cluster_that_starts_from_nothing_are_what_its_head_can_drive(
    launch: Launch, memory: float, count: int
) -> None:
    assert launch.slots({"memory": memory * SLOT_MEMORY}) == count


def test_slots_of_a_cluster_that_grows_ask_for_more_than_is_up(launch: Launch) -> None:
    assert launch.slots({"CPU": 4, "GPU": 2, "memory": 8.0 * SLOT_MEMORY}, grows=True) == 8
    assert launch.slots({"CPU": 40, "GPU": 20, "memory": 4.0 * SLOT_MEMORY}, grows=True) == 10


def test_slots_are_what_was_asked_for(launch: Launch) -> None:
    asked = Resources(gpus_per_worker=1, max_concurrent=6)
    assert launch.slots({"memory": 64.0 * SLOT_MEMORY}, asked) == 6
    assert launch.slots({"CPU": 2, "GPU": 2}, asked) == 6


def test_slots_of_a_tenth_of_a_gpu_are_ten(launch: Launch) -> None:
    assert launch.slots({"CPU": 16, "GPU": 1}, Resources(gpus_per_worker=0.1)) == 10


def test_a_machine_that_is_too_small_is_refused(launch: Launch) -> None:
    with pytest.raises(ValueError, match=r"^a run needs 4 CPUs and 2 GPUs, this machine has 8 CPUs and 0 GPUs; "):
        launch.slots({"CPU": 8, "memory": 64.0 * SLOT_MEMORY}, private=True)


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
    launch: Launch, tmp_path: Path, alive: list[bool], cpus: int, shared: bool, refused: bool
) -> None:
    @contextlib.contextmanager
    def joined(*_: Any) -> Iterator[None]:
        yield

    def remote(**_: Any) -> None:
        raise Connected

    launch.patch.setattr(launch.module, "connected", joined)
    launch.patch.setattr(launch.module, "give_back_of_the_dead", lambda: None)
    launch.patch.setattr(launch.module, "check_nodes", lambda storage: None)
    launch.patch.setattr(launch.module, "can_grow", lambda: False)
    launch.patch.setattr(launch.module.ray, "nodes", lambda: [{"Alive": state} for state in alive])
    launch.patch.setattr(launch.module.ray, "cluster_resources", lambda: {"CPU": cpus})
    launch.patch.setattr(launch.module.ray, "remote", remote)
    message = f"^the runs would write to {tmp_path} on several machines, each to a disk of its own; give --store "
    with pytest.raises(ValueError, match=message) if refused else pytest.raises(Connected):
        launch.module.run_on_ray([RunConfig()], Folder(tmp_path), Resources(), address="auto", shared_folder=shared)
