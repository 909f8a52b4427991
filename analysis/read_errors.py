"""What went wrong when Polars could not read an object of the store, in one line with the remedy.

Polars reads when a result is computed, far from where the store was opened, and its error names neither the object nor
what to do. An error that is about S3 or Parquet is therefore explained once, where a command ends: a server's answer is
put into words, and for a damaged object the store is read through until it is found.
"""

from __future__ import annotations

import re

from polars.exceptions import PolarsError

from analysis.store import open_store
from muon_core.store.storage import StoreError

_OF_S3 = "object-store error"
_OF_PARQUET = re.compile(r"parquet|out-of-spec|ARROW:schema")


def explain(error: BaseException, url: str) -> StoreError | None:
    """The line for an error that Polars raised while it read the store at `url`; None for any other error."""
    if isinstance(error, OSError) and _OF_S3 in str(error):
        from muon_core.store.s3.errors import explain_polars  # botocore, which a folder need not load

        return explain_polars(str(error), url).error()
    return _damage(url) if _is_of_parquet(error) else None


def _is_of_parquet(error: BaseException) -> bool:
    if type(error).__name__ == "PanicException":  # a defect of Polars, which damaged objects bring to light
        return True
    first = error.__cause__ if isinstance(error, ValueError) and error.__cause__ else error
    headline = str(first).strip().partition("\n")[0]  # below it stands the plan, which names files for any error
    return isinstance(first, PolarsError) and bool(_OF_PARQUET.search(headline))


def _damage(url: str) -> StoreError | None:
    found = open_store(url).damaged()
    return StoreError(found) if found else None
