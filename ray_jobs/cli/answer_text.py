"""Prints a summary as plain text, as wide as the terminal, 72 to 120 columns."""

from __future__ import annotations

import textwrap

from analysis.effect_texts import brief_effects
from analysis.gate_texts import brief, headline
from analysis.summary import Summary
from analysis.target_texts import brief_targets
from analysis.verdicts import arm_texts, how_compared, sentence
from muon_core.statuses import counts_text
from ray_jobs.cli.text import GAP, aligned, terminal_width

_WORDS = ("arm", "role", "verdict")
_ROOM_FOR_NAMES = {"role": 20, "wall": 8, "%": 8, "better": 8}
"""Columns that go, in this order, while the arms' names have less room."""
_LEFT_TO_THE_REPORT = ("block", "p (Holm)", "pair corr.")  # the sentences below the table say them


def render_summary(summary: Summary, width: int | None = None) -> str:
    """Errors, the verdict table, a sentence an arm, effects of parameters, ways to the target, warnings, gates.

    Lines are of at most `width`; None is the terminal's width. Below 72 columns the numbers of the table do not fit.
    """
    width = terminal_width() if width is None else width
    better = "lower" if summary.goal == "min" else "higher"
    head = [
        f"{summary.sweep}: {summary.question}" if summary.question else summary.sweep,
        f"{summary.metric} ({summary.unit}), {summary.at} value, {better} is better; means over done runs; "
        f"differences to {summary.baseline or 'no baseline'}, {how_compared(summary)}. "
        f"{counts_text(summary.counts)}.",
        *([summary.confirms] if summary.confirms else []),
    ]
    cells = [arm_texts(arm, summary) for arm in summary.arms]
    sentences = [sentence(arm, summary) for arm in summary.arms]
    errors = [f"error: {text}" for text in summary.errors]
    warnings = [f"warning: {text}" for text in summary.warnings]
    gates = [line for found in summary.gates for line in (f"gate {headline(found)}", *indented(brief(found)))]
    paragraphs = (errors, head, sentences, brief_effects(summary), brief_targets(summary), warnings, gates)
    texts = [wrap(paragraph, width) for paragraph in paragraphs]
    parts = [*texts[:2], _table(cells, width), *texts[2:]]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _table(cells: list[dict[str, str]], width: int) -> list[str]:
    if not cells:
        return ["the sweep lists no runs"]
    columns = [name for name in cells[0] if name not in _LEFT_TO_THE_REPORT]
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in columns}
    for name, room in _ROOM_FOR_NAMES.items():
        if _room(widths, width) < min(room, max(8, widths["arm"])):
            del widths[name]
    widths["arm"] = max(8, min(widths["arm"], _room(widths, width)))
    names = {name: name for name in widths}
    lines = [line for row in [names, *cells] for line in _lines(row, widths)]
    return [lines[0], "─" * max(map(len, lines)), *lines[1:]]


def _room(widths: dict[str, int], width: int) -> int:
    """Columns of text left for the arm's name."""
    return width - sum(w for name, w in widths.items() if name != "arm") - len(GAP) * (len(widths) - 1)


def _lines(row: dict[str, str], widths: dict[str, int]) -> list[str]:
    """Words to the left, numbers to the right; a name too long for its column has a line of its own."""
    if len(row["arm"]) > widths["arm"]:
        return [row["arm"], *_lines(row | {"arm": ""}, widths)]
    return [aligned([row[name] for name in widths], list(widths.values()), [name not in _WORDS for name in widths])]


def indented(lines: list[str]) -> list[str]:
    """What stands below another line."""
    return [f"  {line}" for line in lines]


def wrap(paragraphs: list[str], width: int) -> list[str]:
    """Lines of at most `width`, those that go on further in; a number keeps its % sign and p its number."""
    tied = [
        text.replace(" %", "\xa0%").replace("p = ", "p\xa0=\xa0").replace("p < ", "p\xa0<\xa0") for text in paragraphs
    ]
    lines = [line for text in tied for line in _wrapped(text, width)]
    return [line.replace("\xa0", " ") for line in lines]


def _wrapped(text: str, width: int) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text, width, subsequent_indent=f"{indent}  ")
