"""The sections of a report in the order of the page, a subject each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import polars as pl
import yaml

from analysis.anomalies import anomalies
from analysis.arm_costs import arm_costs, arm_speeds, cost_sentences
from analysis.costs import total
from analysis.early import early_stability
from analysis.effect_texts import effects_frame
from analysis.fairness import excluded_runs, fairness, tuning
from analysis.figures.cost import cost_figures
from analysis.figures.difference_heatmap import difference_heatmap_figures, why_no_difference_heatmaps
from analysis.figures.figure import Figure
from analysis.figures.forest import forest_figures
from analysis.figures.heatmap import heatmap_figures, why_no_heatmaps
from analysis.figures.layer_lines import METRICS as LINES
from analysis.figures.layer_lines import layer_lines_figures
from analysis.figures.pairs import pair_figures, why_no_pairs
from analysis.figures.response import response_figures, why_no_response
from analysis.figures.runs_grid import runs_grid_figures
from analysis.figures.scan import scan_figures
from analysis.figures.spectrum import spectrum_figures, why_no_spectra
from analysis.figures.timelines import timeline_figures, why_no_timelines
from analysis.figures.training_curves import curve_figures, why_no_curves
from analysis.figures.volatility import volatility_figures, why_no_volatility
from analysis.figures.volatility_heatmap import volatility_heatmap_figures
from analysis.gate_texts import arm_line, headline
from analysis.report.numbers import dropped_frame
from analysis.report.page import Choice, Fold, Section
from analysis.report.tables import (
    arms_table,
    costs_table,
    dropped_table,
    early_table,
    effects_table,
    excluded_table,
    regions_table,
    runs_table,
    speeds_table,
    targets_table,
    tuning_table,
)
from analysis.report.wording import definitions, provenance
from analysis.store import Store
from analysis.summary import Summary
from analysis.target_texts import target_rows, targets_frame
from analysis.verdicts import sentence
from muon_core.spelling import counted


@dataclass(frozen=True)
class Material:
    """What every section is made from, and the tables that lie beside the page."""

    view: Store
    members: pl.DataFrame
    summary: Summary
    choice: Choice
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    """File -> frame; sections add theirs, those of figures come with them."""


def all_sections(material: Material, tell: Callable[[str], None]) -> list[Section]:
    """The sections of the page; `tell` is called with what is made next."""
    sections = []
    for number, make in enumerate(_SECTIONS, 1):
        tell(f"{make.__name__.lstrip('_')} ({number} of {len(_SECTIONS)})")
        sections.append(make(material))
    return sections


def top_figures(of: Material) -> list[Figure]:
    """What the first screen shows."""
    return list(forest_figures(of.view, of.members, of.summary))


def _arms(of: Material) -> Section:
    points = tuple(sentence(arm, of.summary) for arm in of.summary.arms)
    if not points:
        return Section("arms", "Arms in full", nothing="The sweep lists no runs.")
    return Section("arms", "Arms in full", points=points, tables=(arms_table(of.summary),))


def _gates(of: Material) -> Section:
    points = [
        line for gate in of.summary.gates for line in (headline(gate), *(arm_line(arm, gate) for arm in gate.arms))
    ]
    return Section("gates", "Gates", points=tuple(points), nothing="" if points else "The sweep file sets no gates.")


def _target(of: Material) -> Section:
    if not target_rows(of.summary):
        nothing = "No arm can be asked for its way to the baseline's mean."
        return Section("target", "Way to the target", nothing=nothing)
    of.tables["data/targets.csv"] = targets_frame(of.summary)
    return Section("target", "Way to the target", tables=(targets_table(of.summary),))


def _sensitivity(of: Material) -> Section:
    figures = tuple(response_figures(of.view, of.members, of.summary))
    tables = (effects_table(of.summary),) if of.summary.effects else ()
    if tables:
        of.tables["data/effects.csv"] = effects_frame(of.summary)
    nothing = "" if figures or tables else why_no_response(of.summary)
    return Section("sensitivity", "Sensitivity", figures=figures, tables=tables, nothing=nothing)


def _curves(of: Material) -> Section:
    figures = curve_figures(of.view, of.members, of.summary)
    nothing = "" if figures else why_no_curves(of.view, of.summary.metric)
    metric = of.summary.metric
    first = {figure.name: figure for figure in figures if figure.name in (metric, f"{metric}_difference")}
    folds = tuple(Fold(figure.title, (figure,)) for figure in figures if figure.name not in first)
    return Section("curves", "Training curves", figures=tuple(first.values()), folds=folds, nothing=nothing)


def _scan(of: Material) -> Section:
    figures = (
        *runs_grid_figures(of.view, of.members, of.summary, of.summary.metric),
        *scan_figures(of.view, of.members, of.summary, of.choice.first),
    )
    nothing = "" if figures else why_no_heatmaps(of.view, of.members, of.choice.first)
    return Section("scan", "All runs", figures=figures, nothing=nothing)


def _layers(of: Material) -> Section:
    choice = of.choice
    figures = heatmap_figures(of.view, of.members, of.summary, choice.metrics, choice.seed, choice.projections)
    folds = [Fold(metric, tuple(f for f in figures if _shows(f, metric))) for metric in choice.metrics]
    nothing = "" if figures else why_no_heatmaps(of.view, of.members, choice.metrics)
    return Section("layers", "Layers by step", folds=tuple(fold for fold in folds if fold.figures), nothing=nothing)


def _shows(figure: Figure, metric: str) -> bool:
    return figure.name.rpartition("_")[0] == metric


def _against(of: Material) -> Section:
    metrics, choice = of.choice.first, of.choice
    figures = difference_heatmap_figures(of.view, of.members, of.summary, metrics, choice.seed, choice.projections)
    nothing = "" if figures else why_no_difference_heatmaps(of.summary)
    return Section("against", "Minus the baseline", folds=_fold(figures, metrics), nothing=nothing)


def _pairs(of: Material) -> Section:
    metrics = of.choice.first
    figures = pair_figures(of.view, of.members, of.summary, metrics, projections=of.choice.projections)
    nothing = "" if figures else why_no_pairs(of.members)
    return Section("pairs", "Pairs of seeds", folds=_fold(figures, metrics), nothing=nothing)


def _lines(of: Material) -> Section:
    metrics = LINES if of.choice.metrics == Choice().metrics else of.choice.metrics
    figures = layer_lines_figures(of.view, of.members, of.summary, metrics)
    nothing = "" if figures else "No layer has been measured yet."
    return Section("lines", "Lines by layer", folds=tuple(Fold(f.title, (f,)) for f in figures), nothing=nothing)


def _spectra(of: Material) -> Section:
    figures = spectrum_figures(of.view, of.members, of.summary, of.choice.seed, of.choice.projections)
    nothing = "" if figures else why_no_spectra()
    return Section("spectra", "Singular values", folds=_fold(figures, ("singular values",)), nothing=nothing)


def _fold(figures: Sequence[Figure], titles: Sequence[str]) -> tuple[Fold, ...]:
    return (Fold(" and ".join(titles), tuple(figures)),) if figures else ()


def _timelines(of: Material) -> Section:
    figures = tuple(timeline_figures(of.view, of.members, of.summary))
    nothing = "" if figures else why_no_timelines()
    return Section("timelines", "Gates and noise over time", figures=figures, nothing=nothing)


def _volatility(of: Material) -> Section:
    figures = tuple(volatility_figures(of.view, of.members, of.summary))
    nothing = "" if figures else why_no_volatility(of.view, of.members)
    folds = tuple(Fold(figure.title, (figure,)) for figure in figures)
    maps = volatility_heatmap_figures(of.view, of.members, of.summary, of.choice.first, of.choice.projections)
    folds += _fold(maps, (f"{of.choice.first[0]} by layer and step",))
    return Section("volatility", "Volatility between seeds", folds=folds, nothing=nothing)


def _stability(of: Material) -> Section:
    stability = early_stability(of.view, of.members)
    if stability.is_empty():
        return Section("stability", "Early stability", nothing="No run has been started yet.")
    of.tables["data/stability.csv"] = stability
    return Section("stability", "Early stability", tables=(early_table(stability),))


def _anomalies(of: Material) -> Section:
    found = anomalies(of.view)
    notes = tuple(f"Note: {note}." for note in found.notes)
    over = f"{counted(found.runs, 'run')}, {found.matrices:,} matrices and up to {found.steps:,} tracked steps"
    if not found.runs:
        nothing = "No run has tracked its hidden matrices, so there is nothing to look at."
        return Section("anomalies", "Anomalies", points=notes, nothing=nothing)
    if found.regions.is_empty():
        return Section("anomalies", "Anomalies", points=notes, nothing=f"Nothing stands out in {over}.")
    of.tables["data/anomalies.csv"] = found.regions
    table = regions_table(found)
    shown = f"; the first {len(table.rows)} are shown" if found.regions.height > len(table.rows) else ""
    count = found.regions.height
    intro = (
        f"{count:,} {'region stands' if count == 1 else 'regions stand'} out in {over}{shown}. "
        "A region is a reason to look, no verdict."
    )
    return Section("anomalies", "Anomalies", intro=intro, points=notes, tables=(table,))


def _fairness(of: Material) -> Section:
    checks = fairness(of.view, of.members, of.summary)
    verdicts = {True: "fine", False: "weak", None: "not known"}
    terms = tuple((f"{check.term}: {verdicts[check.is_fine]}", check.text) for check in checks)
    excluded, tuned = excluded_runs(of.view, of.members, of.summary), tuning(of.view, of.members)
    tables = []
    for file, frame, show in (("tuning", tuned, tuning_table), ("excluded", excluded, excluded_table)):
        if frame.height:
            of.tables[f"data/{file}.csv"] = frame
            tables.append(show(frame))
    return Section("fairness", "Fairness", terms=terms, tables=tuple(tables))


def _cost(of: Material) -> Section:
    costs, speeds = arm_costs(of.view, of.members), arm_speeds(of.view, of.members)
    said = cost_sentences(costs, total(of.view), _budget(of))
    tables = []
    made = (("costs", costs, costs_table, ("hours",)), ("speeds", speeds, speeds_table, ("wall_s", "tokens_per_s")))
    for file, frame, show, known in made:
        if any(frame[name].count() for name in known):
            of.tables[f"data/{file}.csv"] = frame
            tables.append(show(frame))
    figures = tuple(cost_figures(of.view, of.members, of.summary))
    return Section("costs", "Cost", intro=said[0], figures=figures, tables=tuple(tables))


def _budget(of: Material) -> float | None:
    """USD that the sweep file allows."""
    assert of.view.record is not None
    budget = of.view.record.spec.get("budget")
    usd = budget.get("usd") if isinstance(budget, dict) else None
    return float(usd) if isinstance(usd, int | float) else None


def _definitions(of: Material) -> Section:
    return Section("definitions", "Definitions", terms=tuple(definitions(of.summary, of.choice.metrics)))


def _runs(of: Material) -> Section:
    of.tables["data/runs.csv"] = of.members
    if of.members.is_empty():
        return Section("runs", "Runs", nothing="The sweep lists no runs.")
    assert of.view.record is not None
    seeds = {run.run_id: run.seed for run in of.view.record.runs}  # also of runs that nobody has begun
    listed = pl.Series([seeds[run_id] for run_id in of.members["run_id"]], dtype=pl.Int64)
    members = of.members.with_columns(seed=pl.coalesce("seed", listed))
    return Section("runs", "Runs", tables=(runs_table(members),))


def _dropped(of: Material) -> Section:
    if not of.summary.dropped:
        nothing = "Every run that ended and that any version of the sweep has listed is on this page."
        return Section("dropped", "Dropped runs", nothing=nothing)
    of.tables["data/dropped.csv"] = dropped = dropped_frame(of.summary)
    return Section("dropped", "Dropped runs", tables=(dropped_table(of.summary, dropped),))


def _provenance(of: Material) -> Section:
    record = of.view.record
    assert record is not None
    terms = provenance(record, of.members, of.view.storage.url, of.choice)
    source = yaml.safe_dump(record.spec, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return Section("provenance", "Provenance", terms=tuple(terms), source=source)


_SECTIONS: tuple[Callable[[Material], Section], ...] = (
    _arms, _gates, _curves, _target, _sensitivity, _scan, _layers, _against, _pairs, _lines, _spectra, _timelines,
    _volatility, _stability, _anomalies, _fairness, _cost, _definitions, _runs, _dropped, _provenance,
)  # fmt: skip
