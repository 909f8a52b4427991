"""What a submitted sweep takes along: its file and corpora, the code, and nothing that is secret."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.lion_like import SOURCE

from muon_core.code_state import PACKAGES, ROOT, SENT, code_state
from muon_core.store.folder import Folder
from muon_core.store.storage import StoreUnavailable, StoreUnwritable
from ray_jobs.job_entry import JOB, SOURCES, sources
from ray_jobs.job_package import LARGEST, PROGRAM, SWEEP, content, pack, sent_sweep
from ray_jobs.same_store import check_mark, marked
from ray_jobs.sent_job import SentJob, check_sent, code_here, original_path, sent_code, sent_job
from ray_jobs.sweep_plan import portable
from search_spaces.expand import expand
from search_spaces.spec import load_spec

SPEC = """\
extends: shared/base.yaml
name: hunt
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - name: text
    optimizer: muon
    grid: {data.corpus: [words, stdlib, ~/words]}
    skip: [{data.corpus: words}]
"""
BASE = """\
version: 1
seeds: [1]
constants: {data.corpus: words}
blocks:
  - {name: base, role: baseline, optimizer: muon}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep file with three corpora of one name: beside it, beside the file it extends, and at home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for number, folder in enumerate(("here", "here/shared", "home")):
        words = tmp_path / folder / "words"
        words.mkdir(parents=True)
        (words / "a.txt").write_text(f"some words {number}\n" * 9)
        (words / ".hidden").write_text("no document")
    (tmp_path / "here" / "shared" / "base.yaml").write_text(BASE)
    (tmp_path / "here" / "sweep.yaml").write_text(SPEC)
    return tmp_path / "here" / "sweep.yaml"


def package(spec: Path, *arguments: str) -> bytes:
    text, corpora = sent_sweep(load_spec(spec))
    return pack(text, SentJob(arguments, "muon sweep submit sweep.yaml", "sweeps/hunt/00001.aa.json", {}, corpora))


def unpacked(data: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)
    return folder


def run(folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The program of an unpacked job."""
    environment = os.environ | {"MUON_STORE": "store"} | environment
    command = [sys.executable, PROGRAM]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_the_sent_sweep_is_the_same_runs_from_any_folder(spec: Path, tmp_path: Path) -> None:
    sent = unpacked(package(spec), tmp_path / "sent")
    here, there = expand(load_spec(spec)), expand(load_spec(sent / SWEEP))
    assert [run.run_id for run in there] == [run.run_id for run in here]
    assert len({run.config.data.corpus_sha256 for run in here}) == 3
    corpora = {path.relative_to(sent).as_posix() for path in (sent / "corpora").rglob("*.txt")}
    assert corpora == {f"corpora/{number}/words/a.txt" for number in range(3)}
    assert list((sent / "corpora").rglob(".hidden")) == []


def test_a_corpus_of_one_file_keeps_its_name_which_decides_the_split(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("some words\n" * 9)
    (tmp_path / "sweep.yaml").write_text(BASE.replace("words", "words.txt").replace("seeds", "name: one\nseeds"))
    sent = unpacked(package(tmp_path / "sweep.yaml"), tmp_path / "sent")
    assert (sent / "corpora" / "0" / "words.txt").read_text() == "some words\n" * 9


def test_the_file_of_an_optimizer_is_sent_and_its_runs_are_the_same(tmp_path: Path) -> None:
    """Beside the file that is extended, and by the path it has here in what the store keeps."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "lion_like.py").write_text(SOURCE)
    base = BASE.replace("data.corpus: words", "steps: 5") + "  - {name: mine, optimizer: 'lion_like.py:LionLike'}\n"
    (tmp_path / "base" / "base.yaml").write_text(base)
    (tmp_path / "sweep.yaml").write_text("extends: base/base.yaml\nname: mine\n")
    spec = load_spec(tmp_path / "sweep.yaml")
    sent = unpacked(package(tmp_path / "sweep.yaml"), tmp_path / "sent")
    assert (sent / "optimizers" / "0" / "lion_like.py").read_text() == SOURCE
    there = load_spec(sent / SWEEP)
    assert [run.run_id for run in expand(there)] == [run.run_id for run in expand(spec)]
    assert there.blocks[1].optimizer == f"{sent}/optimizers/0/lion_like.py:LionLike"
    job = sent_job(sent)
    assert job is not None
    assert job.files == {"optimizers/0/lion_like.py": str(tmp_path / "base" / "lion_like.py")}
    kept = portable(there, lambda path: job.files[os.path.relpath(path, sent)])
    assert kept["blocks"][1]["optimizer"] == spec.blocks[1].optimizer


def test_the_same_content_is_the_same_bytes_and_any_other_is_another(spec: Path) -> None:
    first = package(spec, "sweep", "run")
    os.utime(spec.parent / "words" / "a.txt", (1, 1))
    assert package(spec, "sweep", "run") == first
    assert content(package(spec, "sweep", "plan")) != content(first)


def test_all_sources_are_sent_and_nothing_else_of_the_packages(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.splitlines())
    sent = {name for package in PACKAGES for name in sources(ROOT / package)}
    assert tracked <= sent
    assert {Path(name).suffix for name in sent} <= set(SOURCES)
    (tmp_path / "ray_jobs").mkdir()
    for name in ("a.py", ".env", ".hidden.yaml", "credentials", "notes.txt"):
        (tmp_path / "ray_jobs" / name).touch()
    assert list(sources(tmp_path / "ray_jobs")) == ["ray_jobs/a.py"]


def test_what_is_too_large_for_a_job_is_refused(spec: Path) -> None:
    with (spec.parent / "words" / "b.txt").open("wb") as file:
        file.truncate(LARGEST)
    with pytest.raises(ValueError, match=r"words: \d+ MiB, of which 100 travel with a job; put the corpus where all"):
        pack(*reversed_sweep(spec))


def reversed_sweep(spec: Path) -> tuple[str, SentJob]:
    """A job with the corpus beside `spec`, which is not read for it."""
    return "", SentJob((), "", "", {}, {"corpora/0/words": str(spec.parent / "words")})


def test_the_job_runs_the_code_that_was_sent_and_says_of_which_commit_it_is(spec: Path, tmp_path: Path) -> None:
    """Although PYTHONPATH leads elsewhere; as `muon` itself, with the paths that were named where it was submitted."""
    old = tmp_path / "old"
    for name in PACKAGES:
        (old / name).mkdir(parents=True)
        (old / name / "__init__.py").write_text("raise ImportError('old code')\n")
    sent = unpacked(package(spec, "sweep", "plan", SWEEP, "--json"), tmp_path / "sent")
    done = run(sent, PYTHONPATH=str(old))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sweep"] == "hunt"
    code = json.loads((sent / SENT).read_text())
    assert (code["sha256"], code["commit"], code["diff_hash"]) == (code_here(), *code_state())
    assert code["commit"]
    script = "from muon_core.code_state import code_state; print(*code_state())"
    told = subprocess.run([sys.executable, "-c", script], cwd=sent, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(state) for state in code_state()]


def test_a_job_whose_code_is_not_what_was_sent_ends_before_it_runs(spec: Path, tmp_path: Path) -> None:
    sent = unpacked(package(spec, "version"), tmp_path / "sent")
    with (sent / "muon_core" / "optim" / "muon.py").open("a") as file:
        file.write("\n")
    done = run(sent)
    assert (done.returncode, done.stdout) == (7, "")
    assert re.fullmatch(
        r"muon: the job would run other code \([0-9a-f]{12}\) than was sent \([0-9a-f]{12}\); submit it again\n",
        done.stderr,
    )


def test_a_head_without_the_dependencies_is_told_in_a_line(spec: Path, tmp_path: Path) -> None:
    sent = unpacked(package(spec, "version"), tmp_path / "sent")
    command = [sys.executable, "-S", PROGRAM]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=sent, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (7, 1)
    assert "on the head of the cluster has no click; start Ray there with the environment" in done.stderr


def test_a_worker_with_other_code_than_was_sent_ends_the_sweep(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    with marked(storage, "run-queue-1") as mark:
        check_mark(storage, f"{mark}@{code_here()}")
        with pytest.raises(
            StoreUnavailable, match=r"runs other code \([0-9a-f]{12}\) than the job was sent with \(0{12}"
        ):
            check_mark(storage, f"{mark}@{'0' * 64}")
        with pytest.raises(StoreUnwritable):  # as in code that does not know of the hash
            check_mark(storage, f"{mark}-{code_here()}")


def test_a_job_knows_its_code_store_and_paths_and_others_know_none(spec: Path, tmp_path: Path) -> None:
    sent = unpacked(package(spec, "sweep", "run"), tmp_path / "sent")
    job = sent_job(sent)
    assert job is not None
    assert (job.arguments, sent_code(sent)) == (("sweep", "run"), code_here())
    assert set(job.files.values()) == {
        str(spec.parent / "words"), str(spec.parent / "shared" / "words"), str(tmp_path / "home" / "words")
    }  # fmt: skip
    assert (sent_job(), sent_code(), original_path("/a/b")) == (None, None, "/a/b")
    check_sent(Folder(tmp_path / "any"))
    script = (
        "from ray_jobs.sent_job import check_sent, original_path; from muon_core.store.folder import Folder\n"
        f"print(original_path({str(sent / 'corpora/0/words')!r})); check_sent(Folder('elsewhere'))"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=sent, capture_output=True, text=True, check=False)
    assert told.stdout.strip() == job.files["corpora/0/words"]
    assert "StoreUnavailable: the head of the cluster finds another store at" in told.stderr


def test_a_job_says_all_of_itself_in_its_file(spec: Path, tmp_path: Path) -> None:
    job = SentJob(("a",), "b", "c", {"AWS_DEFAULT_REGION": "eu-west-1"}, {"corpora/0/w": "/w"})
    (tmp_path / JOB).write_text(job.to_json())
    assert sent_job(tmp_path) == job
    assert set(json.loads(job.to_json())) == {field.name for field in dataclasses.fields(SentJob)}
