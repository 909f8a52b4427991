"""Reads logs that are printed, a line a step: those of modded-nanogpt, nanochat and llm.c.

    step:125/1750 val_loss:4.6213 train_time:20124ms step_avg:174.99ms
    step 00100/21400 (0.47%) | loss: 6.1025 | lrm: 1.00 | dt: 410.12ms | tok/sec: 1,278,000 | ... | total time: 0.61m
    s:250 tel:6.4523

A file may hold several runs one after the other: another begins where a step comes back to the first one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from muon_core.imports.log import Log, Row, own_name

_NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*(?:e[-+]?\d+)?|nan|inf)"
_MODDED = re.compile(r"step:(\d+)/(\d+)((?: \w+:\S+)*)", re.IGNORECASE)
_NANOCHAT = re.compile(r"step (\d+)(?:/(\d+))? \([\d.]+%\) \| (.*)")
_NANOCHAT_VAL = re.compile(rf"Step (\d+) \| Validation bpb: ({_NUMBER})")
_LLMC = re.compile(rf"s:(\d+) (?:tel:({_NUMBER})|trl:({_NUMBER}) lr:({_NUMBER}) norm:({_NUMBER}))", re.IGNORECASE)
_RULE = re.compile(r"={20,}")
_SEED = re.compile(r"^\s*(?:[A-Za-z_]+_)?seed\s*=\s*(\d+)\s*(?:#.*)?$", re.IGNORECASE | re.MULTILINE)
_TRIAL = re.compile(r"trial:\d+/\d+ seed:(\d+)")
_BATCH = re.compile(r"Total batch size ([\d,]+) ")
SMOOTHED = "train_loss is smoothed: nanochat prints a mean that forgets a tenth each step"


def read_modded(path: Path, place: str) -> list[Log]:
    """A log of modded-nanogpt: the script that ran, a rule of `=`, and a line a step.

    Its folder is the setting, for which optimizer stands, and the script without its seed is the config: logs of unlike
    scripts are never one arm.
    """
    lines = _read(path)
    rule = next((i for i, line in enumerate(lines) if _RULE.fullmatch(line)), 0)
    script = "\n".join(lines[:rule])
    seeds = {int(seed) for seed in _SEED.findall(script)}
    logs = _read_steps(path, place, "modded-nanogpt log", lines[rule:], _parse_modded, "step:")
    for log in logs:
        log.setting = ("folder", own_name(path))
        if len(seeds) == len(logs) == 1:  # several runs of one script have not all its seed
            log.seed = min(seeds)
        if script:
            log.config = {"script": hashlib.sha256(_SEED.sub("", script).encode()).hexdigest()[:12]}
    return logs


def read_nanochat(path: Path, place: str) -> list[Log]:
    """What nanochat's `base_train` prints. Tokens are steps times the batch size, where that was printed."""
    lines = _read(path)
    logs = _read_steps(path, place, "nanochat log", lines, _parse_nanochat, "step ")
    batch = next((_int(match[1]) for line in lines if (match := _BATCH.match(line))), None)
    for log in logs:
        log.notes.append(SMOOTHED)
        last = log.rows[-1]["step"]
        if last + 1 == log.planned_steps:  # the last evaluation, after all steps, was left out
            log.planned_steps = last
        for row in log.rows:
            if batch is not None:
                row["tokens"] = row["step"] * batch
    return logs


def read_llmc(path: Path, place: str) -> list[Log]:
    """`main.log` of llm.c: `tel` is its validation loss, `trl` its training loss."""
    return _read_steps(path, place, "llm.c log", _read(path), _parse_llmc, "s:")


def _read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _read_steps(
    path: Path, place: str, format: str, lines: Iterable[str], parse: Callable[[str], Row | None], mark: str
) -> list[Log]:
    """The runs in `lines`; a line that begins with `mark` and a digit, but is none that `parse` knows, is torn."""
    logs: list[Log] = []
    seed, first, torn = None, 0, 0
    for line in map(str.strip, lines):
        if trial := _TRIAL.fullmatch(line):
            seed = int(trial[1])
        row = parse(line)
        if row is None:
            torn += line.lower().startswith(mark) and line[len(mark) : len(mark) + 1].isdigit()
            continue
        planned = row.pop("planned", None)
        if not logs or (row["step"] == first < logs[-1].rows[-1]["step"]):
            logs.append(Log(place, format, [], path.stem, planned_steps=planned, seed=seed))
            first = row["step"]
        rows = logs[-1].rows
        if rows and not _has_loss(rows[-1]) and rows[-1]["step"] < row["step"]:
            rows.pop()  # a line of time alone: there are thousands, and only how far the newest got is of use
        rows.append(row)
        logs[-1].lines += 1
    if logs:
        logs[0].lines, logs[0].torn = logs[0].lines + torn, torn
    if len(logs) > 1:
        for i, log in enumerate(logs, 1):
            log.place, log.name, log.entry = f"{place}#{i}", f"{log.name}#{i}", f"#{i}"
    return logs


def _has_loss(row: Row) -> bool:
    return any("loss" in name or "bpb" in name for name in row)


def _parse_modded(line: str) -> Row | None:
    """`step_avg` ends what every line has: one without it was cut short."""
    match = _MODDED.fullmatch(line)
    if match is None or " step_avg:" not in match[3]:
        return None
    row: Row = {"step": int(match[1]), "planned": int(match[2])}
    for field in match[3].split():
        name, _, text = field.partition(":")
        if value := re.fullmatch(rf"({_NUMBER})(ms|s)?", text):
            row[name + (f"_{value[2]}" if value[2] else "")] = float(value[1].replace(",", ""))
    return row


def _parse_nanochat(line: str) -> Row | None:
    if match := _NANOCHAT_VAL.fullmatch(line):
        return {"step": int(match[1]), "val_bpb": float(match[2])}
    match = _NANOCHAT.fullmatch(line)
    if match is None or "total time: " not in match[3]:
        return None
    row: Row = {"step": int(match[1])} | ({"planned": int(match[2])} if match[2] else {})
    for field in match[3].split(" | "):
        name, _, text = field.partition(": ")
        if value := re.fullmatch(rf"({_NUMBER})(ms|m|s)?", text):
            row[name + (f" ({value[2]})" if value[2] else "")] = float(value[1].replace(",", ""))
    return row


def _parse_llmc(line: str) -> Row | None:
    match = _LLMC.fullmatch(line)
    if match is None:
        return None
    step, val, train, lr, norm = match.groups()
    if val is not None:
        return {"step": int(step), "val_loss": float(val)}
    return {"step": int(step), "train_loss": float(train), "lr": float(lr), "grad_norm": float(norm)}


def _int(text: str) -> int:
    return int(text.replace(",", ""))
