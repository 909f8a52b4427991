"""Bad input ends in exit code 2 and a line on stderr that says where and what to do; nothing is written.

A file with several independent errors gives a line for each, so that it is corrected in one go; everything else gives
exactly one line.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from support.analysis_fixtures import known_runs, write_store

from ray_jobs.cli.main import main

MUON = str(Path(sys.executable).with_name("muon"))
SWEEP = """\
version: 1
name: hunt
seeds: [1, 2]
constants: {steps: 8}
blocks:
  - name: base
    role: baseline
    optimizer: muon
  - name: noise
    optimizer: orthonoise
    grid: {alpha: [1e-3, 5e-2]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, without the user's settings; sweep.yaml in it is good."""
    monkeypatch.chdir(tmp_path)
    for name in ("MUON_STORE", "MUON_LOG_LEVEL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines on stderr of a command that must end with 2 and print nothing else."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, ""), err
    lines: list[str] = err.splitlines()
    assert all(line.startswith("muon: ") for line in lines)
    return [line.removeprefix("muon: ") for line in lines]


# What the sweep file has instead, and the one line that says so.
FAULTS = [
    ("optimizer: orthonoise", "optimizer: ortonoise",
     "10: blocks[noise]: optimizer 'ortonoise' is unknown. Did you mean 'orthonoise'?"),
    ("optimizer: muon", "optimzer: muon", "8: blocks[base]: unknown field 'optimzer'. Did you mean 'optimizer'?"),
    ("{alpha:", "{alhpa:", "11: blocks[noise]: unknown parameter 'alhpa'. Did you mean 'alpha'?"),
    ("optimizer: orthonoise", "optimizer: muon", "11: blocks[noise]: 'alpha' is no parameter of muon, only of "),
    ("seeds: [1, 2]", "seeds: [1, 2]\nseeds: [3]", "4: 'seeds' is given in line 3 already; keep one of them"),
    ("seeds: [1, 2]", "seeds: []", "3: seeds: must not be empty"),
    ("{steps: 8}", "{steps: 8, data.corpus: books}", "4: constants: "),
    ("{steps: 8}", "{steps: '8'}", "4: constants: steps must be a whole number, got '8'"),
    ("role: baseline", "role: candidate", "5: blocks: no block is the baseline; give one of them `role: baseline`"),
    ("version: 1", "version: 2", "1: version: must be 1, got 2"),
    ("seeds: [1, 2]", "seeds: [1, 2", "3: the [ in column 8 is not closed; add ]"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), FAULTS, ids=[new for _, new, _ in FAULTS])
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_fault_in_a_sweep_file_is_one_line_with_file_and_line(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, old: str, new: str, message: str
) -> None:
    assert SWEEP.count(old) == 1
    (folder / "sweep.yaml").write_text(SWEEP.replace(old, new))
    (line,) = refused(capsys, "sweep", command, "sweep.yaml")
    assert line.startswith(f"sweep.yaml:{message}")
    assert [path.name for path in folder.glob("results/**/*") if path.is_file()] == []


def test_several_faults_are_a_line_each_in_the_order_of_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sweep.yaml").write_text(SWEEP.replace("[1, 2]", "[]").replace("muon", "moun"))
    assert refused(capsys, "sweep", "plan", "sweep.yaml") == [
        "sweep.yaml:3: seeds: must not be empty; give at least one value",
        "sweep.yaml:8: blocks[base]: optimizer 'moun' is unknown. Did you mean 'muon'?",
    ]


def test_the_executable_says_it_in_one_line_too(folder: Path) -> None:
    """The installed `muon` in a process of its own: no traceback, no warning, no Ray banner around the line."""
    (folder / "sweep.yaml").write_text(SWEEP.replace("optimizer: orthonoise", "optimizer: rmsprop"))
    done = subprocess.run([MUON, "sweep", "run", "sweep.yaml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "muon: sweep.yaml:10: blocks[noise]: optimizer 'rmsprop' is unknown; known: adamw, lion, soap, sgd, muon"
    )


def test_a_bare_exponent_is_the_number_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML 1.1 would read `1e-3` as text."""
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "plan", "sweep.yaml"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert " orthonoise-a0.001 " in out
    with pytest.raises(SystemExit):
        main(["pretrain", "--orthonoise", "--set", "alpha=1e-3", "--dry-run"])
    assert '"alpha": 0.001,' in capsys.readouterr().out


def test_a_corpus_that_does_not_exist_is_named_by_the_path_it_was_looked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remedy = (
        f"corpus '{folder / 'books'}': does not exist; give 'stdlib', a text file, a folder of text files or a "
        "data set of `muon data prepare`"
    )
    (folder / "sweep.yaml").write_text(SWEEP.replace("steps: 8", "steps: 8, data.corpus: books"))
    (folder / "run.yaml").write_text("steps: 8\ndata:\n  corpus: books\n")
    assert refused(capsys, "sweep", "run", "sweep.yaml") == [f"sweep.yaml:4: constants: {remedy}"]
    assert refused(capsys, "pretrain", "run.yaml") == [f"run.yaml:3: {remedy}"]
    assert refused(capsys, "pretrain", "--set", "data.corpus=books") == [remedy]


def test_a_corpus_that_is_too_small_is_an_error_of_the_input_not_a_failed_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "book.txt").write_text("too short\n")
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--set", "data.corpus=book.txt"])
    assert stop.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"muon: corpus '{folder / 'book.txt'}': ")
    assert not (folder / "results" / "attempts").exists()


@pytest.mark.parametrize("command", [["sweep", "run", "sweep.yaml"], ["pretrain"]], ids=["sweep", "pretrain"])
@pytest.mark.parametrize(("store", "reason"), [("afile", "Not a directory"), ("/proc/nowhere", "No such file")])
def test_a_store_that_cannot_be_written_is_told_before_anything_is_trained(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str], store: str, reason: str
) -> None:
    (folder / "afile").write_text("in the way")
    (line,) = refused(capsys, *command, "--store", store)
    assert line.startswith(f"cannot write to {Path(store).absolute()}: {reason}")
    assert line.endswith("choose another store")
    assert (folder / "afile").read_text() == "in the way"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # commands and options
        (["swep"], "no command 'swep' (did you mean 'sweep'?); the commands are pretrain, sweep, status, "),
        (["sweep", "plam"], "no command 'plam' (did you mean 'plan'?); the commands are confirm, ls, plan, run, show, "
         "stop, submit. See `muon sweep --help`."),
        (["sweep", "qqq"], "no command 'qqq'; the commands are confirm, ls, plan, run, show, stop, submit. "
         "See `muon sweep --help`."),
        (["--frobnicate"], "No such option '--frobnicate'. See `muon --help`."),
        (["pretrain", "--step", "5"], "No such option '--step'."),
        (["pretrain", "--steps"], "Option '--steps' requires an argument."),
        (["pretrain", "--steps", "ten"], "Invalid value for '--steps': 'ten' is not a valid integer."),
        (["pretrain", "tiny", "again"], "Got unexpected extra argument (again)"),
        (["sweep", "run"], "Missing argument 'SPEC'."),
        (["sweep", "run", "sweep.yaml", "--limit", "0"], "Invalid value for '--limit': 0 is not in the range x>=1."),
        # files
        (["sweep", "plan", "none.yaml"], "none.yaml: no such file"),
        (["sweep", "plan", "."], ".: cannot be read: Is a directory"),
        (["pretrain", "none.yaml"], "none.yaml: no such file, and no preset; known: tiny, 88m, 350m, 1b"),
        (["pretrain", "tinny"], "tinny: no such file, and no preset. Did you mean 'tiny'?"),
        (["pretrain", "--preset", "88m"], "the preset is the argument: muon pretrain 88m. See"),
        (
            ["pretrain", "--preset", "huge"],
            "the preset is the argument: muon pretrain huge; 'huge' is none; known: tiny, 88m, 350m, 1b. See",
        ),
        (["pretrain", "."], ".: cannot be read: Is a directory"),
        # parameters
        (
            ["pretrain", "--optimizer", "rmsprop"],
            "Invalid value for '--optimizer': 'rmsprop' is not one of 'adamw', 'lion', ",
        ),
        (["pretrain", "--alpha", "0.1"], "'alpha' is no parameter of muon, only of "),
        (["pretrain", "--anneal"], "'anneal' is no parameter of muon, only of "),
        (["pretrain", "--orthonoise", "--optimizer", "adamw"], "--orthonoise and --optimizer adamw contradict each "),
        (["pretrain", "--orthonoise", "--isotropic"], "--orthonoise and --isotropic contradict each other; give one"),
        (["pretrain", "--orthonoise", "--alpha", "nan"], "alpha must be a finite number, got .nan"),
        (["pretrain", "--orthonoise", "--alpha", "-1"], "alpha must be at least 0, got -1"),
        (["pretrain", "--steps", "0"], "steps must be greater than 0, got 0"),
        (["pretrain", "--set", "stepz=5"], "unknown parameter 'stepz'. Did you mean 'steps'?"),
        (["pretrain", "--set", "steps=many"], "steps must be a whole number, got 'many'"),
        (["pretrain", "--set", "steps"], "--set 'steps': write key=value, such as alpha=1e-3"),
        (["pretrain", "--set", "lr=[1"], "--set 'lr=[1': the [ in column 1 is not closed; add ]"),
        (["pretrain", "--set", "lr=1", "--set", "optimizer.lr=2"], "--set lr=1 and --set optimizer.lr=2 set the same "),
        (["pretrain", "--set", "steps=1", "--set", "steps=1"], "--set steps=1 and --set steps=1 set the same "),
        (["pretrain", "--set", "optimizer=adamw"], "--set does not choose the optimizer; use --optimizer NAME"),
        # machines
        (["pretrain", "--ngpus", "1000", "--set", "batch_size=1000"], "--ngpus 1000 is more than this machine has, "),
        (["pretrain", "--workers", "1024", "--set", "batch_size=1024"], "--workers 1024 is more than this machine "),
        (["pretrain", "--set", "model.d_model=65536", "--set", "model.num_layers=256"], "this run needs about "),
        (["pretrain", "--workers", "3"], "batch_size 16 in 1 micro-batches does not divide over 3 workers; "),
        (["pretrain", "--workers", "2", "--again"], "--again trains in this process only; "),
        (["pretrain", "--workers", "2", "--ngpus", "4"], "--ngpus 4 means 4 workers; leave --workers 2 out."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_arguments_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (line,) = refused(capsys, *arguments)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--optimizer", "mion"], "'adamuon' (did you mean 'muon'?). See `muon pretrain --help`."),
        (["optimizers", "check", "lyon"], "'adamuon' (did you mean 'lion'?). See `muon optimizers check --help`."),
        (["presets", "--gpu", "h10"], "'b200' (did you mean 'h100'?). See `muon presets --help`."),
        (["presets", "88n"], "'1b' (did you mean '88m'?). See `muon presets --help`."),
        (["presets", "huge"], "'1b'. See `muon presets --help`."),
        (["cost", "--by", "blok"], "'run' (did you mean 'block'?). See `muon cost --help`."),
    ],
)
def test_an_unknown_value_is_answered_with_the_nearest(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (line,) = refused(capsys, *arguments)
    assert line.endswith(message)


CONFIGS = [
    ("stepz: 5\n", "1: unknown parameter 'stepz'. Did you mean 'steps'?"),
    ("steps: 5\nmodel:\n  d_modle: 8\n", "3: unknown parameter 'model.d_modle'. Did you mean 'model.d_model'?"),
    ("steps: five\n", "1: steps must be a whole number, got 'five'"),
    ("optimizer: moun\n", "1: optimizer 'moun' is unknown. Did you mean 'muon'?"),
    ("optimizer: [muon]\n", "1: optimizer [muon] is unknown"),
    ("optimizer: {name: muon, alpha: 0.1}\n", "1: 'optimizer.alpha' is no parameter of muon, only of "),
    ("preset: 1t\n", "1: preset '1t' is unknown"),
    ("steps: 1\n\nsteps: 2\n", "3: 'steps' is given in line 1 already; keep one of them"),
    ("lr: 1\noptimizer:\n  lr: 2\n", "3: 'optimizer.lr' and 'lr' are the same parameter; keep one of them"),
    (
        "model: {d_model: 30}\n",
        "1: num_heads 4 must divide half of d_model 30, for heads of an even size (RoPE turns pairs); "
        "choose a divisor of 15",
    ),
    ("model: {d_model: 31}\n", "1: d_model 31 must be even"),
    ("steps: 8\nblocks: []\n", "2: blocks make this a sweep file; `muon sweep run run.yaml` runs it"),
    ("batch_size: 8\nmicro_batches: 3\n", "2: batch_size 8 must be a multiple of micro_batches 3"),
    ("data: {corpus_sha256: abc}\n", "1: the corpus has changed since; remove this line to train on it as it is"),
]


@pytest.mark.parametrize(("text", "message"), CONFIGS, ids=[text for text, _ in CONFIGS])
def test_a_fault_in_a_config_file_is_one_line_with_file_and_line(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (folder / "run.yaml").write_text(text)
    (line,) = refused(capsys, "pretrain", "run.yaml", "--dry-run")
    assert line.startswith(f"run.yaml:{message}")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the file is empty"),
        ("- steps\n", "this is no mapping of fields (`name: value`)"),
        ("just text\n", "this is no mapping of fields (`name: value`)"),
    ],
)
def test_a_config_file_without_fields_says_what_one_is(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, what: str
) -> None:
    (folder / "run.yaml").write_text(text)
    assert refused(capsys, "pretrain", "run.yaml") == [
        f"run.yaml:1: {what}; a run's file holds parameters, such as `steps: 100`"
    ]


def test_files_that_are_no_text_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.yaml").write_bytes(b"steps: 1\nseed: \xff\n")
    for command in (["sweep", "plan"], ["pretrain"]):
        (line,) = refused(capsys, *command, "run.yaml")
        assert line.startswith("run.yaml:2: not UTF-8 (byte 0xff, 'ÿ' in Latin-1); save the file as UTF-8")


def test_a_config_file_and_flags_are_blamed_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.yaml").write_text("steps: 1\nseed: -1\n")
    assert refused(capsys, "pretrain", "run.yaml", "--steps", "0") == [
        "steps must be greater than 0, got 0",
        "run.yaml:2: seed must be at least 0, got -1",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "dmo"], "no sweep or run 'dmo' in {store}; its sweeps: demo"),
        (["report", "dmo"], "no sweep 'dmo' in {store}; it holds: demo"),
        (["report", "demo", "--metric", "speed"], "unknown layer metric 'speed'; choose one of "),
        (["report", "demo", "-o", "sweep.yaml"], "Invalid value for '-o' / '--output': Directory 'sweep.yaml' is a "),
        (["report", "demo", "-o", "sweep.yaml/page"], "cannot write a report to sweep.yaml/page: sweep.yaml is "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_readers_name_what_there_is(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_store(folder / "results", known_runs())
    (line,) = refused(capsys, *arguments)
    assert line.startswith(message.format(store=folder / "results"))


@pytest.mark.parametrize("store", ["empty", "missing", "sweep.yaml"])
@pytest.mark.parametrize("arguments", [["status"], ["status", "demo"], ["report", "demo"]], ids=" ".join)
def test_readers_refuse_what_is_no_store(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], store: str
) -> None:
    (folder / "empty").mkdir()
    (line,) = refused(capsys, *arguments, "--store", store)
    assert line.startswith(f"{folder / store} is no results store: ")
    assert line.endswith("run a sweep first")


def test_a_store_with_an_unknown_scheme_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["pretrain"], ["sweep", "plan", "sweep.yaml"]):
        (line,) = refused(capsys, *command, "--store", "gs://bucket/x")
        assert line == "store with unknown scheme 'gs'; give a folder or s3://bucket/prefix"


def test_a_log_level_that_does_not_exist_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUON_LOG_LEVEL", "loud")
    assert refused(capsys, "version") == ["MUON_LOG_LEVEL is 'loud'; set it to debug, info, warning or error"]


def test_a_run_that_does_not_fit_here_is_odd_in_a_plan_and_refused_before_ray_starts(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    (folder / "sweep.yaml").write_text(f"{SWEEP}resources: {{gpus_per_worker: 1}}\n")
    needs = "a run needs 1 GPU, this machine has 0: run it on a cluster with --address, or set gpus_per_worker: 0"
    assert refused(capsys, "sweep", "run", "sweep.yaml") == [needs]
    assert [path.name for path in folder.glob("results/**/*") if path.is_file()] == []
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "plan", "sweep.yaml"])
    assert (stop.value.code, capsys.readouterr().out.splitlines()[-1]) == (0, f"odd: {needs}")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # the cluster may have them
    with pytest.raises(SystemExit):
        main(["sweep", "plan", "sweep.yaml"])
    assert "odd:" not in capsys.readouterr().out
