"""cluster-local.yaml brought up on hosts of this machine: machines are lost under sweeps, and nothing else is.

The tests are one story, in order, on one cluster; each prints what it measured. `make test-cluster` runs them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cluster.hosts import Host
from cluster.local_cluster import PATH, ROOT, STORE, Cluster, Followed, cluster
from cluster.waiting import say, until
from servers.fixtures import enter
from support.ranks import run_ranks
from support.same_rows import assert_same_rows
from support.sweeps import sweep_file

from analysis.store import open_store
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.store.keys import parse_checkpoint
from muon_core.store.known import read_known
from muon_core.store.ledger import read_entries
from muon_core.store.open import open_storage
from muon_core.store.storage import Storage
from muon_core.train import train
from ray_jobs.in_process import run_here
from search_spaces.expand import expand
from search_spaces.spec import Resources, load_spec

pytestmark = pytest.mark.timeout(1800)
NOTICED_S = 15.0
LONG, SHORT, SAVED_EVERY = 300, 30, 40  # steps
NODES_S, SWEEP_S = 300.0, 900.0  # how long to wait for all nodes, a sweep
BLOCKS: list[dict[str, Any]] = [
    {"name": "long", "role": "baseline", "optimizer": "adamw", "set": {"steps": LONG}},
    {"name": "muon", "optimizer": "muon", "set": {"steps": SHORT}},
    {"name": "noise", "optimizer": "orthonoise", "set": {"steps": SHORT}},
    {"name": "control", "role": "control", "optimizer": "isotropic", "set": {"steps": SHORT}},
]


@dataclass(frozen=True)
class Story:
    """The cluster, what reads its results from outside of it, and runs that nothing disturbs to compare them with."""

    cluster: Cluster
    storage: Storage
    undisturbed: Path
    folder: Path
    """Which all hosts see."""
    nodes: Followed
    """`watch_nodes.py`, on the head that is up."""
    small: dict[str, Any]
    """Fields of a run."""


def alive(nodes: Followed) -> list[str]:
    """Addresses, as last told."""
    return nodes.lines[-1][1].split()[1:] if nodes.lines else []


def lost_at(nodes: Followed, host: Host, since: float) -> float | None:
    """When Ray took `host` for dead after `since`."""
    times = (at for at, line in nodes.lines if at > since and host.address not in line.split())
    return next(times, None)


def saved_at(storage: Storage, run_id: str) -> int:
    """Steps done at the newest checkpoint of a run; 0 without one."""
    found = (parse_checkpoint(key) for key, _ in storage.list(f"checkpoints/{run_id}/latest/"))
    return max((checkpoint.step for checkpoint in found if checkpoint), default=0)


def host_of(story: Story, run_id: str) -> Host | None:
    """Where rank 0 of a run trains, if it is in the middle of its steps."""
    if not SAVED_EVERY <= saved_at(story.storage, run_id) <= LONG // 2:
        return None
    names = {host.name: host for host in story.cluster.workers}
    return next(
        (names[entry.host] for entry in read_entries(story.storage, run_id)[-1:] if entry.status == "running"), None
    )


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A head and two workers with Ray, brought up from the laptop; nothing of them is left afterwards."""
    began = time.time()
    with pytest.MonkeyPatch.context() as monkeypatch:
        with cluster("one", "two") as made:
            say(f"{time.time() - began:.1f} s: hosts, an S3 server and a token are there")
            enter(made.s3, monkeypatch)
            folder = made.head.network.folder
            try:
                yield bring_up(made, folder, tmp_path_factory.mktemp("undisturbed"))
            finally:
                kept = tmp_path_factory.mktemp("head")
                for log in folder.glob("head/tmp/ray/session_*/logs/monitor.*"):
                    shutil.copy(log, kept / f"{log.parts[-3]}.{log.name}")
                say(f"what started and missed nodes is told in {kept}")
        assert not folder.exists()
        assert not Path("/sys/class/net", made.head.network.bridge).exists()
    say(f"wall time {time.time() - began:.0f} s\n")


def bring_up(made: Cluster, folder: Path, undisturbed: Path) -> Story:
    began = time.time()
    made.up()
    say(f"{time.time() - began:.1f} s: `ray up` has returned")
    nodes = made.watch_nodes()
    until("all nodes are alive", lambda: len(alive(nodes)) == 3, NODES_S)
    say(f"{nodes.lines[-1][0] - began:.1f} s: head and workers are alive")
    corpus = folder / "corpus"
    for package in ("json", "email", "logging", "unittest", "asyncio", "html"):
        source = Path(sysconfig.get_paths()["stdlib"], package)
        shutil.copytree(source, corpus / package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    small = {
        "model": {"d_model": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "d_ff": 64, "vocab_size": 512},
        "data": {"corpus": str(corpus), "seq_len": 32, "validation_tokens": 512, "validation_share": 0.05},
        "batch_size": 32,
        "tracking": {"eval_every": 20, "track_every": 20},
        "checkpoint": {"every_steps": SAVED_EVERY, "every_s": None},
    }
    return Story(made, open_storage(STORE), undisturbed, folder, nodes, small)


def planned(spec: Path) -> dict[str, list[RunConfig]]:
    """The runs of a sweep file, by block."""
    runs: dict[str, list[RunConfig]] = {}
    for run in expand(load_spec(spec)):
        runs.setdefault(run.block, []).append(run.config)
    return runs


def first_step_at(storage: Storage, name: str) -> float:
    """When the first run of a sweep had made its first optimizer step, seconds since 1970."""
    sweep = open_store(storage).sweep(name)
    steps = sweep.train.filter(step=1).select("run_id", "elapsed_s")
    firsts = sweep.attempts.filter(attempt=1).select("run_id", "started_at").join(steps, on="run_id").collect()
    times: list[float] = [started.timestamp() + elapsed for _, started, elapsed in firsts.iter_rows()]
    return min(times)


def test_every_node_is_found_fit_and_only_ray_behind_its_token_and_ssh_listen(story: Story) -> None:
    made, began = story.cluster, time.time()
    doctor = ["muon", "doctor", "--address", "auto", "--store", STORE, "--json"]
    looked = subprocess.run(made.head.command(*doctor, PATH=PATH, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    say(f"{time.time() - began:.1f} s: the doctor has looked all nodes over")
    checks = json.loads(looked.stdout)["checks"]
    assert [check for check in checks if not check["ok"]] == []
    assert looked.returncode == 0
    hosts = (made.head, *made.workers)
    ports = {check["where"]: check["text"] for check in checks if check["check"] == "ports"}
    assert ports.keys() == {host.address for host in hosts}
    assert all(told.startswith("behind a token: ") for told in ports.values()), ports
    for host in hosts:
        sockets = subprocess.run(host.command("ss", "-Hltnp"), capture_output=True, text=True, check=True).stdout
        beyond = [line for line in sockets.splitlines() if not line.split()[3].startswith(("127.", "[::ffff:127."))]
        names = {name for line in beyond for name in re.findall(r'\(\("([^"]+)"', line)}
        assert not [name for name in names - LISTENERS if not name.startswith("ray::")]
        assert not [line for line in beyond if line.split()[3].endswith(":8265")]  # the dashboard's


LISTENERS = {"sshd", "raylet", "gcs_server", "python", "python3"}
"""Programs that may listen beyond loopback, beside those that Ray titles; the doctor has looked at each of Ray's."""


def refused(made: Cluster, spec: Path, *options: str) -> str:
    """What is printed of a sweep that is submitted and refused with exit code 7."""
    began = time.time()
    sweep = made.submit(spec, *options)
    assert sweep.wait(SWEEP_S) == 7, sweep.text
    at, line = next((at, line) for at, line in sweep.lines if line.startswith("muon: "))
    say(f"{at - began:.1f} s: {line}")
    return line


def test_what_keeps_a_sweep_from_starting_is_told_in_a_line(story: Story) -> None:
    """Where nobody is, and where nobody listens."""
    made = story.cluster
    spec = sweep_file(story.folder, story.small, BLOCKS[:1], name="refused", seeds=[1])
    for host in (made.head.network.subnet[99], made.head.address):
        line = refused(made, spec, "--address", f"http://{host}:8265")
        assert f"nothing answers at http://{host}:8265" in line


def test_a_sweep_loses_a_worker_and_nothing_else(story: Story) -> None:
    """Twelve runs; the host of a long one is cut off in mid-run, noticed, and comes back with its disk."""
    spec = sweep_file(story.folder, story.small, BLOCKS, seeds=[1, 2, 3])
    runs = planned(spec)
    longs = [config.run_id for config in runs["long"]]
    began = time.time()
    sweep = story.cluster.start_sweep(spec)

    def struck() -> tuple[str, Host] | None:
        return next(((run, host) for run in longs if (host := host_of(story, run))), None)

    run_id, host = until("a long run is in the middle of its steps", struck, SWEEP_S, sweep)
    cut = time.time()
    host.cut()
    say(f"{host.name} is cut off under {run_id}")
    noticed = until("the loss is noticed", lambda: lost_at(story.nodes, host, cut), 5 * NOTICED_S, sweep)
    say(f"Ray notices after {noticed - cut:.1f} s")
    host.start()
    back = time.time()
    say(f"{host.name} answers ssh again")
    until(f"{host.name} is a node again", lambda: host.address in alive(story.nodes), NODES_S)
    say(f"and is a node again {story.nodes.lines[-1][0] - back:.1f} s later")
    assert sweep.wait(SWEEP_S) == 0, sweep.text
    say(f"the first optimizer step came {first_step_at(story.storage, 'test') - began:.1f} s after the command")
    say(f"the sweep took {time.time() - began:.0f} s")
    for at, line in sweep.lines:
        if " again (" in line:
            say(f"{at - cut:.1f} s after the cut its display said: {line.strip()}")

    assert noticed - cut <= NOTICED_S
    assert len(alive(story.nodes)) == 3
    everything = [config for block in runs.values() for config in block]
    run_here(everything, Folder(story.undisturbed), Resources())
    assert_same_rows(STORE, story.undisturbed, [config.run_id for config in everything])
    check_answers(story, everything)
    attempts = open_store(STORE).sweep("test").attempts.collect()
    lost = attempts.filter(pl.col("status") != "done")
    assert set(lost.select("status", "failure", "host").rows()) == {("lost", "preemption", host.name)}
    assert run_id in lost["run_id"]
    assert attempts.filter(status="done").height == len(everything)
    costs = json.loads(story.cluster.typed("muon", "cost", "test", "--by", "run", "--json", "--store", STORE))
    told = {row["run"]: row["attempts"] for row in costs["rows"]}
    assert told == {config.run_id: 1 + (config.run_id in lost["run_id"]) for config in everything}


def check_answers(story: Story, runs: list[RunConfig]) -> None:
    """What the store says from outside of the cluster, with our readers and without them."""
    finals = open_store(STORE).sweep("test").runs.select("run_id", "status", "final_val_loss").sort("run_id").collect()
    assert finals["status"].to_list() == ["done"] * len(runs)
    options = {"aws_endpoint_url": story.cluster.s3.endpoint, "aws_allow_http": "true", "aws_region": "us-east-1"}
    options |= {"aws_access_key_id": story.cluster.s3.access_key, "aws_secret_access_key": story.cluster.s3.secret_key}
    val = pl.scan_parquet(f"{STORE}/final/table=val/**/*.parquet", hive_partitioning=True, storage_options=options)
    plain = val.sort("step").group_by("run_id").last().select("run_id", "val_loss").sort("run_id").collect()
    assert plain["val_loss"].to_list() == finals["final_val_loss"].to_list()


DDP = {"workers": 2, "cpus_per_worker": 1.5}  # of two a host: the ranks are on two hosts, with a thread each


def ddp_rank(rank: int, config: str, store: str) -> None:
    """One of two that train without Ray."""
    assert train(RunConfig.model_validate_json(config), Folder(store)).status == "done"


def test_a_ddp_run_over_two_hosts_loses_one_and_restarts_whole(story: Story, tmp_path: Path) -> None:
    blocks = [{"name": "ddp", "role": "baseline", "optimizer": "muon", "set": {"steps": LONG, "ns_dtype": "fp32"}}]
    spec = sweep_file(story.folder, story.small, blocks, name="ddp", seeds=[5], resources=DDP)
    ((config,),) = planned(spec).values()
    sweep = story.cluster.start_sweep(spec)
    first = until("the run is in the middle of its steps", lambda: host_of(story, config.run_id), SWEEP_S, sweep)
    (other,) = [host for host in story.cluster.workers if host is not first]
    cut = time.time()
    other.cut()
    say(f"{other.name} is cut off under rank 1; rank 0 is on {first.name}")
    noticed = until("the loss is noticed", lambda: lost_at(story.nodes, other, cut), 5 * NOTICED_S, sweep)
    say(f"Ray notices after {noticed - cut:.1f} s")
    other.start()
    assert sweep.wait(SWEEP_S) == 0, sweep.text
    for at, line in sweep.lines:
        if " again (" in line:
            say(f"{at - cut:.1f} s after the cut its display said: {line.strip()}")
    assert noticed - cut <= NOTICED_S
    run_ranks(2, tmp_path / "rendezvous", ddp_rank, config.model_dump_json(), str(story.undisturbed))
    assert_same_rows(STORE, story.undisturbed, [config.run_id])
    attempts = open_store(STORE).sweep("ddp").attempts.sort("attempt").collect()
    assert attempts["status"].to_list() == ["lost", "done"]
    assert attempts["failure"].to_list() == ["preemption", None]
    assert attempts["workers"].to_list() == [2, 2]
    assert attempts["first_step"][1] >= SAVED_EVERY


def test_the_head_is_lost_and_nothing_runs_twice(story: Story) -> None:
    """It comes back empty, and so does a worker; down, up, and the same command."""
    made = story.cluster
    spec = sweep_file(story.folder, story.small, BLOCKS[:2], name="headless", seeds=[7, 8, 9])
    runs = planned(spec)
    longs = [config.run_id for config in runs["long"]]
    sweep = made.start_sweep(spec)

    def in_the_midst() -> set[str] | None:
        done = {run for run, status in read_known(story.storage).statuses.items() if status == "done"}
        finished = done & {config.run_id for config in runs["muon"]}
        return finished if finished and any(host_of(story, run) for run in longs) else None

    finished = until("a run is done and another under way", in_the_midst, SWEEP_S, sweep)
    made.head.cut()
    made.workers[-1].cut()
    say(f"the head and {made.workers[-1].name} are cut off")
    assert sweep.wait(120) != 0
    made.head.start(empty=True)
    made.workers[-1].start(empty=True)
    began = time.time()
    made.down()
    made.up()
    say(f"{time.time() - began:.1f} s: they came back empty; `ray down` and `ray up` have returned")
    nodes = made.watch_nodes()
    until("all nodes are alive", lambda: len(alive(nodes)) == 3, NODES_S)
    say(f"{nodes.lines[-1][0] - began:.1f} s: head and workers are alive")
    again = made.start_sweep(spec)
    assert again.wait(SWEEP_S) == 0, again.text
    everything = [config for block in runs.values() for config in block]
    run_here(everything, Folder(story.undisturbed), Resources())
    assert_same_rows(STORE, story.undisturbed, [config.run_id for config in everything])
    tries = dict(open_store(STORE).sweep("headless").attempts.group_by("run_id").len().collect().iter_rows())
    assert {tries[run] for run in finished} == {1}
    assert max(tries[run] for run in longs) == 2


def test_down_and_a_word_to_the_workers_leave_no_ray(story: Story) -> None:
    """On workers Ray ends by itself, but for a process that tells of logs, which the command of the header ends."""
    made, began = story.cluster, time.time()
    made.down()
    say(f"{time.time() - began:.1f} s: `ray down` has returned")

    def has(host: Host, title: str) -> bool:
        return not subprocess.run(host.command("pgrep", "-f", title), capture_output=True).returncode

    until("no raylet is left", lambda: not any(has(host, "raylet/raylet") for host in made.workers), NODES_S)
    say(f"{time.time() - began:.1f} s: no raylet is left on the workers")
    for worker in made.workers:
        made.typed("ssh", "-o", "StrictHostKeyChecking=no", f"root@{worker.address}", "bash -ic 'ray stop --force'")
    until("no process of Ray is left", lambda: not any(has(host, "ray") for host in (made.head, *made.workers)))
