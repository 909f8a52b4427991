"""What a report's page consists of: sections with a subject each, and their figures and tables."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.figures.figure import Figure
from analysis.figures.heatmap import METRICS as LAYER_METRICS

_FIRST = "effective_rank"
Pairs = list[tuple[str, str]]
"""Terms and what is said of them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the many figures of layers a report draws."""

    metrics: tuple[str, ...] = LAYER_METRICS
    seed: int | None = None
    """None is the one at which most arms have values."""
    projections: tuple[str, ...] = ()
    """Empty is all."""

    @property
    def first(self) -> tuple[str, ...]:
        """The metric of figures that show one."""
        return (_FIRST,) if _FIRST in self.metrics else self.metrics[:1]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first cell of a row says what the row is of."""

    label: str
    caption: str
    columns: tuple[tuple[str, bool], ...]
    """Heading, and whether the column holds numbers."""
    rows: list[list[str]]
    file: str = ""
    """Where the values lie, relative to the page."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Figures that are shown together, as those of one metric; the first fold of a section is open."""

    title: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One subject. What it has is shown in the order of the fields."""

    id: str
    title: str
    intro: str = ""
    points: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    folds: tuple[Fold, ...] = ()
    terms: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    nothing: str = ""
    """Why there is nothing to show; empty where there is something."""
    source: str = ""
    """Text that is shown as it is, as a sweep file."""

    @property
    def all_figures(self) -> list[Figure]:
        """Also those in folds."""
        return [*self.figures, *(figure for fold in self.folds for figure in fold.figures)]
