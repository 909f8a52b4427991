"""The servers the tests stand on, and `make s3` offers: they keep their objects, and say how to reach them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import servers.s3_servers as s3_servers
from servers.fixtures import ON_SERVERS

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("name", ON_SERVERS)
def test_a_server_keeps_its_objects_when_it_is_started_again(name: str, tmp_path: Path) -> None:
    with s3_servers.running(name, tmp_path) as server:
        s3_servers.client(server).put_object(Bucket=s3_servers.BUCKET, Key="a", Body=b"kept")
    with s3_servers.running(name, tmp_path) as server:
        answer = s3_servers.client(server).get_object(Bucket=s3_servers.BUCKET, Key="a")
        assert answer["Body"].read() == b"kept"


def test_make_s3_prints_what_to_export_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, s3_servers.__file__, "ministack", str(tmp_path / "s3")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(6)]
    assert [line.split("=")[0] for line in lines[1:5]] == [
        "export AWS_ENDPOINT_URL",
        "export AWS_ACCESS_KEY_ID",
        "export AWS_SECRET_ACCESS_KEY",
        "export AWS_DEFAULT_REGION",
    ]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "stopped\n"


def test_ceph_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    command = [sys.executable, s3_servers.__file__, "ceph", str(tmp_path / "s3")]
    settings = os.environ | {"MUON_CEPH_ROOT": str(tmp_path)}
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        f"ceph-mon, ceph-osd, radosgw missing in {tmp_path}/usr/bin; apt-get install radosgw ceph-mon ceph-osd, "
        "or set MUON_CEPH_ROOT to a folder their packages are unpacked in"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.ceph
def test_ceph_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    with s3_servers.running("ceph", tmp_path) as server:
        daemons = psutil.Process(server.pid).children()
        assert len(daemons) == 3
        psutil.Process(server.pid).kill()
        _, alive = psutil.wait_procs(daemons, timeout=60)
        assert alive == []


def test_a_server_that_is_not_installed_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_servers, "VENV", tmp_path / "bin")
    with pytest.raises(RuntimeError, match="run `make s3-servers`"), s3_servers.running("swift", tmp_path):
        pass
