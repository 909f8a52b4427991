"""Lays small images out in rows, with lines of text above each, ticks at the edges, and real scales as legends.

All of a figure is one view of Vega-Lite whose marks are placed in CSS pixels. As a view with axes for each panel, a
figure of twenty takes a second to draw, and a page has dozens. The specification is written by hand, for Altair would
take longer to check it than Vega to draw it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.figures.svg import Rows, Spec

LINE = 14  # CSS pixels from one line of text to the next
LETTER, _WIDE = 7.0, 10.9  # of a letter of 11 pixels in the widest font a browser may take, DejaVu Sans
_TICK, _PAD = 5, 3
_BELOW = 2 * LINE + 12  # of the step axis: its labels and its title


@dataclass(frozen=True, slots=True)
class Picture:
    """One panel."""

    lines: Sequence[str]
    """Text above it."""
    images: Sequence[str]
    """URLs of images over the whole panel, the lowest first."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Of panels, in CSS pixels."""

    per_row: int
    width: int
    height: int
    gap: int
    left: int
    """Room for the labels on the left."""
    side: Sequence[tuple[float, str]]
    """(pixels from the top of a panel, label) on the left of each row."""
    side_title: str = ""
    foot: Sequence[tuple[float, str]] = ()
    """(pixels from the left of a panel, label) below the panels that have none below them."""
    foot_title: str = ""


def wrapped(name: str, width: float) -> list[str]:
    """`name` in lines of at most `width` CSS pixels, broken after spaces, `-`, `_`, `=` and `,` where it can be."""
    lines = [""]
    for part in re.findall(r"[^\s_=,-]*[\s_=,-]+|[^\s_=,-]+", name):
        if lines[-1] and text_width((lines[-1] + part).rstrip()) > width:
            lines.append("")
        for letter in part:
            if text_width(lines[-1] + letter) > width and letter != " ":
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines]


def text_width(text: str) -> float:
    """CSS pixels that `text` takes at most."""
    return sum(_WIDE if letter in "mwMW@%" else LETTER for letter in text)


def draw_grid(pictures: Sequence[Picture], layout: Layout, legends: Sequence[Spec]) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data. Each of `legends` encodes an invisible layer of points over the data `ends`."""
    images: Rows = []
    texts: dict[str, Rows] = {"titles": [], "side": [], "foot": [], "turned": []}
    rules: Rows = []
    top = 0.0
    for start in range(0, len(pictures), layout.per_row):
        row = pictures[start : start + layout.per_row]
        above = max(len(one.lines) for one in row) * LINE
        y = top + above
        texts["side"] += [_text(layout.left - _TICK - _PAD, y + at, label) for at, label in layout.side]
        if layout.side_title:
            texts["turned"].append(_text(10, y + layout.height / 2, layout.side_title))
            rules += [_rule(layout.left - _TICK, y + at, layout.left, y + at) for at, _ in layout.side]
        for column, one in enumerate(row):
            x = layout.left + column * (layout.width + layout.gap)
            images += [{"x": x, "y": y, "url": url} for url in one.images]
            first = y - _PAD - (len(one.lines) - 1) * LINE
            texts["titles"] += [_text(x, first + LINE * i, line) for i, line in enumerate(one.lines)]
            if layout.foot and start + column + layout.per_row >= len(pictures):
                foot = y + layout.height
                texts["foot"] += [_text(x + at, foot + _TICK + _PAD, label) for at, label in layout.foot]
                texts["foot"].append(_text(x + layout.width / 2, foot + _TICK + _PAD + LINE, layout.foot_title))
                rules += [_rule(x + at, foot, x + at, foot + _TICK) for at, _ in layout.foot]
        # An axis above the empty end of the last row hangs into it.
        is_last = start + layout.per_row >= len(pictures)
        top = y + layout.height + (_BELOW if is_last and layout.foot else layout.gap)
    width = layout.left + min(len(pictures), layout.per_row) * (layout.width + layout.gap) - layout.gap
    spec: Spec = {
        "width": width,
        "height": top,
        "layer": [
            _layer("images", _IMAGE | {"width": layout.width, "height": layout.height}, width, top, url=_field("url")),
            _layer(
                "rules", {"type": "rule", "color": "currentColor"}, width, top, x2={"field": "x2"}, y2={"field": "y2"}
            ),
            *(_layer(name, _TEXT | mark, width, top, text=_field("text")) for name, mark in _MARKS.items()),
            *(_layer("ends", _POINT, width, top, **legend) for legend in legends),
        ],
    }
    return spec, {"images": images, "rules": rules, **texts}


_IMAGE = {"type": "image", "aspect": False, "smooth": False, "align": "left", "baseline": "top"}
_POINT = {"type": "point", "opacity": 0, "filled": True}
_TEXT = {"type": "text", "color": "currentColor"}
_MARKS: dict[str, dict[str, Any]] = {
    "titles": {"align": "left", "baseline": "alphabetic"},
    "side": {"align": "right", "baseline": "middle"},
    "foot": {"align": "center", "baseline": "top"},
    "turned": {"align": "center", "baseline": "middle", "angle": 270},
}


def _layer(data: str, mark: dict[str, Any], width: float, height: float, **encoding: Spec) -> Spec:
    x = _field("x", "quantitative") | {"scale": {"domain": [0, width], "nice": False}, "axis": None}
    y = _field("y", "quantitative") | {"scale": {"domain": [height, 0], "nice": False}, "axis": None}
    return {"data": {"name": data}, "mark": mark, "encoding": {"x": x, "y": y} | encoding}


def _field(name: str, kind: str = "nominal") -> Spec:
    return {"field": name, "type": kind}


def _text(x: float, y: float, text: str) -> dict[str, Any]:
    return {"x": x, "y": y, "text": text}


def _rule(x: float, y: float, x2: float, y2: float) -> dict[str, Any]:
    return {"x": x, "y": y, "x2": x2, "y2": y2}
