"""Hosts are machines of their own, come back with their disk or without, and leave nothing."""

import subprocess
from pathlib import Path

import pytest
from cluster.hosts import Host, Network, hosts, network


def install(home: Path) -> None:
    (home / "installed").write_text("as new")


def run(host: Host, command: str) -> str:
    """What `command` prints on `host`."""
    return subprocess.run(host.command("sh", "-c", command), capture_output=True, text=True, check=True).stdout


def log_in(host: Host, other: Host, command: str) -> subprocess.CompletedProcess[str]:
    """`command` on `other`, from `host`, by ssh."""
    options = "-o StrictHostKeyChecking=no -o BatchMode=yes -o ConnectTimeout=3 -o LogLevel=ERROR"
    ssh = f"ssh {options} -i {host.network.private_key} root@{other.address} '{command}'"
    return subprocess.run(host.command("sh", "-c", ssh), capture_output=True, text=True)


def test_hosts_reach_each_other_are_cut_off_and_come_back_with_their_disk_or_empty() -> None:
    with network() as net, hosts(net, ["one", "two"], install, []) as (one, two):
        for folder in ("/root", "/tmp", "/run", "/dev/shm"):
            run(two, f"touch {folder}/left-here")
            assert run(one, f"ls {folder}/left-here 2>&1 || true").startswith("ls: cannot access")
            assert not Path(folder, "left-here").exists()
        assert log_in(one, two, "hostname").stdout == "two\n"
        sleeper = subprocess.Popen(two.command("sleep", "600"))
        two.cut()
        assert sleeper.wait(10) != 0
        assert log_in(one, two, "true").returncode == 255
        two.start()
        found = "cd / && ls -d root/* tmp/* run/left-here dev/shm/left-here 2>/dev/null"
        assert log_in(one, two, found).stdout.split() == ["root/installed", "root/left-here", "tmp/left-here"]
        two.cut()
        two.start(empty=True)
        assert log_in(one, two, found).stdout.split() == ["root/installed"]


def test_this_machine_stays_within_reach_when_a_host_is_cut_off() -> None:
    """A bridge without an address of its own has that of a port, and another one when that port goes."""
    with network() as net, hosts(net, ["one", "two", "three"], install, []) as made:
        address = Path("/sys/class/net", net.bridge, "address")
        before = address.read_text()
        for host in made:
            host.cut()
            assert address.read_text() == before


def fail_on(net: Network) -> None:
    """Break while a host is on."""
    with hosts(net, ["one"], install, []) as (one,):
        raise ZeroDivisionError(one.first_process)


def test_hosts_that_a_failure_ends_leave_no_process_no_link_and_no_file() -> None:
    with network() as net, pytest.raises(ZeroDivisionError) as failure:
        fail_on(net)
    (first,) = failure.value.args
    assert first
    assert not Path(f"/proc/{first}").exists()
    assert not net.folder.exists()
    links = [path.name for path in Path("/sys/class/net").iterdir()]
    assert [name for name in links if name.startswith(net.bridge)] == []
