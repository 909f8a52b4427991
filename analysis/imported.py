"""What a report of imported runs draws beside the usual: they may have norms at some steps, where others have peaks."""

from __future__ import annotations

import polars as pl

from analysis.store import Store

_PREFIX = "imported-"
_NORMS = ("weight_norm", "grad_norm", "update_norm")


def norms_without_peaks(view: Store) -> tuple[str, ...]:
    """Norms that the runs of a sweep's view have, if all of them were imported, and none has a peak."""
    assert view.record is not None
    if not all(run.run_id.startswith(_PREFIX) for run in view.record.runs):
        return ()
    names = [*_NORMS, *(f"{name}_peak" for name in _NORMS[:2])]
    has = view.layers.select(pl.col(names).is_not_null().any()).collect().row(0, named=True)
    return tuple(name for name in _NORMS if has[name] and not has.get(f"{name}_peak"))
