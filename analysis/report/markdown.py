"""The report as Markdown with pictures, to be pasted into a paper, an issue or a pull request."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.answer import answer
from analysis.figures.figure import Figure
from analysis.figures.svg import to_png
from analysis.gate_texts import brief, headline
from analysis.report.page import Section, Table
from analysis.report.tables import verdict_table
from analysis.summary import Summary
from muon_core.statuses import counts_text

_SCALE = 1.5
"""Pixels of a picture a CSS pixel."""


def markdown(summary: Summary, top: list[Figure], sections: list[Section]) -> str:
    """The text; its pictures are those of `pictures`, each with its description as alternative text."""
    gates = [line for gate in summary.gates for line in (f"- gate {headline(gate)}", *_listed(brief(gate), "  "))]
    parts = [
        f"# {_plain(summary.question or summary.sweep)}",
        f"{_plain(answer(summary))}",
        f"{summary.sweep}: {counts_text(summary.counts)}.",
        "\n".join(f"- **error:** {_plain(error)}" for error in summary.errors),
        _table(verdict_table(summary)) if summary.arms else "",
        "\n".join(gates),
        *(_figure(figure) for figure in top),
        "\n".join(["Weaknesses of this comparison:\n", *_listed(summary.warnings)]) if summary.warnings else "",
        *(part for section in sections for part in _section(section)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def pictures(top: list[Figure], sections: list[Section]) -> dict[str, bytes]:
    """File -> PNG of the figures that the page shows unfolded, else the first of its section."""
    shown = [*top, *(figure for section in sections for figure in _shown(section))]
    return {_file(figure): to_png(figure.svg, scale=_SCALE) for figure in shown}


def _shown(section: Section) -> Iterable[Figure]:
    yield from section.figures or [fold.figures[0] for fold in section.folds[:1]]


def _file(figure: Figure) -> str:
    return f"figures/{figure.name}.png"


def _section(section: Section) -> Iterable[str]:
    yield f"## {section.title}"
    yield _plain(section.nothing)
    yield _plain(section.intro)
    yield "\n".join(_listed(section.points))
    yield from (_figure(figure) for figure in _shown(section))
    if more := len(section.all_figures) - len([*_shown(section)]):
        yield f"{more} more such figures are on the page, index.html."
    yield "\n".join(f"- **{_plain(term)}**: {_plain(text)}" for term, text in section.terms)
    yield from (_table(table) for table in section.tables)
    yield f"```yaml\n{section.source}\n```" if section.source else ""


def _figure(figure: Figure) -> str:
    caption = f"**{_plain(figure.title)}.** {_plain(figure.caption)} [Values]({figure.file})"
    description = _plain(figure.description).replace("[", "\\[").replace("]", "\\]")
    return f"![{description}]({_file(figure)})\n\n{caption}"


def _table(table: Table) -> str:
    rows = [
        [name for name, _ in table.columns],
        ["---:" if is_number else "---" for _, is_number in table.columns],
        *table.rows,
    ]
    rows = [rows[0], rows[1], *([_plain(cell).replace("|", "\\|") for cell in row] for row in rows[2:])]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    values = f" [Values]({table.file})" if table.file else ""
    return f"{lines}\n\n{_plain(table.caption)}{values}"


def _listed(texts: Iterable[str], indent: str = "") -> list[str]:
    return [f"{indent}- {_plain(text)}" for text in texts]


def _plain(text: str) -> str:
    """`text` without what Markdown would read as markup."""
    for sign in "\\`*<":  # underscores inside words are none
        text = text.replace(sign, f"\\{sign}")
    return text
