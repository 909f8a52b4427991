"""Fixtures several test folders share: a small real corpus, and a run that trains in a second."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers.fixtures import faults, s3_server, s3_servers, s3_url, storage  # noqa: F401  # fixtures of every folder

os.environ["OMP_NUM_THREADS"] = "1"  # the bits of a run depend on it, and two suites share the cores

from muon_core.config.run import RunConfig

WITH_CEPH = bool(os.environ.get("MUON_CEPH_ROOT"))
CORPUS_PACKAGES = ("json", "email", "logging", "unittest", "asyncio", "html")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1 MB of real text: a few packages of the standard library."""
    folder = tmp_path_factory.mktemp("corpus")
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for package in CORPUS_PACKAGES:
        shutil.copytree(stdlib / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared tokens go to a folder of the session, for this process and those it starts."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def small(corpus: Path) -> dict[str, Any]:
    """Fields of a run that takes about a second."""
    return {
        "model": {"d_model": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "d_ff": 64, "vocab_size": 512},
        "data": {"corpus": str(corpus), "seq_len": 32, "validation_tokens": 512,
                 "validation_share": 0.05},
        "steps": 8,
        "batch_size": 8,
        "tracking": {"eval_every": 4, "track_every": 4},
    }  # fmt: skip


@pytest.fixture
def run_config(small: dict[str, Any]) -> RunConfig:
    """That run, under Muon."""
    return RunConfig.model_validate(small)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave Ceph out unless it is asked for.

    Under parallel runs, tests that start a Ray take turns, and so do those that share a server.
    """
    if not WITH_CEPH:
        left_out = [item for item in items if item.get_closest_marker("ceph")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        for marker in ("ray", "s3"):
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.xdist_group(marker))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say that a server was left out, which a count of deselected tests does not."""
    if not WITH_CEPH:
        terminalreporter.write_line(
            "Ceph was left out: set MUON_CEPH_ROOT to / where it is installed, or to the folder it is unpacked in"
        )
