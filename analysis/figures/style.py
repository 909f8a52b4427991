"""Colours and dashes: an optimizer's follow from its name in every figure; viridis for values, blueorange beside 0."""

from __future__ import annotations

import colorsys
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

FONT = "Report Roboto, sans-serif"
"""Lies in `fonts/` and in every page: a figure is measured in what it is shown in."""
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


class Theme(NamedTuple):
    """What a page lends a figure: the colour of its text, and what is behind it."""

    ink: str
    paper: str


LIGHT, DARK = Theme("#1a1a1a", "#ffffff"), Theme("#e8e8e6", "#16181a")
ROOM = 1.2
"""DejaVu Sans, the font of many browsers on Linux, is up to so much wider than Arial, by which Vega lays texts out."""


def laid_out(size: float) -> float:
    """The font size at which Vega sees a text that is shown at `size` CSS pixels: `svg.to_svg` takes the room back."""
    return round(size * ROOM, 3)


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """How the mean line of an arm is drawn."""

    colour: str
    dash: tuple[int, ...]


# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/; black and yellow are left out, each vanishes on one background;
# orange and sky blue are darker here, for a contrast of 3 with white. From lion on, hues between theirs.
_OPTIMIZER_STYLES = {
    "muon": ArmStyle("#0072B2", (1, 0)),
    "adamw": ArmStyle("#D55E00", (7, 3)),
    "orthonoise": ArmStyle("#009E73", (2, 2)),
    "isotropic": ArmStyle("#CC79A7", (9, 2, 2, 2)),
    "damped": ArmStyle("#B97F00", (4, 4)),
    "nolah": ArmStyle("#2A94D1", (12, 4)),
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
_DARKEST, _LIGHTEST = 0.135, 0.29
"""Relative luminances of WCAG 2.1 between which a colour has a contrast of 3 with the paper of either theme."""
_GOLDEN = (5**0.5 - 1) / 2
_MORE_DASHES = ((2, 5), (5, 2, 5, 6), (16, 4), (3, 2, 3, 2, 10, 2), (10, 2, 1, 2, 1, 2))
_DASHES = tuple(style.dash for style in (*_OPTIMIZER_STYLES.values(), _NAMELESS_STYLE))


def _other_styles() -> list[ArmStyle]:
    """What the optimizers without a fixed style choose from."""
    colours = [_colour(hue, luminance) for luminance in (0.18, 0.28) for hue in _HUES]
    return [ArmStyle(colour, _MORE_DASHES[i % len(_MORE_DASHES)]) for i, colour in enumerate(colours)]


def _colour(hue: float, luminance: float, saturation: float = 0.65) -> str:
    """The colour of a hue in degrees that has this relative luminance, between 0 and 1."""
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        lightness = (low + high) / 2
        rgb = colorsys.hls_to_rgb(hue / 360, lightness, saturation)
        low, high = (lightness, high) if _luminance(rgb) < luminance else (low, lightness)
    red, green, blue = (round(255 * x) for x in colorsys.hls_to_rgb(hue / 360, low, saturation))
    return hex_colour((red, green, blue))


def _luminance(rgb: tuple[float, float, float]) -> float:
    red, green, blue = ((x / 12.92) if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours like `#440154`, from 1 to 21. Source: WCAG 2.1, 1.4.3."""
    darker, lighter = sorted(_luminance(_shares(colour)) for colour in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


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
    """Style of each (arm, optimizer): its optimizer's; the later ones of an optimizer are shades with other dashes.

    To be called once with all arms of a sweep, so that an arm looks the same in all of its figures.
    """
    known = optimizer_styles(optimizer for _, optimizer in arms if optimizer)
    own = {arm: known[optimizer] if optimizer else _NAMELESS_STYLE for arm, optimizer in arms}
    seen = Counter[ArmStyle]()
    styles = {}
    for arm, style in own.items():
        nth = seen[style]
        seen[style] += 1
        styles[arm] = ArmStyle(_shade(style.colour, nth), _nth_dash(style.dash, nth))
    return styles


def _nth_dash(own: tuple[int, ...], nth: int) -> tuple[int, ...]:
    """`own` for the first arm of an optimizer, then the others in turn."""
    others = [dash for dash in _DASHES if dash != own]
    return own if nth == 0 else others[(nth - 1) % len(others)]


def shortened(name: str, length: int) -> str:
    """`name` in `length` characters at most: of a longer one its beginning and its end, for names differ in either.

    >>> shortened("orthonoise-a0.05 momentum=0.95", 20)
    'orthonois…entum=0.95'
    """
    end = length // 2
    return name if len(name) <= length else f"{name[: length - end - 1]}…{name[-end:]}"


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
    sizes = {"titleFontWeight": "normal", "titleFontSize": laid_out(12)}
    return {
        "background": None,
        "aria": False,  # the figure has one title and description; thousands of unnamed marks only hide them
        "font": FONT,
        "view": {"stroke": None},
        "axis": text | lines | sizes | {"labelFontSize": laid_out(11)},
        "legend": text | sizes | {"labelFontSize": laid_out(12), "labelLimit": 400},
        "text": {"color": "currentColor", "font": FONT, "fontSize": laid_out(11)},
        "title": {
            "color": "currentColor",
            "font": FONT,
            "fontSize": laid_out(12),
            "fontWeight": 600,
            "anchor": "start",
            "frame": "group",
        },
    }


def _shade(colour: str, nth: int) -> str:
    """`colour` for the first arm; for the others its hue, turned a little, between the darkest and the lightest."""
    if nth == 0:
        return colour
    hue, _, saturation = colorsys.rgb_to_hls(*_shares(colour))
    share = nth * _GOLDEN % 1  # far from those before it, however many follow
    return _colour(
        360 * hue + 40 * (share - 0.5), _DARKEST + (_LIGHTEST - _DARKEST) * (nth * _GOLDEN * 2 % 1), saturation
    )


def _shares(colour: str) -> tuple[float, float, float]:
    red, green, blue = _rgb(colour.removeprefix("#"))
    return red / 255, green / 255, blue / 255


def _rgb(text: str) -> RGB:
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def _mix(a: RGB, b: RGB, share: float) -> RGB:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue
