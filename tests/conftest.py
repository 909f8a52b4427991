"""Fixtures several test folders share, where a session keeps its files, and the order of the tests."""

import gc
import os
import shutil
import signal
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers.fixtures import faults, s3_server, s3_servers, s3_url, storage  # noqa: F401  # fixtures of every folder
from servers.shared import wait_for_keepers
from support.session import shared_folder, turn

# Ray's workers stand behind all other processes by default: beside other tests they would wait for those to end.
os.environ.setdefault("RAY_worker_niceness", "3")
os.environ["OMP_NUM_THREADS"] = "1"  # the bits of a run depend on it, and two suites share the cores

from muon_core.config.run import RunConfig

collect_ignore = ["cluster"]  # `make test-cluster` asks for it: it needs root, and ten minutes
WITH_CEPH = bool(os.environ.get("MUON_CEPH_ROOT"))
WITH_LARGE = bool(os.environ.get("MUON_LARGE"))
CORPUS_PACKAGES = ("json", "email", "logging", "unittest", "asyncio", "html")
BEHIND = 5  # niceness: two thirds of the share of Ray's workers, a third of that of who starts them
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 2 << 30

LONG_FILES = (
    "test_on_ray.py",
    "test_cluster.py",
    "test_train.py",
    "test_report.py",
    "test_optimizers.py",
    "test_resume.py",
    "test_reproduce.py",
    "test_fsdp.py",
    "test_store_protocol.py",
    "test_optim_runs.py",
    "test_cli.py",
    "test_store_servers.py",
    "test_store_kill.py",
    "test_docs.py",
    "test_open_store.py",
    "test_s3.py",
    "test_optim_muon.py",
    "test_matrix_figures.py",
    "test_store_faults.py",
    "test_damage.py",
    "test_search_runs.py",
    "test_ddp.py",
    "test_in_process.py",
    "test_two_sweeps.py",
    "test_sweep_stop.py",
)
"""The longest first: in a parallel run a file goes to a worker whole, and none should be left with one at the end."""


def pytest_configure() -> None:
    """Keep the files of the session in memory where there is room: the store waits for the disk at every write.

    That it does is for tests/unit/test_folder.py to watch, which counts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell starts what it runs in the background; what tests start and interrupt would ignore it, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage among a million objects of modules, neither while they are loaded nor in any test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder for what all processes of a parallel run share."""
    return shared_folder(tmp_path_factory, request.config)


@pytest.fixture(scope="session")
def corpus(session_folder: Path) -> Path:
    """About 1 MB of real text: a few packages of the standard library."""
    folder, stdlib = session_folder / "corpus", Path(sysconfig.get_paths()["stdlib"])
    with turn(session_folder / "corpus.lock"):
        for package in CORPUS_PACKAGES:
            if not (folder / package).exists():
                shutil.copytree(stdlib / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(session_folder: Path) -> Iterator[None]:
    """Prepared tokens go to a folder of the session, for all its processes and those they start."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(session_folder / "cache")
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
    """Leave Ceph and large models out unless they are asked for, and begin with the files that take longest."""
    unasked = [marker for marker, asked in (("ceph", WITH_CEPH), ("large", WITH_LARGE)) if not asked]
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in unasked)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the tests on Ray go first: they are few, and their processes, which wait for each other, end last otherwise.

    A worker that has come to its first other test stays behind for good, with all it starts.
    """
    if not item.get_closest_marker("ray") and os.nice(0) == 0:
        os.nice(BEHIND)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Leave no S3 server behind; outside of any test, whose time limit this would count against."""
    wait_for_keepers()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out, which a count of deselected tests does not."""
    if not WITH_CEPH:
        terminalreporter.write_line(
            "Ceph was left out: set MUON_CEPH_ROOT to / where it is installed, or to the folder it is unpacked in"
        )
    if not WITH_LARGE:
        terminalreporter.write_line("Two steps of the 88m preset were left out: `make test-large` takes them")
