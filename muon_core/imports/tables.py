"""Reads tables: CSV, JSON lines and Parquet, each a row a line or, as W&B's charts are exported, a column a run.

A table may be long in other ways too, which are made wide first: a column `metric` beside a column `value`, and a
column `split` (`train`, `val`) that tells what a plain `loss` beside it is.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from muon_core.imports.log import Log, Row, UnreadableLog, flat
from muon_core.imports.names import parse_column
from muon_core.spelling import counted

_CHART = re.compile(r"(?P<run>.+?) - (?P<metric>[^ ]+?)(?P<range>__MIN|__MAX)?")
"""A column of a chart exported from W&B, after its first, such as `muon-s1 - val/loss__MIN`."""
_SPLITS = {"split", "phase", "mode", "stage", "subset"}
_SETS = {"train", "training", "val", "valid", "validation", "eval", "dev", "test"}
_PLAIN = {"loss", "acc", "accuracy", "ppl", "perplexity", "bpb", "bits_per_byte"}


def read_csv(path: Path, place: str) -> Log:
    """A CSV file, whose first line names its columns. Raises UnreadableLog if it has none or is no text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            beginning = file.readline()
            delimiter = max(",;\t", key=beginning.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            twice = sorted({name for name in header if name and header.count(name) > 1})
            if twice:
                raise UnreadableLog(f"{place} has two columns {twice[0]!r}; rename one of them")
            log = Log(place, "table", [], path.stem, is_one_run=False, header=list(filter(None, header)))
            for cells in filter(None, reader):
                log.lines += 1
                if len(cells) != len(header):
                    log.torn += 1
                    continue
                values = zip(header, map(str.strip, cells), strict=True)
                log.rows.append({name: value for name, value in values if name and value})
            if delimiter == ";":
                _read_commas(log)
    except UnicodeDecodeError as error:
        raise UnreadableLog(f"{place} is no text of UTF-8 ({error.reason}); convert it") from error
    except csv.Error as error:
        raise UnreadableLog(f"{place} is no CSV ({error})") from error
    return log


def _read_commas(log: Log) -> None:
    """Decimal commas, as a spreadsheet writes them where semicolons part the columns."""
    commas = re.compile(r"-?\d+,\d+(e-?\d+)?", re.IGNORECASE)
    found = 0
    for row in log.rows:
        fixed = {name: text.replace(",", ".") for name, text in row.items() if commas.fullmatch(text)}
        row |= fixed
        found += len(fixed)
    if found:
        log.notes.append(f"{found:,} numbers have a comma, which is read as a point")


def read_lines(path: Path, place: str) -> Log:
    """A file with a JSON object on each line; nested ones become columns such as `config/lr`."""
    log = Log(place, "table", [], path.stem, is_one_run=False)
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for text in filter(str.strip, file):
            log.lines += 1
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            if isinstance(line, dict):
                log.rows.append(dict(flat(line)))
            else:
                log.torn += 1
    return log


def read_parquet(path: Path, place: str) -> Log:
    """A Parquet file. Raises UnreadableLog if it is none."""
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UnreadableLog(f"{place} is no Parquet that can be read ({error})") from error
    return Log(place, "table", [dict(flat(row)) for row in rows], path.stem, lines=len(rows), is_one_run=False)


def reshape(log: Log) -> Log:
    """`log` with its rows in the shape that the rest of an import knows: a row a run and step, a column a metric."""
    if is_chart(log.columns):
        _read_chart(log)
    columns = {parse_column(column).whole: column for column in log.columns}
    key = next((columns[name] for name in ("metric", "key", "tag") if name in columns and "value" in columns), None)
    if key is not None:
        log.rows, log.header = [_with_metric(row, key, columns["value"]) for row in log.rows], []
    for column in (columns[name] for name in _SPLITS & columns.keys()):
        if {str(row[column]).lower() for row in log.rows if column in row} <= _SETS:
            log.rows, log.header = [_with_split(row, column) for row in log.rows], []
    return log


def is_chart(columns: list[str]) -> bool:
    """Whether these are the columns of a chart exported from W&B: one, and then each of a run, with its range."""
    found = [_CHART.fullmatch(column) for column in columns[1:]]
    return bool(found) and all(found) and any(match and match["range"] for match in found)


def _read_chart(log: Log) -> None:
    x, *columns = log.columns
    matches = [match for column in columns if (match := _CHART.fullmatch(column))]
    ranges = {(match["run"], match["metric"]) for match in matches if match["range"]}
    rows, means = list[Row](), 0
    for row in log.rows:
        of: dict[str, Row] = {}
        for match in matches:
            value = row.get(match[0])
            if value is not None and not match["range"]:
                of.setdefault(match["run"], {})[match["metric"]] = value
        means += sum(_is_mean(row, run, metric) for run, metric in ranges)
        shared = {x: row[x]} if x in row else {}
        rows += [{"run": run} | shared | values for run, values in of.items()]
    log.rows, log.header, log.format = rows, [], "W&B chart export"
    if means:
        log.notes.append(
            f"{counted(means, 'value')} of a range, of which W&B draws the mean, as of many points or a group; "
            "its API exports every one (run.scan_history)"
        )


def _is_mean(row: Row, run: str, metric: str) -> bool:
    return row.get(f"{run} - {metric}__MIN") != row.get(f"{run} - {metric}__MAX")


def _with_metric(row: Row, key: str, value: str) -> Row:
    rest = {name: cell for name, cell in row.items() if name not in (key, value)}
    return rest | {str(row[key]): row[value]} if key in row and value in row else rest


def _with_split(row: Row, column: str) -> Row:
    split = str(row.get(column, "")).lower()
    return dict(_named_by_split(row, column, split)) if split else row


def _named_by_split(row: Row, column: str, split: str) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name != column:
            yield f"{split}_{name}" if parse_column(name).whole in _PLAIN else name, value
