"""SciPy's `blas` and `lapack`, with a thread of their own number: one, unless the environment says otherwise.

The OpenBLAS that SciPy brings along is not the one that torch's number of threads is about. Left alone it takes every
core, and its threads wait for each other busily: on two cores the products of a tracked step took ten times the CPU
time, out of the share of whatever else trains there. It reads its number of threads when it is loaded.
"""

from __future__ import annotations

import os

_NAMES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_alone = not any(os.environ.get(name) for name in _NAMES)
if _alone:
    os.environ[_NAMES[0]] = "1"
from scipy.linalg import blas, lapack  # noqa: E402

if _alone:
    del os.environ[_NAMES[0]]  # what this process starts decides for itself

__all__ = ["blas", "lapack"]
