"""Finds logs of other tools and reads each as what its content says it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from muon_core.imports import text_logs, tools
from muon_core.imports.log import Log, UnreadableLog
from muon_core.imports.mapping import listed
from muon_core.imports.tables import read_csv, read_lines, read_parquet, reshape

FORMATS = {
    "table (.csv, .jsonl, .parquet)": "step,val_loss,seed,optimizer",
    "W&B chart export": '"Step","muon-s1 - val/loss","muon-s1 - val/loss__MIN","muon-s1 - val/loss__MAX"',
    "W&B wandb-history.jsonl": '{"_step": 0, "_runtime": 1.5, "val/loss": 3.2}',
    "Lightning metrics.csv": "epoch,step,train_loss,val_loss",
    "Ray Tune result.json or progress.csv": '{"val_loss": 3.2, "training_iteration": 1, "trial_id": "abc"}',
    "Hugging Face trainer_state.json": '{"global_step": 100, "log_history": [{"eval_loss": 3.2, "step": 100}]}',
    "modded-nanogpt log": "step:125/1750 val_loss:4.6213 train_time:20124ms step_avg:174.99ms",
    "nanochat log": "step 00100/21400 (0.47%) | loss: 6.102512 | lrm: 1.00 | dt: 410.12ms | total time: 0.61m",
    "llm.c log": "s:250 tel:6.4523",
    "metrics.json of the older project": '{"final_metrics": {"val_loss": 3.2}, "actual_steps": 50, "tokens_seen": 64}',
}
"""What is understood -> how a line of it looks."""
_SAMPLE = 200_000  # characters: beyond the script that a log of modded-nanogpt begins with
_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".log", ".wandb")
_NAMES = ("trainer_state.json", "result.json")
_TEXTS: tuple[tuple[re.Pattern[str], Callable[[Path, str], list[Log]]], ...] = (
    (re.compile(r"^step:\d+/\d+ \w+:", re.MULTILINE), text_logs.read_modded),
    (re.compile(r"^(step \d+(/\d+)? \([\d.]+%\) \| loss:|Step \d+ \| Validation bpb:)", re.MULTILINE),
     text_logs.read_nanochat),
    (re.compile(r"^s:\d+ t[er]l:", re.MULTILINE), text_logs.read_llmc),
)  # fmt: skip


class UnknownFormat(UnreadableLog):
    """A file that is nothing known."""


def find_files(path: Path) -> list[tuple[Path, str]]:
    """Files in `path`, a file or a folder, that may be logs, with their places below it. Raises ValueError if none."""
    if path.is_file():
        return [(path, path.name)]
    if not path.is_dir():
        raise ValueError(f"{path} is no file or folder; give a log, or the folder that holds the runs")
    files = [(file, str(file.relative_to(path))) for file in candidates(path)]
    if not files:
        raise ValueError(f"{path} holds no file that may be a log; understood are {known_formats()}")
    return files


def candidates(folder: Path) -> list[Path]:
    """Files that may be logs, of which each run has one: of several that a tool wrote, that which tells most."""
    files = sorted(
        file for file in folder.rglob("*") if (file.suffix in _ENDINGS or file.name in _NAMES) and file.is_file()
    )
    results = {file.parent for file in files if file.name == "result.json"}
    newest: dict[Path, Path] = {}
    for file in files:
        if file.name == "trainer_state.json":  # each checkpoint has one, which tells all until then
            run = file.parent.parent if file.parent.name.startswith("checkpoint-") else file.parent
            newest[run] = max(newest.get(run, file), file, key=lambda one: one.stat().st_size)
    return [
        file
        for file in files
        if not (file.name == "progress.csv" and file.parent in results)
        and (file.name != "trainer_state.json" or file in newest.values())
    ]


def read_log(path: Path, place: str) -> list[Log]:
    """The runs' logs in a file. Raises UnknownFormat for what is none, UnreadableLog for one that is damaged."""
    with path.open("rb") as file:
        raw = file.read(_SAMPLE)
    if raw[:4] == b"PAR1":
        return [reshape(read_parquet(path, place))]
    if path.suffix == ".wandb":
        raise UnknownFormat(
            f"{place} is W&B's own file, which only its library reads; "
            "export a chart as CSV, or the history (run.scan_history) as JSON lines"
        )
    sample = raw.decode("utf-8", "replace")
    first = next((line for line in sample.lstrip("\ufeff").splitlines() if line.strip()), "")
    if path.name == "trainer_state.json" or (first.lstrip().startswith("{") and '"log_history"' in sample):
        return [tools.read_trainer_state(path, place)]
    if first.startswith("{"):
        return [_read_objects(path, place, first)]
    for pattern, read in _TEXTS:
        if pattern.search(sample) and (logs := read(path, place)):
            return logs
    if len(columns := re.split(r"[,;\t]", first)) > 1 and path.suffix not in (".txt", ".log") and "\0" not in sample:
        return [_read_columns(path, place, {column.strip(' "') for column in columns})]
    raise _unknown(place, sample)


def _unknown(place: str, sample: str) -> UnknownFormat:
    return UnknownFormat(f"{place} is no log of a known format{_nearest(sample)}; understood are {known_formats()}")


def _read_objects(path: Path, place: str, first: str) -> Log:
    """A file of JSON lines, by what the first holds."""
    keys = set(re.findall(r'"(\w+)": ', first))
    if {"training_iteration", "trial_id"} <= keys:
        return tools.read_ray_result(path, place)
    if path.name == "wandb-history.jsonl":
        return tools.read_wandb_history(path, place)
    if path.suffix == ".json":  # an object, not one a line
        raise _unknown(place, path.read_text(encoding="utf-8", errors="replace")[:_SAMPLE])
    return reshape(read_lines(path, place))


def _read_columns(path: Path, place: str, columns: set[str]) -> Log:
    """A CSV file, by the columns it has."""
    if {"training_iteration", "trial_id"} <= columns:
        return tools.read_ray_progress(path, place)
    if path.name == "metrics.csv" and {"epoch", "step"} <= columns:
        return tools.read_lightning(path, place)
    return reshape(read_csv(path, place))


def known_formats() -> str:
    """All formats, for a message."""
    return listed(FORMATS, len(FORMATS))


def _nearest(sample: str) -> str:
    """The format whose example has most of the words of a line of `sample`, and after them of its marks."""
    lines = [line[:300] for line in sample.splitlines()[:40] if re.search(r"[A-Za-z]", line)]
    likeness = {
        name: max((_likeness(line, example) for line in lines), default=0.0) for name, example in FORMATS.items()
    }
    best = max(likeness, key=likeness.__getitem__)
    return f"; the nearest is a {best}, as in {FORMATS[best]}" if likeness[best] >= 0.3 else ""


def _likeness(line: str, example: str) -> float:
    """The share of the line's words that are in the example, and a little for its marks; JSON is like JSON only."""
    if line.startswith("{") != example.startswith("{"):
        return 0.0
    return sum(
        weight * len(own & set(re.findall(pattern, example.lower()))) / len(own)
        for pattern, weight in ((r"[A-Za-z]+", 1.0), (r"[^\w\s]", 0.1))
        if (own := set(re.findall(pattern, line.lower())))
    )
