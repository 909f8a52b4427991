"""What went wrong when Polars could not read an object of the store, in one line with the remedy."""

from __future__ import annotations

import re
import sys

from muon_core.storage import StoreError, StoreUnavailable

_OF_S3 = "object-store error"
_OF_PARQUET = re.compile(r"parquet|out-of-spec|ARROW:schema")


def explained(error: BaseException, url: str) -> StoreError | None:
    """The line for an error that Polars raised while it read the store at `url`; None for any other error.

    Polars reads when a result is computed, so it may raise anywhere, and it does not name the object.
    """
    if "polars" not in sys.modules:
        return None
    if isinstance(error, OSError) and _OF_S3 in str(error):
        from muon_core.s3_errors import explain_polars

        trouble = explain_polars(str(error), url)
        return (StoreUnavailable if trouble.passing else StoreError)(trouble.text)
    return _damage(url) if _is_of_parquet(error) else None


def _is_of_parquet(error: BaseException) -> bool:
    from polars.exceptions import PolarsError

    if type(error).__name__ == "PanicException":  # a defect of Polars, which damaged objects bring to light
        return True
    first = error.__cause__ if isinstance(error, ValueError) and error.__cause__ else error
    told = str(first).strip().partition("\n")[0]  # below it stands the plan, which names files for any error
    return isinstance(first, PolarsError) and bool(_OF_PARQUET.search(told))


def _damage(url: str) -> StoreError | None:
    from analysis.tables import open_store

    told = open_store(url).damaged()
    return StoreError(told) if told else None
