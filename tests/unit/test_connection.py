"""What is said when no Ray can be had; those that start are met in tests/end_to_end."""

from pathlib import Path
from types import ModuleType

import pytest

from search_spaces.spec import Resources

TIMEOUT = "The current node timed out\nduring startup."
LOG = "E1129 01:41:23.294438354    1031 tcp_server_posix.cc:378]              File descriptor limit reached.\n"


@pytest.fixture
def connection() -> ModuleType:
    """Imported here: every process of a parallel run reads every file of tests, and Ray takes seconds to load."""
    from ray_jobs import connection

    return connection


@pytest.mark.parametrize(
    ("address", "log", "line", "tries"),
    [
        ("10.0.0.5:6379", "", r"^The current node timed out$", 1),
        (None, "", r"^it did not start \(The current node timed out\)$", 2),
        (None, LOG, r"^it did not start \(File descriptor limit reached\.\)$", 2),
    ],
)
def test_a_ray_that_does_not_start_is_an_error_of_one_line(
    connection: ModuleType, monkeypatch: pytest.MonkeyPatch, address: str | None, log: str, line: str, tries: int
) -> None:
    """`ray.init` raises bare exceptions that say nothing of the cause, and it may have been the hurry."""
    folders, asked = [], []

    def init(*, address: str, _temp_dir: str | None = None, **_: object) -> None:
        asked.append(address)
        if _temp_dir:
            folders.append(Path(_temp_dir))
            logs = folders[0] / "session_2026" / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            (logs / "gcs_server.err").write_text(log)
        raise Exception(TIMEOUT)

    monkeypatch.setattr(connection.ray, "init", init)
    with pytest.raises(ConnectionError, match=line), connection.connected(address, Resources()):
        pass
    assert not any(folder.parent.exists() for folder in folders)
    assert len(asked) == tries
