"""Processes that map a function over a stream, a few items ahead of who takes the results, in order. No torch.

They are started, not forked, so they hold nothing of this process; they leave Ctrl-C to it, and end when it does, even
when it is killed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # items for each process that were handed out and not taken

_function: Callable[[Any], Any] | None = None


class WorkerPool:
    """Runs what `make()` returns, which each process makes for itself.

    Args:
        make: travels to the processes.
        workers: with 1 there is no other process.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], workers: int) -> None:
        self._here = make() if workers == 1 else None
        self._ahead = AHEAD * workers
        self._pool = _pool(workers, _prepare, make) if workers > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, items: Iterable[T], take: Callable[[T], Any]) -> Iterator[tuple[T, Any]]:
        """Each item with the result for `take(item)`. Raises what the function raises, and ValueError if one died."""
        if self._here:
            for item in items:
                yield item, self._here(take(item))
            return
        assert self._pool
        under_way: deque[tuple[T, Future[Any]]] = deque()
        try:
            for item in items:
                under_way.append((item, self._pool.submit(_call, take(item))))
                if len(under_way) > self._ahead:
                    item, future = under_way.popleft()
                    yield item, future.result()
            while under_way:
                item, future = under_way.popleft()
                yield item, future.result()
        except BrokenProcessPool:
            raise _died() from None

    @staticmethod
    def call(function: Callable[..., R], *arguments: Any) -> R:
        """What `function` returns in a process of its own, which takes its memory with it."""
        others = active_children()
        with _pool(1, _prepare, None) as pool:
            try:
                return pool.submit(function, *arguments).result()
            except BrokenProcessPool:
                raise _died() from None
            except KeyboardInterrupt:  # it hears none of that, and may be busy for minutes
                for process in active_children():
                    if process not in others:
                        process.terminate()
                raise


def _pool(workers: int, prepare: Callable[..., None], make: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, get_context("spawn"), prepare, (make,))


def _died() -> ValueError:
    return ValueError("a process that tokenizes was killed, for want of memory perhaps; the same command continues")


def _prepare(make: Callable[[], Callable[[Any], Any]] | None) -> None:
    """Make this process one of the pool."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first process ends the others
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the threads
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if make:
        _function = make()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _call(argument: Any) -> Any:
    assert _function
    return _function(argument)
