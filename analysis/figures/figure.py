"""A finished figure: drawn, described, and with the data it shows; a notebook draws it as it stands on the page."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path

import polars as pl

from analysis.figures.style import DARK, LIGHT
from analysis.figures.svg import to_png


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure; `tables` are its data by file name, the first being what the description points to."""

    name: str
    title: str
    caption: str
    description: str
    svg: str
    tables: dict[str, pl.DataFrame]

    @property
    def file(self) -> str:
        """Where the values lie, relative to the page."""
        return next(iter(self.tables))

    def to_png(self, *, scale: float = 2.0, dark: bool = False) -> bytes:
        """The picture, `scale` pixels a CSS pixel, on white or on a dark page."""
        theme = DARK if dark else LIGHT
        return to_png(self.svg, scale=scale, colour=theme.ink, background=theme.paper)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the picture to a .svg or .png file. Raises ValueError for another ending."""
        path = Path(path)
        if path.suffix not in (".svg", ".png"):
            raise ValueError(f"a figure is saved as .svg or .png, not as {path.name!r}; its data are in .tables")
        path.write_bytes(self.to_png() if path.suffix == ".png" else self.svg.encode())
        return path

    def _repr_html_(self) -> str:
        """How Jupyter shows it."""
        heading = f"<strong>{escape(self.title)}</strong>"
        return f"<figure>{heading}{self.svg}<figcaption>{escape(self.caption)}</figcaption></figure>"


class Figures(list[Figure]):
    """Figures that a notebook shows one below the other."""

    def _repr_html_(self) -> str:
        return "".join(figure._repr_html_() for figure in self) or "<p>Nothing was measured that could be drawn.</p>"
