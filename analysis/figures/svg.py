"""Renders a chart to static SVG that stands alone in a page: titled, described, without scripts, offline.

Vega draws it here, once, so the page needs neither Vega nor a network. Its ids are renamed, for several figures on one
page would share them, and colours are left to the page's text, so that a dark page stays readable. Text is measured in
the font that a page brings along, and larger than it is shown, for a notebook shows it in another (`style.ROOM`).
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import vl_convert

from analysis.figures.style import FONT, LIGHT, ROOM, vega_config

VEGA_LITE = "6.4"
FONTS = Path(__file__).parent / "fonts"
vl_convert.register_font_directory(str(FONTS))
_CLIPPED = re.compile(r'(<g class="mark-(?:line|area) role-mark [^"]*") clip-path="([^"]+)"')
_SEE_THROUGH = re.compile(
    r'<path((?: (?!fill)[a-z-]+="[^"]*")*) stroke="([^"]+)"((?: (?!fill)[a-z-]+="[^"]*")*) opacity="([^"]+)"'
)
Spec = dict[str, Any]
"""A Vega-Lite specification whose data are named, not contained."""
Rows = list[dict[str, Any]]


def part(chart: Any) -> Spec:
    """An Altair chart as a part of a specification: Altair puts charts together by copying each many times over.

    Its channels are objects, as `alt.Text("text:N")`: where they are texts Altair goes through all its classes to make
    one of each, and takes longer for that than for the rest of the chart.
    """
    spec: Spec = chart.to_dict(validate=False)
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def to_svg(spec: Spec, datasets: dict[str, Rows], *, name: str, title: str, description: str) -> str:
    """SVG text of `spec`, whose named data are `datasets`; `name` keeps its ids apart from other figures'."""
    spec = spec | {"config": vega_config(), "datasets": datasets}
    svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    for change in (_without_roles, _sized, _flattened, _rounded, _trimmed):
        svg = change(svg)
    return _describe(_own_ids(svg, name), name, title, description)


def to_png(svg: str, *, scale: float = 2.0, colour: str = LIGHT.ink, background: str = LIGHT.paper) -> bytes:
    """PNG bytes of an SVG from `to_svg`, with the colour and background that a page would lend it."""
    opaque = svg.replace("currentColor", colour).replace(
        "</desc>", f'</desc><rect width="100%" height="100%" fill="{background}"/>', 1
    )
    png = vl_convert.svg_to_png(opaque, scale=scale)
    assert isinstance(png, bytes)
    return png


def _sized(svg: str) -> str:
    """Font sizes as they are to be shown."""
    return re.sub(r'font-size="([\d.]+)px"', lambda match: f'font-size="{float(match[1]) / ROOM:.4g}px"', svg)


def _rounded(svg: str) -> str:
    """Places to a hundredth of a CSS pixel: Vega writes sixteen digits, which are half the bytes of a line."""
    return re.sub(r' (?:d|transform)="[^"]*"', lambda place: re.sub(r"(\.\d\d)\d+", r"\1", place[0]), svg)


def _own_ids(svg: str, name: str) -> str:
    """Vega's ids repeat from figure to figure and depend on what was drawn before; on one page they must do neither."""
    found = dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg))
    own = {old: f"{name}-{number}" for number, old in enumerate(found)}
    svg = re.sub(r'\bid="([^"]+)"', lambda match: f'id="{own[match[1]]}"', svg)
    return re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{own[match[1]]})", svg)


def _without_roles(svg: str) -> str:
    """One picture, not a hundred: Vega calls each mark an image or a symbol, and names none of them."""
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r' (role|aria-[a-z]+)="[^"]*"', "", tag[0]), svg)


def _flattened(svg: str) -> str:
    """Lines of a mark clipped together and see-through by their paint: a layer for each takes seconds to rasterize."""
    before, *groups = re.split(r'(?=<g class="mark-group role-scope [^"]*pathgroup)', svg)
    return "".join([before, *map(_clipped_once, groups)])


def _clipped_once(group: str) -> str:
    if clip := _CLIPPED.search(group):
        group = _CLIPPED.sub(r"\1", group).replace(">", f' clip-path="{clip[2]}">', 1)
    return _SEE_THROUGH.sub(r'<path\1 stroke="\2"\3 stroke-opacity="\4"', group)


def _trimmed(svg: str) -> str:
    """Without what says nothing, a fifth of it: defaults, and empty paths."""
    svg = re.sub(rf' (?:pointer-events="none"|opacity="1"|font-weight="normal"|font-family="{FONT}")', "", svg)
    return re.sub(r'<path class="(?:foreground|background)" d="(?:M0,0h0v0h0Z)?"(?: display="none")?/>', "", svg)


def _describe(svg: str, name: str, title: str, description: str) -> str:
    """Vega-Lite drops descriptions on the way to SVG, so they are put in here."""
    labels = f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc" font-family="{FONT}"'
    texts = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return re.sub(r"<svg ([^>]*)>", lambda match: f"<svg {labels} {match[1]}>{texts}", svg, count=1)
