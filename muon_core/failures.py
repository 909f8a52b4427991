"""What ended a run that did not get to its end, and when two of them died alike.

A failure has a kind, by which it is tried again or not (`classify`), and a signature, by which it is grouped with
others (`signature`): two runs of an arm die alike when their signatures are equal. Errors are known by the names of
their types and by their words, so that neither torch nor Ray is loaded by whoever only reads of them.

Nobody tells a process that the kernel killed for want of memory, or a machine that was switched off without notice,
from other deaths: those are `infrastructure`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Kind = Literal["program", "out_of_memory", "infrastructure", "preemption", "hang"]
"""`program`: its own code raised. `out_of_memory`: of the device or the machine. `infrastructure`: a worker or its node
died, or the connection between workers was lost. `preemption`: whoever lent the node took it back. `hang`: it made no
progress for too long. A run that diverged has not failed: it is a result."""

PREEMPTED = "preempted: "  # begins what is said of a run that saved itself because its node is taken back
_TYPES: dict[str, Kind] = {
    "OutOfMemoryError": "out_of_memory",  # torch's and Ray's
    "MemoryError": "out_of_memory",
    "PreemptionError": "preemption",  # Ray Train's
    "Preempted": "preemption",
    "Hang": "hang",
    "RayActorError": "infrastructure",
    "NodeDiedError": "infrastructure",
    "WorkerCrashedError": "infrastructure",
    "ObjectLostError": "infrastructure",
    "WorkerGroupStartupFailedError": "infrastructure",
    "WorkerGroupStartupTimeoutError": "infrastructure",
    "WorkerHealthCheckFailedError": "infrastructure",
    "WorkerHealthCheckTimeoutError": "infrastructure",
    "LostPeers": "infrastructure",
    "DistError": "infrastructure",  # NCCL, and the store where workers meet
}
# For want of memory some of torch's parts raise plain RuntimeErrors, and Ray's monitor kills actors. The last words are
# of cuBLAS, cuSOLVER and cuDNN, to which PyTorch's own allocator has left nothing.
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|running low on memory|STATUS_ALLOC_FAILED", re.IGNORECASE
)
# How a worker learns that another is gone: gloo raises plain RuntimeErrors, and Ray takes the process group away.
_NO_CONNECTION = re.compile(r"\bgloo\b|process group has not been initialized")
_GRAVEST: tuple[Kind, ...] = ("preemption", "hang", "out_of_memory", "infrastructure", "program")


def classify(error: BaseException) -> Kind:
    """The kind of failure that `error` is, or that Ray reports by it."""
    error = getattr(error, "health_check_failure", error)  # what Ray Train wraps a worker's death in
    if getattr(error, "preempted", False):
        return "preemption"
    kinds = (_TYPES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _TYPES)
    known = next(kinds, None)
    if known in (None, "infrastructure") and isinstance(error, Exception) and _NO_MEMORY.search(_said(error)):
        return "out_of_memory"
    if known is None and isinstance(error, RuntimeError | ValueError) and _NO_CONNECTION.search(str(error)):
        return "infrastructure"
    return known or "program"


def _said(error: Exception) -> str:
    """What an error says, without the guesses that Ray adds to each death it cannot explain."""
    return str(error).partition("There are some potential root causes")[0]


def gravest(errors: Iterable[BaseException]) -> Kind:
    """The kind of failure that a group of workers died of: when one dies, the others fail because of it."""
    kinds = {classify(error) for error in errors}
    return next((kind for kind in _GRAVEST if kind in kinds), "infrastructure")


def divergence(reason: str | None) -> Literal["nonfinite", "spike"]:
    """How a run diverged whose record says `reason`."""
    return "spike" if "spiked" in (reason or "") else "nonfinite"


_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'^ +File "([^"]+)", line \d+, in (.+)$', re.MULTILINE)
_OURS = re.compile(r".*/(?=(?:muon_core|ray_jobs|search_spaces|analysis)/)")
_FOREIGN = re.compile(r"/(?:site|dist)-packages/|/lib/python\d|^<")
# What differs between runs that died alike. Each leaves a word in its place, so that what remains can be read.
_VARYING = (
    (re.compile(r"\b[\w.+-]+-s\d+-[0-9a-f]{8}\b"), "<run>"),
    (re.compile(r"""(["'])(?:\w+:/)?/[^"'\n]*\1"""), "<path>"),
    (re.compile(r"""(?<![\w)<])(?:\w+:/)?/[^\s"',;()]+"""), "<path>"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b"), "<id>"),
    (re.compile(r"(?<![A-Za-z_\d])\d+(?:[.,]\d+)*(?:[eE][+-]?\d+)?"), "<n>"),
)


def signature(error: str | None) -> str:
    """What is the same in each run that dies alike: `ValueError: bad lr <n> (optim/muon.py, step)`.

    Args:
        error: a traceback, its end, or a sentence.
    """
    last = (error or "").rpartition(_TRACEBACK)[2]
    frames = list(_FRAME.finditer(last))
    said = headline(error)
    for pattern, word in _VARYING:
        said = pattern.sub(word, said)
    ours = [(path, name) for path, name in (frame.groups() for frame in frames) if _is_ours(path)]
    return f"{said} ({_OURS.sub('', ours[-1][0])}, {ours[-1][1]})" if ours else said


def headline(error: str | None) -> str:
    """The line of a traceback that names the exception; the first line of any other text."""
    last = (error or "").rpartition(_TRACEBACK)[2]
    frames = list(_FRAME.finditer(last))
    lines = [line for line in last[frames[-1].end() if frames else 0 :].splitlines() if line.strip()]
    if frames:  # after the source of the last frame; the message may have further lines
        lines = [line for line in lines if not line.startswith(" ")]
    return lines[0].strip() if lines else ""


def _is_ours(path: str) -> bool:
    """Whether code at `path` is the project's or the user's, not a library's."""
    return bool(_OURS.match(path)) or not _FOREIGN.search(path)
