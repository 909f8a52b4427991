"""What a machine has, read from a tree like the one the kernel shows, and whether a run fits on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.machine import assumed_gpu, count_cpus, count_gpus, misfit
from search_spaces.spec import Resources


def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def with_gpus(root: Path, number: int) -> Path:
    (root / "dev").mkdir()
    for name in ["nvidiactl", "nvidia-uvm", *(f"nvidia{index}" for index in range(number))]:
        (root / "dev" / name).touch()
    return root


@pytest.fixture(autouse=True)
def _sees_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def bound_to_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)})


@pytest.mark.usefixtures("bound_to_eight")
@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 8), ("400000 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("", 8)]
)
def test_a_control_group_limits_the_cpus(quota: str, cpus: int, tmp_path: Path) -> None:
    files(tmp_path, **{"sys__fs__cgroup__cpu.max": quota})
    assert count_cpus(tmp_path) == cpus


@pytest.mark.usefixtures("bound_to_eight")
@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("300000", 3), ("9900000", 8)])
def test_so_does_one_of_the_first_version(quota: str, cpus: int, tmp_path: Path) -> None:
    folder = "sys__fs__cgroup__cpu__cpu.cfs_"
    files(tmp_path, **{f"{folder}quota_us": f"{quota}\n", f"{folder}period_us": "100000\n"})
    assert count_cpus(tmp_path) == cpus


@pytest.mark.usefixtures("bound_to_eight")
def test_without_control_groups_there_is_what_the_process_is_bound_to(tmp_path: Path) -> None:
    assert count_cpus(tmp_path) == 8


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, 4), ("", 0), ("-1", 0), ("0,2", 2), ("1,-1,2", 1), ("GPU-8f7a, MIG-1b", 2)]
)
def test_gpus_are_the_devices_that_are_visible(
    visible: str | None, gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus(with_gpus(tmp_path, 4)) == gpus


def test_visible_devices_that_are_not_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert count_gpus(tmp_path) == 0


def test_the_driver_is_asked_where_there_are_no_device_files(tmp_path: Path) -> None:
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / bus).mkdir(parents=True)
    assert count_gpus(tmp_path) == 2


@pytest.mark.usefixtures("bound_to_eight")
@pytest.mark.parametrize(
    ("resources", "gpus", "said"),
    [
        (Resources(), 0, ""),
        (Resources(workers=8), 0, ""),
        (Resources(gpus_per_worker=0.5), 1, ""),
        (Resources(gpus_per_worker=0.75, workers=2), 2, ""),
        (Resources(workers=9), 0,
         "a run needs 9 CPUs, this machine has 8: run it on a cluster with --address, or lower workers or "
         "cpus_per_worker"),
        (Resources(gpus_per_worker=1), 0,
         "a run needs 1 GPU, this machine has 0: run it on a cluster with --address, or set gpus_per_worker: 0"),
        (Resources(gpus_per_worker=0.75, workers=2), 1,
         "a run needs 1.5 GPUs, this machine has 1: run it on a cluster with --address, or lower workers or "
         "gpus_per_worker"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_the_remedy(resources: Resources, gpus: int, said: str, tmp_path: Path) -> None:
    assert misfit(resources, with_gpus(tmp_path, gpus)) == said


def test_counting_loads_neither_ray_nor_torch() -> None:
    code = "import sys, ray_jobs.machine as m; m.count_cpus(), m.count_gpus(); print({'ray', 'torch'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


INFORMATION = "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 97\nGPU UUID: \t GPU-1b\n"


@pytest.mark.usefixtures("bound_to_eight")
def test_runs_are_planned_for_the_gpu_of_the_node_type_or_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUON_NODE_TYPE", raising=False)
    one, two = Resources(gpus_per_worker=1), Resources(workers=2, gpus_per_worker=1)
    assert assumed_gpu(one, tmp_path) == "h100"
    root = files(with_gpus(tmp_path, 1), **{"proc__driver__nvidia__gpus__0000:01:00.0__information": INFORMATION})
    assert assumed_gpu(one, root) == "rtx4090"
    assert assumed_gpu(two, root) == "h100"  # which has no room here
    other = files(root, **{"proc__driver__nvidia__gpus__0000:01:00.0__information": "Model: \t NVIDIA H800\n"})
    assert assumed_gpu(one, other) == "h100"
    monkeypatch.setenv("MUON_NODE_TYPE", "g5.12xlarge")
    assert assumed_gpu(one, root) == "a10g"
