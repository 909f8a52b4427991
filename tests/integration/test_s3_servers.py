"""The servers the tests stand on, and `make s3` offers: they keep their objects, and say how to reach them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import servers.s3_servers as s3_servers

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("name", s3_servers.NAMES)
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


def test_a_server_that_is_not_installed_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_servers, "VENV", tmp_path / "bin")
    with pytest.raises(RuntimeError, match="run `make s3-servers`"), s3_servers.running("swift", tmp_path):
        pass
