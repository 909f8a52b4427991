"""Colours and dashes: one fixed colour per optimizer in every figure, viridis for values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

FONT = "system-ui, sans-serif"
MISSING_COLOUR = "#999999"
# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/; black and yellow are left out, each vanishes on one background.
_OPTIMIZER_COLOURS = {"muon": "#0072B2", "adamw": "#D55E00", "orthonoise": "#009E73", "isotropic": "#CC79A7"}
_OTHER_COLOURS = ("#E69F00", "#56B4E9")
_OPTIMIZER_DASHES = {"muon": (1, 0), "adamw": (7, 3), "orthonoise": (2, 2), "isotropic": (9, 2, 2, 2)}
_DASHES = ((1, 0), (7, 3), (2, 2), (9, 2, 2, 2), (4, 4), (12, 4))
# Viridis by van der Walt and Smith (CC0), every eighth colour of matplotlib's table; between them rgb is linear.
_VIRIDIS = (
    "440154470e61481a6c482575472f7d443a834144873d4e8a39568c35608d31688e2d708e2a788e27818e23888e21918d"
    "1f988b1fa08822a8842ab07f35b77943bf7154c56866cc5d7ad1518fd744a5db36bcdf27d2e21be9e51afde725"
)
VIRIDIS_ANCHORS = len(_VIRIDIS) // 6

RGB = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """How the mean line of an arm is drawn."""

    colour: str
    dash: tuple[int, ...]


def arm_styles(arms: list[tuple[str, str | None]]) -> dict[str, ArmStyle]:
    """Style of each (arm, optimizer): its optimizer's colour; arms that share one differ in dash and lightness."""
    per_optimizer = Counter(optimizer for _, optimizer in arms)
    others = sorted({optimizer or "" for _, optimizer in arms} - _OPTIMIZER_COLOURS.keys())
    seen: Counter[str | None] = Counter()
    styles: dict[str, ArmStyle] = {}
    for arm, optimizer in arms:
        nth, of = seen[optimizer], per_optimizer[optimizer]
        seen[optimizer] += 1
        name = optimizer or ""
        colour = _OPTIMIZER_COLOURS.get(name) or _OTHER_COLOURS[others.index(name) % len(_OTHER_COLOURS)]
        dash = _OPTIMIZER_DASHES.get(name, _DASHES[4]) if of == 1 else _DASHES[nth % len(_DASHES)]
        styles[arm] = ArmStyle(_lighten(colour, nth / of), dash)
    return styles


def viridis(count: int = 255) -> list[RGB]:
    """`count` colours from the lowest value, dark violet, to the highest, yellow."""
    anchors = [_rgb(_VIRIDIS[i : i + 6]) for i in range(0, len(_VIRIDIS), 6)]
    colours = []
    for i in range(count):
        position = i * (len(anchors) - 1) / (count - 1)
        left = min(int(position), len(anchors) - 2)
        colours.append(_mix(anchors[left], anchors[left + 1], position - left))
    return colours


def hex_colour(colour: RGB) -> str:
    """`#440154`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def vega_config() -> dict[str, Any]:
    """Transparent, in the colour of the surrounding text, so that a page's dark mode carries over."""
    text = {"labelColor": "currentColor", "titleColor": "currentColor", "labelFont": FONT, "titleFont": FONT}
    lines = {
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.15,
    }
    return {
        "background": None,
        "aria": False,  # the figure has one title and description; thousands of unnamed marks only hide them
        "font": FONT,
        "view": {"stroke": None},
        "axis": text | lines | {"titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 12},
        "legend": text | {"titleFontWeight": "normal", "labelFontSize": 12, "titleFontSize": 12, "labelLimit": 320},
        "title": {"color": "currentColor", "font": FONT, "fontSize": 12, "fontWeight": 600, "anchor": "start"},
    }


def _lighten(colour: str, share: float) -> str:
    """`colour` mixed with up to 60 % white."""
    return colour if share == 0 else hex_colour(_mix(_rgb(colour.removeprefix("#")), (255, 255, 255), 0.6 * share))


def _rgb(text: str) -> RGB:
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def _mix(a: RGB, b: RGB, share: float) -> RGB:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue
