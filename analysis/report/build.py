"""Writes a sweep's report: one page that needs no network and no script, its data as CSV, its numbers as JSON.

Whatever the page shows can be had as numbers beside it: a figure's rows in data/, and all that the text says in
report.json. Everything is made before the first file is written, so a failure in the making leaves the previous report
untouched.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import jinja2
import polars as pl

from analysis.figures.figure import Figure
from analysis.figures.training_curves import curve_figures, why_no_curves
from analysis.gate_texts import brief, headline
from analysis.report.figures import heatmap_figures, why_no_heatmaps
from analysis.report.numbers import arms_frame, dropped_frame, report_numbers
from analysis.report.wording import DROPPED_COLUMNS, RUN_COLUMNS, definitions, dropped_rows, provenance, run_rows
from analysis.store import Store
from analysis.summary import Summary, members_of, summarize_members
from analysis.verdicts import arm_texts, how_compared, sentence
from muon_core.statuses import counts_text

_WORDS = ("arm", "block", "role", "verdict")  # columns of text, the others are numbers
_DROPPED = "data/dropped.csv"


class Report(NamedTuple):
    """A report that was written: its page, and the answer on it."""

    page: Path
    summary: Summary


def write_report(view: Store, folder: str | os.PathLike[str], metric: str = "effective_rank") -> Report:
    """Write index.html, report.json and data/*.csv of a sweep's view to `folder`.

    Data of figures that an earlier report in `folder` had, and this one has not, are removed.

    Args:
        metric: the layer metric of the heatmaps.

    Raises:
        ValueError for a view of no sweep, an unknown metric, or a folder that cannot be written.
    """
    members = members_of(view)
    summary = summarize_members(view, members)
    heatmaps = heatmap_figures(view, members, metric)
    curves = curve_figures(view, members, summary)
    page = _page(view, members, summary, curves, heatmaps, metric)
    numbers = report_numbers(summary, members, [*curves, *heatmaps])
    tables = {name: frame for figure in [*curves, *heatmaps] for name, frame in figure.tables.items()}
    tables |= {"data/arms.csv": arms_frame(summary), "data/runs.csv": members}
    if summary.dropped:
        tables[_DROPPED] = dropped_frame(summary)
    root = Path(folder)
    try:
        (root / "data").mkdir(parents=True, exist_ok=True)
        for stale in _earlier_tables(root) - tables.keys():
            (root / stale).unlink(missing_ok=True)
        for name, frame in tables.items():
            frame.write_csv(root / name)
        (root / "report.json").write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (root / "index.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"cannot write a report to {root}: {error.strerror or error}; choose another folder"
        ) from error
    return Report(root / "index.html", summary)


def _earlier_tables(root: Path) -> set[str]:
    """Data of the figures, and of dropped runs, of the report that is in `root`; empty if none is."""
    try:
        report = json.loads((root / "report.json").read_text(encoding="utf-8"))
        dropped = {_DROPPED} if report.get("dropped") else set()
        return {f"data/{Path(name).name}" for figure in report["figures"] for name in figure["data"]} | dropped
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # no report, or none of ours


def _page(
    view: Store, members: pl.DataFrame, summary: Summary, curves: list[Figure], heatmaps: list[Figure], metric: str
) -> str:
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    assert view.record is not None
    rows = [arm_texts(arm, summary) for arm in summary.arms]
    better = "lower" if summary.goal == "min" else "higher"
    return environment.get_template("report.html").render(
        css=(here / "report.css").read_text(encoding="utf-8"),
        summary=summary,
        counts=counts_text(summary.counts),
        gates=[(headline(found), brief(found)) for found in summary.gates],
        sentences=[sentence(arm, summary) for arm in summary.arms],
        table_caption=f"{summary.at.capitalize()} {summary.metric} ({summary.unit}; {better} is better) of each arm, "
        f"and its difference to {summary.baseline or 'no baseline'}, {how_compared(summary)}.",
        arm_columns=[(name, name not in _WORDS) for name in (rows[0] if rows else ())],
        arm_rows=[list(row.values()) for row in rows],
        curves=curves,
        no_curves="" if curves else why_no_curves(view, summary.metric),
        heatmaps=heatmaps,
        no_heatmaps="" if heatmaps else why_no_heatmaps(view, members, metric),
        layer_metric=metric,
        definitions=definitions(summary, metric),
        run_columns=RUN_COLUMNS,
        run_rows=run_rows(members),
        dropped_columns=[*DROPPED_COLUMNS, (f"{summary.at} {summary.metric}", True)],
        dropped_rows=dropped_rows(summary),
        provenance=provenance(view.record, members, view.storage.url, metric),
        spec=json.dumps(view.record.spec, indent=2, ensure_ascii=False),
    )
