"""Writes a sweep's report: a page that needs no network and no script, Markdown, the data as CSV, the numbers as JSON.

Whatever the page shows can be had as numbers beside it: a figure's rows in data/, and all that the text says in
report.json. Everything is made before the first file is written, so a failure in the making leaves the previous report
untouched.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jinja2
import polars as pl
from altair.utils.schemapi import debug_mode

from analysis.answer import answer
from analysis.figures.figure import Figure
from analysis.figures.svg import FONTS
from analysis.gate_texts import brief, headline
from analysis.queries import check_layer_metric
from analysis.report.markdown import markdown, pictures
from analysis.report.numbers import arms_frame, report_numbers
from analysis.report.page import Choice, Section
from analysis.report.sections import Material, all_sections, top_figures
from analysis.report.tables import verdict_table
from analysis.store import Store
from analysis.summary import Summary, members_of, summarize_members
from muon_core.statuses import counts_text
from muon_core.tables import PROJECTIONS, projection_order


class Report(NamedTuple):
    """A report that was written: its page, and the answer on it."""

    page: Path
    summary: Summary


def write_report(
    view: Store,
    folder: str | os.PathLike[str],
    choice: Choice | None = None,
    *,
    tell: Callable[[str], None] = lambda part: None,
) -> Report:
    """Write index.html, report.md, report.json, figures/*.png and data/*.csv of a sweep's view to `folder`.

    Files that an earlier report in `folder` had, and this one has not, are removed.

    Args:
        tell: called with what is made next.

    Raises:
        ValueError for a view of no sweep, a choice of what there is not, or a folder that cannot be written.
    """
    _check_folder(Path(folder))
    # Altair checks every part of every chart, which takes longer than all else together. Polars adds what its threads
    # have summed of a stream in the order they end: the last digits would differ from page to page.
    with debug_mode(False), pl.Config(engine_affinity="in-memory"):
        tell("numbers")
        members = members_of(view)
        choice = _checked(choice or Choice(), view, members)
        summary = summarize_members(view, members)
        material = Material(view, members, summary, choice)
        tell("first figures")
        top = top_figures(material)
        sections = all_sections(material, tell)
    figures = [*top, *(figure for section in sections for figure in section.all_figures)]
    tell(f"{len(figures)} pictures")
    png = pictures(top, sections)
    tell("page")
    page = _page(summary, top, sections)
    text = markdown(summary, top, sections)
    tables = {"data/arms.csv": arms_frame(summary)} | material.tables
    tables |= {name: frame for figure in figures for name, frame in figure.tables.items()}
    numbers = report_numbers(summary, members, figures, [*png, *tables], tables.get("data/speeds.csv"))
    encoded = json.dumps(numbers, indent=1, allow_nan=False) + "\n"
    tell("files")
    _write(Path(folder), tables, png, {"report.json": encoded, "report.md": text, "index.html": page})
    return Report(Path(folder) / "index.html", summary)


def _check_folder(root: Path) -> None:
    """Raises ValueError where no report can be written, before a minute went into its pictures."""
    there = next(path for path in (root, *root.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise ValueError(f"cannot write a report to {root}: {there} {why}; choose another folder")


def _checked(choice: Choice, view: Store, members: pl.DataFrame) -> Choice:
    """`choice`. Raises ValueError naming what there is for a metric, seed or projection that there is not."""
    for metric in choice.metrics:
        check_layer_metric(metric)
    if not set(choice.projections) <= set(PROJECTIONS):
        there = view.layers.select(pl.col("projection").unique()).collect()["projection"].to_list()
        known = sorted({*PROJECTIONS, *there}, key=projection_order)
        if unknown := next((name for name in choice.projections if name not in known), None):
            raise ValueError(f"unknown projection {unknown!r}; choose of {', '.join(known)}")
    seeds = members["seed"].drop_nulls().unique().sort().to_list()
    if choice.seed is not None and choice.seed not in seeds:
        raise ValueError(f"no run has seed {choice.seed}; the seeds are {', '.join(map(str, seeds)) or 'not known'}")
    return choice


def _write(root: Path, tables: dict[str, pl.DataFrame], png: dict[str, bytes], texts: dict[str, str]) -> None:
    """Write everything, the page last, and remove what is left of an earlier report."""
    try:
        for name in ("data", "figures"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for stale in _earlier_files(root) - {*tables, *png}:
            (root / stale).unlink(missing_ok=True)
        for name, frame in tables.items():
            frame.write_csv(root / name)
        for name, data in png.items():
            (root / name).write_bytes(data)
        for name, text in texts.items():
            (root / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"cannot write a report to {root}: {error.strerror or error}; choose another folder"
        ) from error


def _earlier_files(root: Path) -> set[str]:
    """Pictures and data of the report that is in `root`; empty if none is."""
    try:
        files = json.loads((root / "report.json").read_text(encoding="utf-8"))["files"]
        inside = [Path(name) for name in files]
        return {f"{path.parent.name}/{path.name}" for path in inside if path.parent.name in ("data", "figures")}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # no report, or none of ours


def _page(summary: Summary, top: list[Figure], sections: list[Section]) -> str:
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html").render(
        css=_fonts() + (here / "report.css").read_text(encoding="utf-8"),
        summary=summary,
        counts=counts_text(summary.counts),
        answer=answer(summary),
        verdicts=verdict_table(summary),
        gates=[(found.result, headline(found), brief(found)) for found in summary.gates],
        top=top,
        sections=sections,
    )


def _fonts() -> str:
    """Style that brings the font of the figures along: texts were measured in it."""
    rule = '@font-face {{ font-family: "Report Roboto"; font-weight: {}; src: url(data:font/ttf;base64,{}); }}\n'
    files = {400: "ReportRoboto-Regular.ttf", 700: "ReportRoboto-Bold.ttf"}
    return "".join(
        rule.format(weight, base64.b64encode((FONTS / name).read_bytes()).decode()) for weight, name in files.items()
    )
