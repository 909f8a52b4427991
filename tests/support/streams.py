"""CUDA's streams and events on a machine without CUDA: they note what is asked of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from muon_core import state
from muon_core.prefetch import Batches

Calls = list[Any]


class Stream:
    """Notes in `calls` what it is asked for."""

    def __init__(self, name: str, calls: Calls) -> None:
        self.name, self.calls = name, calls

    def record_event(self) -> str:
        self.calls.append((self.name, "records"))
        return f"event of {self.name}"

    def wait_event(self, event: str) -> None:
        self.calls.append((self.name, "waits", event))


def two_streams(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> Stream:
    """Let there be a current stream, and another one, which is returned."""
    current, side = Stream("current", calls), Stream("side", calls)

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        calls.append(("on", stream.name))
        yield
        calls.append(("off", stream.name))

    def record_stream(tensor: Tensor, stream: Stream) -> None:
        calls.append(("rows", "are used on", stream.name))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(Tensor, "record_stream", record_stream)
    return side


def copy_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
    """Let runs foresee their batches, on whatever device."""
    side = two_streams(monkeypatch, calls)

    class Copying(Batches):
        """Batches of a device that computes by itself."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._stream = side  # type: ignore[assignment]

    monkeypatch.setattr(state, "Batches", Copying)
