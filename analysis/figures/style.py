"""Colours and dashes: an optimizer's follow from its name in every figure; viridis for values, blueorange beside 0."""

from __future__ import annotations

import colorsys
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

FONT = "system-ui, sans-serif"
MISSING_COLOUR = "#999999"
# Viridis by van der Walt and Smith (CC0), every eighth colour of matplotlib's table; between them rgb is linear.
_VIRIDIS = (
    "440154470e61481a6c482575472f7d443a834144873d4e8a39568c35608d31688e2d708e2a788e27818e23888e21918d"
    "1f988b1fa08822a8842ab07f35b77943bf7154c56866cc5d7ad1518fd744a5db36bcdf27d2e21be9e51afde725"
)
VIRIDIS_ANCHORS = len(_VIRIDIS) // 6
# Vega's blueorange, for differences: light in the middle, where they are 0.
_BLUEORANGE = "134b852f78b35da2cb9dcae1d2e5eff2f0ebfce0bafbbb74e8932fc5690d994a07"
BLUEORANGE_ANCHORS = len(_BLUEORANGE) // 6

RGB = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """How the mean line of an arm is drawn."""

    colour: str
    dash: tuple[int, ...]


# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/; black and yellow are left out, each vanishes on one background.
# From lion on, hues between theirs.
_OPTIMIZER_STYLES = {
    "muon": ArmStyle("#0072B2", (1, 0)),
    "adamw": ArmStyle("#D55E00", (7, 3)),
    "orthonoise": ArmStyle("#009E73", (2, 2)),
    "isotropic": ArmStyle("#CC79A7", (9, 2, 2, 2)),
    "damped": ArmStyle("#E69F00", (4, 4)),
    "nolah": ArmStyle("#56B4E9", (12, 4)),
    "lion": ArmStyle("#D63D3D", (1, 3)),
    "soap": ArmStyle("#58811B", (6, 2, 1, 2)),
    "sgd": ArmStyle("#1D8289", (14, 3, 2, 3)),
    "normuon": ArmStyle("#8D59DC", (3, 3, 9, 3)),
    "adamuon": ArmStyle("#C92BBF", (1, 2, 5, 2)),
}
_NAMELESS_STYLE = ArmStyle("#7F7F7F", (9, 2, 2, 2, 2, 2))
"""Of runs that name no optimizer, as imported ones may."""
_HUES = (62, 106, 128, 224, 244, 284, 330, 350)
"""Degrees, those left between the colours above."""
_LUMINANCES = (0.18, 0.3)
"""Relative ones of WCAG 2.1: a contrast above 3 with white and with black."""
_MORE_DASHES = ((2, 5), (5, 2, 5, 6), (16, 4), (3, 2, 3, 2, 10, 2), (10, 2, 1, 2, 1, 2))
_DASHES = tuple(style.dash for style in (*_OPTIMIZER_STYLES.values(), _NAMELESS_STYLE))


def _other_styles() -> list[ArmStyle]:
    """What the optimizers without a fixed style choose from."""
    colours = [_colour(hue, luminance) for luminance in _LUMINANCES for hue in _HUES]
    return [ArmStyle(colour, _MORE_DASHES[i % len(_MORE_DASHES)]) for i, colour in enumerate(colours)]


def _colour(hue: int, luminance: float) -> str:
    """The colour of a hue in degrees that has this relative luminance, between 0 and 1."""
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        lightness = (low + high) / 2
        rgb = colorsys.hls_to_rgb(hue / 360, lightness, 0.65)
        red, green, blue = ((x / 12.92) if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb)
        low, high = (lightness, high) if 0.2126 * red + 0.7152 * green + 0.0722 * blue < luminance else (low, lightness)
    red, green, blue = (round(255 * x) for x in colorsys.hls_to_rgb(hue / 360, low, 0.65))
    return hex_colour((red, green, blue))


def optimizer_styles(optimizers: Iterable[str]) -> dict[str, ArmStyle]:
    """Style of each optimizer: a fixed one, or the one that a hash of its name points at.

    Where two names point at one, the later in the alphabet takes the next that is free.
    """
    others = _other_styles()
    styles: dict[str, ArmStyle] = {}
    for name in sorted(set(optimizers)):
        first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % len(others)
        turned = [*others[first:], *others[:first]]
        free = next((style for style in turned if style not in styles.values()), turned[0])
        styles[name] = _OPTIMIZER_STYLES.get(name, free)
    return styles


def arm_styles(arms: list[tuple[str, str | None]]) -> dict[str, ArmStyle]:
    """Style of each (arm, optimizer): its optimizer's; the later ones of an optimizer are lighter and dashed otherwise.

    To be called once with all arms of a sweep, so that an arm looks the same in all of its figures.
    """
    known = optimizer_styles(optimizer for _, optimizer in arms if optimizer)
    own = {arm: known[optimizer] if optimizer else _NAMELESS_STYLE for arm, optimizer in arms}
    total, seen = Counter(own.values()), Counter[ArmStyle]()
    styles = {}
    for arm, style in own.items():
        nth = seen[style]
        seen[style] += 1
        styles[arm] = ArmStyle(_lighten(style.colour, nth / total[style]), _nth_dash(style.dash, nth))
    return styles


def _nth_dash(own: tuple[int, ...], nth: int) -> tuple[int, ...]:
    """`own` for the first arm of an optimizer, then the others in turn."""
    others = [dash for dash in _DASHES if dash != own]
    return own if nth == 0 else others[(nth - 1) % len(others)]


def viridis(count: int = 255) -> list[RGB]:
    """`count` colours from the lowest value, dark violet, to the highest, yellow."""
    return _ramp(_VIRIDIS, count)


def blueorange(count: int = 255) -> list[RGB]:
    """`count` colours from the most negative difference, dark blue, to the most positive, brown."""
    return _ramp(_BLUEORANGE, count)


def _ramp(table: str, count: int) -> list[RGB]:
    anchors = [_rgb(table[i : i + 6]) for i in range(0, len(table), 6)]
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
