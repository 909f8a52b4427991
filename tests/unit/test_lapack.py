"""SciPy's linear algebra takes the thread it is given, and one where nobody says."""

import os
import subprocess
import sys

import pytest

COUNT = """
import os
import numpy  # has threads of its own
from pathlib import Path
tasks = Path("/proc/self/task")
before = len(list(tasks.iterdir()))
from muon_core.metrics.lapack import blas
assert blas.dsyrk(1.0, numpy.eye(300)).shape == (300, 300)
print(len(list(tasks.iterdir())) - before, os.environ.get("OPENBLAS_NUM_THREADS"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
@pytest.mark.parametrize(("given", "further"), [(None, 0), ("2", 1)])
def test_lapack_has_the_threads_it_is_given(given: str | None, further: int) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"OPENBLAS_NUM_THREADS": given} if given else {}
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(further), str(given)]
