"""What the config of an older run tells of its matrices: their shapes, and so the chance level of their alignments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from muon_core.metrics.chance import chance_alignment

_SUBSPACE = 5  # leading directions that those projects compare


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Projection -> (rows, cols) of its weight, as far as `config` tells; empty without `d_model`.

    Weights have a row for each output. `n_kv_heads` is `n_heads` where it is not given.

    >>> shapes({"d_model": 512, "n_heads": 8, "n_kv_heads": 4})
    {'q': (512, 512), 'o': (512, 512), 'k': (256, 512), 'v': (256, 512)}
    """
    width, heads, inner = (_count(config.get(name)) for name in ("d_model", "n_heads", "d_ff"))
    if not width:
        return {}
    found = {"q": (width, width), "o": (width, width)}
    if heads and width % heads == 0:
        kv_heads = heads if config.get("n_kv_heads") is None else _count(config["n_kv_heads"])
        if kv_heads:
            found |= dict.fromkeys("kv", (width // heads * kv_heads, width))
    if inner:
        found |= {"up": (inner, width), "down": (width, inner)}
    return found


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def add_shapes(layers: Iterable[dict[str, Any]], config: Mapping[str, Any]) -> None:
    """Give rows of `layers` the shape of their matrix and the chance levels, where `config` tells the shape."""
    known = {projection: _columns(*shape) for projection, shape in shapes(config).items()}
    for row in layers:
        row.update(known.get(row["projection"], {}))


def _columns(rows: int, cols: int) -> dict[str, Any]:
    k = min(_SUBSPACE, rows, cols)
    return {
        "rows": rows,
        "cols": cols,
        "alignment_chance": chance_alignment(rows, k),
        "right_alignment_chance": chance_alignment(cols, k),
    }
