"""What a machine has left, from what Linux and a container's control group say."""

from pathlib import Path

import torch

from muon_core import environment
from muon_core.environment import free_memory_bytes


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
