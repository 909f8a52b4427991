"""Prints a summary as plain text of at most 120 columns."""

from __future__ import annotations

import textwrap

from analysis.summary import Summary
from analysis.verdicts import arm_cells, counts_text, sentence

WIDTH = 120
_GAP = "  "
_LEFT_TO_THE_REPORT = ("block", "95 % interval, %", "p (Holm)", "pair corr.")  # the sentences below the table say them


def render_summary(summary: Summary, width: int = WIDTH) -> str:
    """The verdict table, a sentence for each arm, and the warnings; lines of at most `width` columns."""
    better = "lower" if summary.goal == "min" else "higher"
    head = [
        f"{summary.sweep}: {summary.question}" if summary.question else summary.sweep,
        f"{summary.metric} ({summary.unit}), {summary.at} value, {better} is better; means over done runs; "
        f"differences to {summary.baseline or 'no baseline'}, paired by seed, with 95 % Student t intervals. "
        f"{counts_text(summary.counts)}.",
    ]
    cells = [arm_cells(arm, summary) for arm in summary.arms]
    columns = [name for name in cells[0] if name not in _LEFT_TO_THE_REPORT] if cells else []
    rows = [columns, *([row[name] for name in columns] for row in cells)]
    sentences = [sentence(arm, summary) for arm in summary.arms]
    warnings = [f"warning: {text}" for text in summary.warnings]
    parts = [_wrap(head, width), _table(rows, width), _wrap(sentences, width), _wrap(warnings, width)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _table(rows: list[list[str]], width: int) -> list[str]:
    if not rows[0]:
        return ["the sweep lists no runs"]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    spare = width - sum(widths[1:]) - len(_GAP) * (len(widths) - 1)
    widths[0] = max(8, min(widths[0], spare))
    lines = [_line([_shorten(row[0], widths[0]), *row[1:]], widths) for row in rows]
    return [lines[0], "─" * max(map(len, lines)), *lines[1:]]


def _line(row: list[str], widths: list[int]) -> str:
    texts = (0, 1, len(row) - 1)  # words to the left, numbers to the right
    cells = [
        f"{cell:<{w}}" if i in texts else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ]
    return _GAP.join(cells).rstrip()


def _shorten(text: str, width: int) -> str:
    """Keeps both ends: the optimizer in front and the parameter that differs behind."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _wrap(paragraphs: list[str], width: int) -> list[str]:
    return [line for text in paragraphs for line in textwrap.wrap(text, width, subsequent_indent="  ")]
