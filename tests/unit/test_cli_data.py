"""`muon data`: what it prints, what it refuses in a line, and a data set on its way into a run and a job."""

import json
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from rich.console import Console
from support.prepared import documents, small_set, write_jsonl

from muon_core.data.prepare import Progress
from muon_core.store.folder import Folder
from ray_jobs.cli.data_progress import DataProgress, describe
from ray_jobs.cli.main import main
from ray_jobs.job_package import pack, sent_sweep
from ray_jobs.sent_job import SentJob
from ray_jobs.tokens import prepare_tokens
from search_spaces.expand import expand
from search_spaces.spec import parse_spec

ROOT = Path(__file__).parents[2]
OPTIONS = ("--train-bpe", "300", "--validation-share", "0.2", "--workers", "1")
SWEEP = """
version: 1
name: s
question: q?
seeds: [1]
constants: {data.corpus: PLACE, data.seq_len: 16, data.validation_tokens: 128, steps: 5}
blocks:
  - {name: b, role: baseline, optimizer: muon}
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["data", *arguments])
    assert isinstance(stop.value.code, int)
    return (stop.value.code, *capsys.readouterr())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with text to work in."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "text.jsonl", documents(60))
    return tmp_path


def test_prepare_says_what_it_made_and_what_is_next(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "prepare", "text.jsonl", "-o", "sets/a", *OPTIONS)
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines()}
    assert code == 0
    assert lines["data"] == "set sets/a"
    assert lines["documents"].endswith("0 duplicates left out, 0 empty, 0 cut")
    assert lines["tokenizer"] == "bpe of 0.0125 MB, vocabulary 300, <|endoftext|> ends a document"
    validation = json.loads(Path("sets/a/manifest.json").read_text())["shards"]["validation"]
    few = sum(shard["tokens"] for shard in validation) - 1
    options = f"--set data.corpus=sets/a --set model.vocab_size=300 --set data.validation_tokens={few}"
    training = "training a vocabulary of 300 on a sample of the text, 64 MiB at most ..."
    assert err == f"{training}\nnext: muon pretrain {options}\n"
    assert call(capsys, "prepare", "text.jsonl", "-o", "sets/a", *OPTIONS)[1] == out


def test_ls_lists_sets_below_a_folder(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert call(capsys, "ls")[:2] == (0, "no prepared data set; `muon data prepare` makes one\n")
    for name in ("one", "deep/two"):
        small_set(here / "sets" / name)
    (here / "sets" / "three").mkdir()
    (here / "sets" / "three" / "manifest.json").write_text("{}")
    code, out, err = call(capsys, "ls", "sets")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["place", "sets/deep/two", "sets/one"]
    assert err.startswith("left out: ")
    assert "three/manifest.json is no manifest that this release reads" in err
    code, out, _ = call(capsys, "ls", "sets", "--json")
    listed = json.loads(out)
    assert [one["place"] for one in listed] == ["sets/deep/two", "sets/one"]
    assert listed[0]["manifest"]["tokenizer"]["vocab_size"] == 300
    assert call(capsys, "ls", "nowhere") == (2, "", "muon: nowhere is no folder; give one, or s3://bucket/prefix\n")


def test_verify_names_every_file_that_is_wrong(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    small_set(here / "set")
    code, out, _ = call(capsys, "verify", "set")
    assert (code, out.splitlines()[-1]) == (0, "every file is what the manifest says")
    (here / "set" / "train-00000.npy").unlink()
    (here / "set" / "validation-00000.npy").write_bytes(b"other")
    (here / "set" / "tokenizer.json").write_text("{}")
    code, out, err = call(capsys, "verify", "set")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "muon: set/tokenizer.json: is another one; restore it, or prepare the data again",
        "muon: set/train-00000.npy: is missing; restore it, or prepare the data again",
        "muon: set/validation-00000.npy: is damaged (sha256 differs); restore it, or prepare the data again",
    ]
    code, _, err = call(capsys, "verify", "text.jsonl")
    assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("prepare", "text.jsonl", "-o", "set"), "give a --tokenizer, or --train-bpe and the size of its vocabulary"),
        (("prepare", "none/*.txt", "-o", "set", "--train-bpe", "300"), "input 'none/*.txt': there is no such file"),
        (
            ("prepare", "text.jsonl", "-o", "set", *OPTIONS, "--column", "body"),
            "text.jsonl at byte 0: no column 'body'",
        ),
        (("prepare", "text.jsonl", "-o", "text.jsonl/set", *OPTIONS), "it would become a part"),
        (("prepare", "text.jsonl", "-o", "/proc/set", *OPTIONS), "cannot write to "),
        (("prepare", "text.jsonl", "-o", "set", "--tokenizer", "text.jsonl"), "tokenizer 'text.jsonl': this is no tok"),
        (
            ("prepare", "text.jsonl", "-o", "set", *OPTIONS, "--validation-share", "1"),
            "Invalid value for '--validation-",
        ),
        (("verify", "."), ". holds no prepared data set: manifest.json is missing"),
    ],
)
def test_what_is_wrong_is_one_line_with_exit_code_2(
    arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert line in err


def test_an_early_interruption_says_that_nothing_is_kept(
    capsys: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("muon_core.data.prepare.train", interrupt)
        code, _, err = call(capsys, "prepare", "text.jsonl", "-o", "set", *OPTIONS)
    assert (code, err.splitlines()[-1]) == (130, "muon: interrupted; nothing was finished yet, so nothing is kept")
    assert not (here / "set").exists()
    monkeypatch.setattr("muon_core.data.prepare.ShardWriter", interrupt)
    code, _, err = call(capsys, "prepare", "text.jsonl", "-o", "set", *OPTIONS)
    kept = "muon: interrupted; what is finished is kept, the same command continues"
    assert (code, err.splitlines()[-1]) == (130, kept)
    assert list((here / "set" / ".preparing").glob("tokenizer-*.json"))


def test_a_command_or_a_file_that_is_misspelt_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no command 'prepar' (did you mean 'prepare'?); the commands are" in call(capsys, "prepar")[2]
    _, _, err = call(capsys, "prepare", "txt.jsonl", "-o", "set", "--train-bpe", "300")
    assert "there is no such file or folder (did you mean 'text.jsonl'?); give" in err


def test_progress_tells_speed_and_time_left() -> None:
    first, now = Progress(100, 1000, 400, 3, 90), Progress(300, 1000, 4_000_400, 1200, 20_500)
    assert describe(first, first, 0.0) == "3 documents  90 tokens"
    assert describe(now, first, 2.0) == "1.20k documents  20.5k tokens  2.0 MB/s  ETA 0:07"


def test_progress_on_no_terminal_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    console, clock = Console(record=True, force_terminal=False, file=BytesIO()), [0.0]  # type: ignore[arg-type]
    monkeypatch.setattr(console, "print", lambda text, **_: said.append(text))
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    said: list[str] = []
    with DataProgress(console) as progress:
        for second in range(25):
            clock[0] = float(second)
            progress(Progress(second * 10, 1000, second * 10**6, second, second * 100))
    assert [line.split()[:3] for line in said] == [["read", "11", "%"], ["read", "22", "%"]]
    assert said[0].endswith("1.0 MB/s  ETA 1:29")


@pytest.mark.slow
def test_a_large_corpus_that_is_killed_twice_gives_the_same_bytes(here: Path) -> None:
    """The bench on few megabytes: real processes, SIGKILL, memory."""
    script = [sys.executable, str(ROOT / "tests" / "bench" / "data_killed.py")]
    options = ["--mb", "3", "--vocabulary", "400", "--shard-tokens", "60000", "--folder", str(here)]
    done = subprocess.run([*script, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed twice, equal bytes, 0 processes left behind" in done.stdout.splitlines()[-1]


def test_a_set_travels_with_a_job_or_through_the_store(here: Path) -> None:
    manifest = small_set(here / "set")
    spec = parse_spec(SWEEP.replace("PLACE", "set"), folder=here)
    text, files = sent_sweep(spec)
    assert list(files.values()) == [str(here / "set")]
    with zipfile.ZipFile(BytesIO(pack(text, SentJob((), "", "", {}, files)))) as sent:
        sent.extractall(here / "job")
    (run,) = expand(spec)
    (there,) = expand(parse_spec(text, folder=here / "job"))
    assert there.run_id == run.run_id
    assert there.config.data.corpus_sha256 == manifest.content_hash
    kept = prepare_tokens([run.config], Folder(here / "store"), lambda _: None)
    assert list(kept.values()) == [manifest.content_hash]


def test_a_set_on_s3_is_named_as_it_is_in_a_job() -> None:
    text, files = sent_sweep(parse_spec(SWEEP.replace("PLACE", "s3://bucket/set")))
    assert files == {}
    assert "s3://bucket/set" in text
