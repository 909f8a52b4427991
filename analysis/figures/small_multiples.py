"""Small multiples: a panel of one kind for each arm, run or setting, in rows."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from analysis.figures.svg import Spec


def copies(template: Mapping[str, Any], words: Iterable[Mapping[str, str]]) -> list[Spec]:
    """A copy of `template` for each of `words`, in which its keys, such as `@arm`, stand replaced by its values.

    Altair takes seconds to build and check a panel for every arm; it is asked for one.
    """
    text = json.dumps(template)
    panels = []
    for named in words:
        copy = text
        for word, value in named.items():
            copy = copy.replace(word, json.dumps(value)[1:-1])
        panels.append(json.loads(copy))
    return panels


def in_rows(panels: list[Spec], titles: list[str], per_row: int, characters: int, gap: int = 56) -> Spec:
    """`panels` in rows, `gap` pixels apart, each below its title in as many lines as the longest needs."""
    lines = [textwrap.wrap(title, characters) or [""] for title in titles]
    most = max(map(len, lines), default=1)
    for panel, title in zip(panels, lines, strict=True):
        panel["title"] = {"text": [*title, *[""] * (most - len(title))], "frame": "group"}
    spacing = {"row": 52 + 16 * most, "column": gap}
    return {"concat": panels, "columns": per_row, "bounds": "flush", "spacing": spacing}
