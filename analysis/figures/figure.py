"""A finished figure: drawn, described, and with the data it shows; a notebook draws it as it stands on the page."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import polars as pl


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

    def _repr_html_(self) -> str:
        """How Jupyter shows it."""
        return f"<figure>{self.svg}<figcaption>{escape(self.caption)}</figcaption></figure>"
