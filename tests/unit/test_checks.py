"""What `muon doctor` asks of a machine, where the machine is bent to give the answer that hurts."""

import errno
import os
import re
import resource
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from muon_core.code_state import PACKAGES
from muon_core.store.folder import Folder
from muon_core.store.storage import Listed
from ray_jobs import checks
from ray_jobs.checks import Wrong, check, within
from ray_jobs.job_entry import sources_sha256


def test_a_check_is_what_it_found_or_what_is_wrong_in_one_line() -> None:
    def fail(error: Exception) -> str:
        raise error

    assert check("disk", lambda: "large") == ("disk", True, "large")
    assert check("disk", lambda: fail(Wrong("full;\nfree space"))) == ("disk", False, "full; free space")
    assert check("disk", lambda: fail(ValueError("no folder"))) == ("disk", False, "no folder")
    assert check("disk", lambda: fail(OSError(errno.EIO, "broken"))) == ("disk", False, "OSError: [Errno 5] broken")


def test_what_waits_for_another_machine_is_not_waited_for() -> None:
    left = threading.Event()
    with pytest.raises(Wrong, match=r"^no answer within 0 s; check the network, and AWS_ENDPOINT_URL"):
        within(0.01, lambda: str(left.wait()))
    left.set()
    assert within(10, lambda: "here") == "here"
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: str(1 / 0))


def test_this_environment_has_what_the_package_requires() -> None:
    assert checks.packages().startswith("muon-jobs ")


def test_packages_that_are_missing_or_too_old_are_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["click<1", "no-such-package>=2", "pyyaml", 'optuna; extra == "search"']
    monkeypatch.setattr(checks, "requires", lambda _: wanted)
    with pytest.raises(Wrong) as wrong:
        checks.packages()
    told = f"click {checks.version('click')}, no-such-package is missing; pip install 'click<1' 'no-such-package>=2'"
    assert str(wrong.value) == told


def test_packages_off_the_constraints_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text("# with which the tests ran\nclick==0.1\nnever-installed==1\n")
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    assert checks.packages().endswith("; not as in constraints.txt: click")


def test_a_python_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.python()
    monkeypatch.setattr(checks.platform, "python_version", lambda: "3.9.1")
    with pytest.raises(Wrong, match=r"^3\.9\.1, and muon-jobs needs >=3\.11; make"):
        checks.python()


def test_nodes_with_other_versions_or_other_code_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = checks.versions()
    assert checks.same_versions(wanted).startswith("Python 3.")
    changed = wanted | {"torch": "1.0", "the code of muon-jobs": "0123456789ab"}
    with pytest.raises(Wrong) as wrong:
        checks.same_versions(changed)
    assert f"torch is {wanted['torch']}, not 1.0, the code of muon-jobs is " in str(wrong.value)
    assert ", not 0123456789ab, as on the node that was asked; install the same on all" in str(wrong.value)


def test_the_code_is_known_by_its_source() -> None:
    """By the hash that a job's code is proved by."""
    assert checks.versions()["the code of muon-jobs"] == sources_sha256(PACKAGES)[:12]


def test_too_little_room_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks.tempfile, "gettempdir", lambda: str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 30))
    assert checks.disk().startswith(f"{tmp_path}/not/yet 3.0 GiB free, ")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 20))
    with pytest.raises(Wrong, match=rf"^{tmp_path}/not/yet has 0\.1 GiB left; free space, or set TMPDIR"):
        checks.disk()


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_little_shared_memory_is_wrong_for_several_gpus(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    monkeypatch.setattr(checks, "count_gpus", lambda: gpus)
    if gpus < 2:
        assert checks.shared_memory() == "0.1 GiB free, so Ray keeps objects on disk"
    else:
        with pytest.raises(Wrong, match=r"too little for several GPUs; `docker run --shm-size=1g`"):
            checks.shared_memory()


def test_few_open_files_are_wrong() -> None:
    assert checks.open_files(65536) == "65536"
    assert checks.open_files(resource.RLIM_INFINITY) == "no limit"
    with pytest.raises(Wrong, match=r"^1024 at most; `ulimit -n 65536`"):
        checks.open_files(1024)


def test_a_torch_without_cuda_on_a_machine_with_gpus_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(checks, "count_gpus", lambda: 0)
    assert checks.gpus() == f"none; torch {checks.version('torch')}"
    monkeypatch.setattr(checks, "count_gpus", lambda: 2)
    with pytest.raises(Wrong, match=r"^2 there, and torch is built without CUDA \(driver .*\); install its build"):
        checks.gpus()


def test_gpus_that_the_driver_does_not_serve_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(checks, "count_gpus", lambda: 2)
    with pytest.raises(Wrong, match=r"^2 there, of which torch sees 0 \(.*, CUDA 13\.0\); update the driver"):
        checks.gpus()


def test_a_store_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    new = tmp_path / "results"
    assert checks.store(str(new)) == f"{new} does not exist yet and can be made"
    assert not new.exists()
    assert checks.store(str(tmp_path)) == f"{tmp_path} can be written and read"
    assert Folder(tmp_path).list("") == []
    assert checks.clock(str(tmp_path)) == "that of the store is this machine's"


def test_a_store_that_cannot_be_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not check("store", lambda: checks.store(str(tmp_path / "file"))).is_ok
    assert not check("store", lambda: checks.store("s4://bucket")).is_ok


def test_a_folder_that_may_not_be_made_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # of root, who may run the tests, nothing else is true
    with pytest.raises(Wrong, match=rf"^{tmp_path}/results does not exist, and {tmp_path} cannot be written to"):
        checks.store(str(tmp_path / "results"))


class _Elsewhere(Folder):
    """A store on a machine whose clock is `ahead` of ours, and which tells whole seconds."""

    is_local = False
    ahead = 0.0

    def stat(self, prefix: str) -> list[Listed]:
        return [Listed(item.key, item.size, float(int(time.time() + self.ahead))) for item in super().stat(prefix)]


@pytest.mark.parametrize(
    ("ahead", "told"),
    [(0.0, "within 1 s of"), (600.0, "(599|600) s behind"), (-600.0, "(599|600) s ahead of")],
)
def test_the_clock_is_compared_with_the_stores(
    ahead: float, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _Elsewhere(tmp_path)
    there.ahead = ahead
    monkeypatch.setattr(checks, "open_storage", lambda _: there)
    seen = check("clock", lambda: checks.clock("s3://bucket"))
    assert seen.is_ok == (ahead == 0.0)
    assert re.match(f"{told} the store's", seen.text)
