"""Draws panels of layers and steps: each a small image, one pixel a cell.

As vector rectangles, a figure of many runs is megabytes, and where columns are narrower than a pixel its colours are
wrong. Cells that are ill-posed lie below a second image, which hatches them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from analysis.figures.cells import Flags, Values
from analysis.figures.panels import Heatmap, Panel
from analysis.figures.picture_grid import LETTER, Layout, Picture, draw_grid, text_width, wrapped
from analysis.figures.png import data_url, encode_indexed
from analysis.figures.style import (
    BLUEORANGE_ANCHORS,
    RGB,
    VIRIDIS_ANCHORS,
    blueorange,
    hex_colour,
    viridis,
)
from analysis.figures.svg import Rows, Spec

_ROW_WIDTH, _GAP = 706, 22  # CSS pixels of all panels side by side, and between them
MISSING = (153, 153, 153)
PAPER, LINES = (232, 232, 232), (96, 96, 96)
"""Of ill-posed cells: dark lines on light grey, where missing ones are plain and darker."""
_HATCH = "M-1,-1H1V1H-1ZM-1,1L1,-1M-1,0L0,-1M0,1L1,0"
"""A square with three of those lines, for the legend."""
_TALL, _LOW = 220, 120  # CSS pixels at most: of a panel among few, and among more than _FEW
_FEW = 12


def draw_heatmap(info: Heatmap) -> tuple[Spec, dict[str, Rows]]:
    """Specification and data: a panel is one image, a cell a pixel; the legends are invisible points on real scales."""
    palette, width, height = [MISSING, *_colours(info, 255)], _width(info), _height(info)
    pictures = []
    for panel in info.panels:
        pixels = colour_indices(panel.cells, info.low, info.high)[::-1]  # layer 0 at the bottom, images start on top
        images = [data_url(encode_indexed(pixels, palette))]
        if panel.ill_posed is not None and panel.ill_posed.any():
            images.append(data_url(hatch(panel.ill_posed[::-1], width, height)))
        pictures.append(Picture(_title(info, panel), images))
    layers = len(info.layers)
    layout = Layout(
        per_row=info.per_row,
        width=width,
        height=height,
        gap=_GAP,
        left=22 + round(LETTER * len(str(info.layers[-1]))) + 8,
        side=[(height * (1 - (i + 0.5) / layers), str(info.layers[i])) for i in spread(layers, 6)],
        side_title="layer",
        foot=_step_labels(info),
        foot_title="step",
    )
    notes = ["missing", "ill-posed"][: 1 + _has_ill_posed(info)]
    spec, data = draw_grid(pictures, layout, [{"color": _colour(info)}, notes_legend(notes, {})])
    return spec, data | {"ends": _ends(info)}


def colour_indices(cells: Values, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Palette index of each cell: 0 is missing, 1 to 255 run from `low` to `high`; values beyond take the ends."""
    low, high = scale_ends(low, high)
    share = np.clip((np.nan_to_num(cells, nan=low) - low) / (high - low), 0, 1)
    return np.where(np.isnan(cells), 0, 1 + np.rint(254 * share)).astype(np.uint8)


def scale_ends(low: float, high: float) -> tuple[float, float]:
    """`low` and `high`, apart: a constant field gets a scale around its value and the colour in the middle."""
    if high > low:
        return low, high
    margin = 0.05 * abs(low) or 1.0
    return low - margin, low + margin


def hatch(flags: Flags, width: int, height: int) -> bytes:
    """PNG bytes of `width` x `height` pixels: rising lines over the flagged cells, elsewhere nothing."""
    layers, columns = flags.shape
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    flagged = flags[y * layers // height, x * columns // width]
    pixels = np.where(flagged, np.where((x + y) % 8 < 2, 2, 1), 0).astype(np.uint8)
    return encode_indexed(pixels, [(0, 0, 0), PAPER, LINES], transparent=True)


def spread(count: int, ticks: int) -> list[int]:
    """At most `ticks` of the indices 0 to count - 1, equally far apart, from 0 on."""
    stride = max(1, -(-(count - 1) // (ticks - 1)))
    return list(range(0, count, stride))


def _step_labels(info: Heatmap) -> list[tuple[float, str]]:
    """As many as fit side by side, none of which reaches the next panel's."""
    width, columns = _width(info), len(info.columns)
    room = text_width(f"{info.columns[-1]:,}") + 2 * LETTER
    ticks = spread(columns, max(2, int(width // room)))
    labels = [(width * (i + 0.5) / columns, f"{info.columns[i]:,}") for i in ticks]
    return [(at, label) for at, label in labels if at + text_width(label) / 2 <= width + _GAP / 2]


def _title(info: Heatmap, panel: Panel) -> list[str]:
    """Lines above a panel."""
    lines = wrapped(panel.arm, _width(info) + _GAP / 2) + ([panel.note] if panel.note else [])
    return lines + ([] if panel.run_id else ["no rows" if panel.note else "no rows at this seed"])


def _colour(info: Heatmap) -> Spec:
    """The legend of the pictures: a real scale with the same colours."""
    anchors = VIRIDIS_ANCHORS if info.minus is None else BLUEORANGE_ANCHORS
    colours = [hex_colour(colour) for colour in _colours(info, anchors)]
    scale = {"domain": list(scale_ends(info.low, info.high)), "range": colours, "interpolate": "rgb"}
    title = info.metric.replace("_", "_\n").split("\n")
    legend = {"title": title, "gradientLength": max(80, min(160, _height(info))), "tickCount": 4}
    return {"field": "value", "type": "quantitative", "scale": scale, "legend": legend}


def _colours(info: Heatmap, count: int) -> list[RGB]:
    return viridis(count) if info.minus is None else blueorange(count)


def notes_legend(notes: Sequence[str], legend: Spec) -> Spec:
    """The legend of cells without a colour: `missing`, and `ill-posed` where some are."""
    legend = {"title": None, "symbolOpacity": 1, "symbolSize": 200, "symbolStrokeWidth": 1.2} | legend
    looks = {
        "shape": ["square", _HATCH],
        "fill": [hex_colour(MISSING), hex_colour(PAPER)],
        "stroke": [hex_colour(MISSING), hex_colour(LINES)],
    }
    common = {"field": "note", "type": "nominal", "legend": legend}
    return {
        channel: common | {"scale": {"domain": notes, "range": look[: len(notes)]}} for channel, look in looks.items()
    }


def _has_ill_posed(info: Heatmap) -> bool:
    return any(panel.ill_posed is not None and bool(panel.ill_posed.any()) for panel in info.panels)


def _ends(info: Heatmap) -> Rows:
    low, high = scale_ends(info.low, info.high)
    return [{"x": 0, "y": 0, "value": value, "note": note} for value, note in ((low, "missing"), (high, "ill-posed"))]


def _width(info: Heatmap) -> int:
    return (_ROW_WIDTH - (info.per_row - 1) * _GAP) // info.per_row


def _height(info: Heatmap) -> int:
    return max(72, min(_TALL if len(info.panels) <= _FEW else _LOW, 14 * len(info.layers)))
