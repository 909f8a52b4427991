"""What a machine has left, from what Linux and a container's control group say."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from muon_core import environment
from muon_core.config.run import RunConfig
from muon_core.config.sizes import flops_per_token
from muon_core.environment import free_memory_bytes
from muon_core.stopwatch import Stopwatch
from muon_core.throughput import Throughput
from ray_jobs.workers import forget_previous_run


def test_a_machine_has_memory_left() -> None:
    assert 2**26 < free_memory_bytes(torch.device("cpu")) < 2**50


def test_a_container_has_left_what_its_limit_leaves(tmp_path: Path) -> None:
    assert environment._left_in_container(tmp_path) is None  # no control group, or its version 1
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\nactive_file 0\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert environment._left_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert environment._left_in_container(tmp_path) == 500
    (tmp_path / "memory.max").write_text("300\n")
    assert environment._left_in_container(tmp_path) == 0


@pytest.fixture
def _tf32_restored() -> Iterator[None]:
    yield
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("_tf32_restored")
def test_tf32_is_told_by_whichever_setting_turned_it_on() -> None:
    """Torch raises where its older settings are asked after a newer one was set, as an optimizer's module may do."""
    assert not environment.uses_tf32()
    assert environment.fingerprint()["float32_matmul"] == "highest"
    torch.set_float32_matmul_precision("high")
    assert environment.uses_tf32()
    assert environment.fingerprint()["float32_matmul"] == "high"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert environment.uses_tf32()
    assert environment.fingerprint()["float32_matmul"] == "tf32"


def test_on_cuda_the_settings_that_change_bits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    told = environment.fingerprint()
    assert (told["tf32"], told["cublas_workspace"], told["deterministic"]) == (False, ":4096:8", False)
    assert "flash" in told["attention"]


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12), ("NVIDIA H100 80GB HBM3", "fp32", 67e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None), ("Tesla T4", "bf16", None), ("Tesla T4", "fp32", 8.1e12),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_tf32_restored")
def test_mfu_is_of_the_peak_of_the_precision_and_null_where_none_is_known(
    device: str, precision: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "device_name", lambda _: device)
    run = RunConfig.model_validate({"precision": precision})
    found = Throughput(run, Stopwatch(), torch.device("cpu")).mfu(1e6)
    assert found == (None if peak is None else pytest.approx(flops_per_token(run) * 1e6 / peak))
    torch.set_float32_matmul_precision("high")
    rounded = Throughput(run, Stopwatch(), torch.device("cpu")).mfu(1e6)
    assert rounded == (None if precision == "fp32" else found)


def test_a_process_that_never_met_cuda_does_not_meet_it_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on CPUs beside GPUs would make a context on one, half a gigabyte for each worker."""
    asked = []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: asked.append(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    forget_previous_run()
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    forget_previous_run()
    assert asked == ["empty_cache", "reset_peak_memory_stats"]
