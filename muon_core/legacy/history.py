"""Rows from the `history` of a metrics.json: evaluations, training losses, and what was measured of matrices there.

Evaluations are what a run is imported for, so a history of them that does not fit together makes it unreadable. What
else is torn is left out by name. Where a list has no tokens of its own, they are its step times the run's mean tokens a
step, and null where the file counts none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from muon_core.legacy.imported import UnreadableRun
from muon_core.legacy.lines import SPECTRUM, Counts, LayerRows, is_number, rows_of_lines, spectrum_row

METRICS_FILE = "metrics.json"
_VAL = {"val_losses": "val_loss", "val_accuracies": "val_accuracy", "val_perplexities": "val_perplexity"}
_SERIES = re.compile(r"([a-z_]+)_(Q|K|V|O|Up|Down)_(\d+|last)")
_OF_MATRICES = {
    "spec_norm": ("spectral_norm",),
    "spec_gap": ("spectral_gap",),
    "ortho_err": ("orthogonality_error",),
    "alignment": ("update_alignment",),
}
"""Series of `manifold_history` -> columns of `layers`. An alignment may be a pair, of the left and the right side."""
_ELSE = {"entropy": "of squared singular values, as a share", "update_rank": "of the momentum buffer"}
"""Series that are no column here, and what they are of."""


def section(metrics: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """The object `name` of a file, empty if it has none."""
    found = (metrics or {}).get(name)
    return found if isinstance(found, dict) else {}


def _tokens_at(metrics: dict[str, Any]) -> Callable[[int], int | None]:
    """Tokens at a step; None for files of the trainer that count no tokens."""
    if metrics.get("tokens_seen") is None:
        return lambda _: None
    per_step = metrics["tokens_seen"] / max(1, metrics["actual_steps"])
    return lambda step: round(step * per_step)


def evaluations(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the `val` table; without a history, the final metrics as the only one. Raises UnreadableRun if torn."""
    history = section(metrics, "history")
    if not history.get("steps"):
        final = section(metrics, "final_metrics")
        history = {"steps": [metrics["actual_steps"]]} | {
            many: [final[one]] for many, one in _VAL.items() if one in final
        }
    for name in ("steps", "elapsed_times", "learning_rates", *_VAL):
        if not isinstance(history.get(name) or [], list):
            raise UnreadableRun(f"the history in {METRICS_FILE} has {history[name]!r} where a list of {name} belongs")
    steps = history["steps"]
    columns = {one: history[many] for many, one in _VAL.items() if history.get(many)}
    if minutes := history.get("elapsed_times"):
        columns["elapsed_s"] = [60 * minute for minute in minutes]
    for name, values in {"steps": steps, **columns}.items():
        if len(values) != len(steps) or not all(map(is_number, values)):
            raise UnreadableRun(
                f"the history in {METRICS_FILE} has not one number for {name} at each of its {len(steps)} steps"
            )
    if not all(type(step) is int for step in steps):
        raise UnreadableRun(f"the history in {METRICS_FILE} has steps that are no whole numbers")
    if "val_loss" not in columns:
        return []
    tokens_at = _tokens_at(metrics)
    rows = {
        step: {"step": step, "tokens": tokens_at(step)} | {name: values[i] for name, values in columns.items()}
        for i, step in enumerate(steps)
    }
    return [rows[step] for step in sorted(rows)]


def train_rows(metrics: dict[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    """Rows of the `train` table: losses as they were logged, the last one, and learning rates at evaluations."""
    tokens_at, history = _tokens_at(metrics), section(metrics, "history")
    rows: dict[int, dict[str, Any]] = defaultdict(dict)
    for name, column, steps in (
        ("learning_rates", "lr", "steps"),
        ("train_losses", "train_loss", "train_loss_steps"),
        ("train_loss_tokens", "tokens", "train_loss_steps"),
        ("train_loss_elapsed_minutes", "elapsed_s", "train_loss_steps"),
    ):
        for step, value in _pairs(history, name, steps, notes):
            rows[step][column] = 60 * value if column == "elapsed_s" else value
    manifold = section(history, "manifold_history")
    for step, value in _pairs(manifold, "loss", "steps", notes):
        rows[step].setdefault("train_loss", value)
    loss = section(metrics, "final_metrics").get("train_loss")
    if is_number(loss):
        rows[metrics["actual_steps"]].setdefault("train_loss", loss)
        rows[metrics["actual_steps"]]["tokens"] = metrics.get("tokens_seen")
    return [{"step": step, "tokens": tokens_at(step)} | rows[step] for step in sorted(rows)]


def _pairs(history: dict[str, Any], name: str, steps: str, notes: list[str]) -> list[tuple[int, Any]]:
    """(step, value) of a list and its list of steps; nothing, and a note, where they do not fit together."""
    values, at = history.get(name) or [], history.get(steps) or history.get("steps") or []
    if not values:
        return []
    if (
        isinstance(values, list) and isinstance(at, list) and len(values) == len(at)
        and all(type(step) is int for step in at) and all(map(is_number, values))
    ):  # fmt: skip
        return list(zip(at, values, strict=True))
    notes.append(f"{name} of the history are left out: they are not one number for each of its steps")
    return []


def layer_rows(metrics: dict[str, Any], counts: Counts, notes: list[str]) -> list[LayerRows]:
    """What `layer_logs` and `manifold_history` have of single matrices."""
    history = section(metrics, "history")
    logs = history.get("layer_logs") or []
    found = rows_of_lines(_log_lines(logs), counts) if isinstance(logs, list) else {}
    return [found, _of_series(section(history, "manifold_history"), _tokens_at(metrics), notes)]


def _log_lines(logs: list[Any]) -> list[Any]:
    """Entries of `layer_logs` as the lines that were written beside them."""
    lines: list[Any] = []
    for log in logs:
        try:
            where = {"step": log["step"], "tokens": log["tokens"]}
            lines += [
                {**values, **where, "layer": layer["layer"], "proj": projection}
                for layer in log["layers"]
                for projection, values in layer["projections"].items()
            ]
        except (TypeError, KeyError, AttributeError):
            lines.append(None)  # counts as torn
    return lines


def _of_series(manifold: dict[str, Any], tokens_at: Callable[[int], int | None], notes: list[str]) -> LayerRows:
    """Series such as `spec_norm_Q_0`: a value for each of the `steps`."""
    steps, tokens = manifold.get("steps") or [], manifold.get("tokens") or []
    matched = {name: match for name in manifold if (match := _SERIES.fullmatch(name))}
    last = max((int(match[3]) for match in matched.values() if match[3] != "last"), default=0)
    rows: LayerRows = {}
    left_out = set()
    for name, match in matched.items():
        kind, projection = match[1], match[2].lower()
        layer, values = last if match[3] == "last" else int(match[3]), manifold[name]
        if kind in _ELSE:
            left_out.add(f"{kind} ({_ELSE[kind]})")
        elif not _fits(values, steps) or (converted := [_converted(kind, value) for value in values]).count(None):
            left_out.add(f"{name} (no value for each step)" if kind in (*_OF_MATRICES, "spec_vals") else kind)
        else:
            for i, (step, columns) in enumerate(zip(steps, converted, strict=True)):
                own = {"tokens": tokens[i] if _fits(tokens, steps) else tokens_at(step)}
                rows.setdefault((step, layer, projection), own).update(columns or {})
    left_out |= manifold.keys() - matched.keys() - {"steps", "tokens", "loss"}
    if left_out:
        notes.append(f"left out of manifold_history: {', '.join(sorted(left_out))}")
    return rows


def _fits(values: Any, steps: Any) -> bool:
    lists = isinstance(values, list) and isinstance(steps, list) and len(values) == len(steps)
    return lists and all(type(step) is int for step in steps)


def _converted(kind: str, value: Any) -> dict[str, Any] | None:
    """Columns of a value of one series; None if it is none."""
    if kind == "spec_vals":
        is_list = isinstance(value, list) and value and all(map(is_number, value))
        return {SPECTRUM: spectrum_row(sorted(value, reverse=True))} if is_list else None
    if kind == "alignment" and isinstance(value, list) and len(value) == 2 and all(map(is_number, value)):
        return {"update_alignment": value[0], "left_alignment": value[0], "right_alignment": value[1]}
    if kind in _OF_MATRICES and is_number(value):
        return dict.fromkeys(_OF_MATRICES[kind], value)
    return None
