"""Measuring beside training, on a CPU, which by itself measures at once."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from muon_core import measuring


class Late(Future[Any]):
    """Is measured when it is asked for: as late as can be, with everything changed that later steps change."""

    def __init__(self, measure: Callable[[], Any]) -> None:
        super().__init__()
        self._measure = measure

    def done(self) -> bool:
        return False

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if not super().done():
            try:
                self.set_result(self._measure())
            except Exception as error:
                self.set_exception(error)
        return super().exception(timeout)


class Procrastinator:
    """Stands for the pool of one thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def submit(self, measure: Callable[[], Any]) -> Late:
        return Late(measure)

    def shutdown(self, *, wait: bool) -> None:
        pass


def measure_beside(patched: pytest.MonkeyPatch, *, late: bool = False) -> None:
    """Measure beside training from here on: in a thread or, with `late`, at the last moment."""
    patched.setattr(measuring, "BESIDE", ("cpu", "cuda"))
    if late:
        patched.setattr(measuring, "ThreadPoolExecutor", Procrastinator)
