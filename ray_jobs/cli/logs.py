"""`muon logs`."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import click

from muon_core.store.keys import start_time
from muon_core.store.reader import read_end, relisting
from muon_core.store.run_log import LogReader, Piece
from muon_core.store.storage import Storage
from ray_jobs.cli.main import EXIT_INTERRUPTED
from ray_jobs.cli.options import json_option, next_command, store_option
from ray_jobs.cli.runs import find_run

POLL_S = 1.0
LAST_WORDS_S = 3.0  # a run's traceback is stored after its end record


@click.command("logs")
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on with what the run prints, until it ends.")
@click.option(
    "--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines of each rank's newest start."
)
@click.option("--rank", type=click.IntRange(min=0), help="Only this worker's.")
@store_option
@json_option
def command(run: str, follow: bool, tail: int | None, rank: int | None, store: str, as_json: bool) -> int:
    """Show what a run printed: stdout, stderr, warnings and its traceback, attempt by attempt.

    RUN is a run id or the beginning of one. With several workers each line begins with the rank of its own. Of a long
    text the beginning and the newest are kept, 1 MiB together (docs/store.md). --json gives an object with run_id,
    status, and attempts: started_at and, for each rank, text and left_out, the bytes that are not kept.

    \b
    muon logs muon-s42
    muon logs muon-s42 --tail 20
    muon logs muon-s42 -f
    muon logs muon-s42 --json
    """
    if as_json and (follow or tail is not None):
        raise click.UsageError("--json gives the whole log; leave -f and --tail out.")
    from analysis.store import open_store

    opened = open_store(store)
    row = find_run(opened, run)
    run_id, status = row["run_id"], row["status"]
    reader = LogReader(opened.storage, run_id, rank)
    pieces = reader.read()
    if as_json:
        click.echo(json.dumps({"run_id": run_id, "status": status, "attempts": _attempts(pieces)}, indent=2))
        return 0
    printer = _Printer(is_following=follow and status == "running")
    try:
        printer.show(pieces if tail is None else _last_lines(pieces, tail))
        if printer.is_following:
            status = _follow(opened.storage, run_id, reader, printer)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        printer.finish()
    if not (printer.has_shown or pieces):
        whose = run_id if rank is None else f"rank {rank} of {run_id}"
        click.echo(f"no log: {whose} has printed nothing{' so far' if status == 'running' else ''}", err=True)
    hint = f"muon logs {run_id} -f" if status == "running" else f"muon runs show {run_id}"
    click.echo(f"next: {next_command(hint)}", err=True)
    return 0


def _follow(storage: Storage, run_id: str, reader: LogReader, printer: _Printer) -> str:
    """Show what is new until the run has ended; returns how it did."""
    while True:
        end = relisting(lambda: read_end(storage, run_id))
        time.sleep(LAST_WORDS_S if end else POLL_S)
        printer.show(reader.read())
        if end:
            return str(end["status"])


def _attempts(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """What `--json` shows of them."""
    data: dict[str, dict[int, bytes]] = defaultdict(lambda: defaultdict(bytes))
    left_out: dict[tuple[str, int], int] = defaultdict(int)
    for piece in pieces:
        data[piece.start][piece.rank] = _extended(data[piece.start][piece.rank], piece)
        left_out[piece.start, piece.rank] += piece.left_out
    return [
        {
            "started_at": start_time(start).isoformat(),
            "ranks": [
                {"rank": rank, "left_out": left_out[start, rank], "text": text.decode(errors="replace")}
                for rank, text in by_rank.items()
            ],
        }
        for start, by_rank in data.items()
    ]


def _last_lines(pieces: list[Piece], number: int) -> list[Piece]:
    """The last lines of each rank in the newest start."""
    newest = max((piece.start for piece in pieces), default="")
    texts: dict[int, bytes] = defaultdict(bytes)
    for piece in pieces:
        if piece.start == newest:
            texts[piece.rank] = _extended(texts[piece.rank], piece)
    tails = {rank: b"".join(text.splitlines(keepends=True)[-number:] if number else []) for rank, text in texts.items()}
    return [Piece(newest, rank, 0, text) for rank, text in tails.items() if text]


def _extended(text: bytes, piece: Piece) -> bytes:
    """`text` with `piece` after it, and between them a line that stands for the bytes that are not kept."""
    if not piece.left_out:
        return text + piece.data
    end = b"\n" if text and not text.endswith(b"\n") else b""
    return text + end + f"[... {piece.left_out:,} bytes left out ...]\n".encode() + piece.data


class _Printer:
    """Prints pieces of logs as whole lines, each start under a line of its own.

    A line that has not ended waits for its rest while the run is followed, but not beyond the end of its start.
    """

    def __init__(self, *, is_following: bool) -> None:
        self.is_following = is_following
        self.has_shown = False
        self._start: str | None = None
        self._ranks: set[int] = set()
        self._begun: dict[tuple[str, int], bytes] = defaultdict(bytes)

    def show(self, pieces: list[Piece]) -> None:
        self._ranks |= {piece.rank for piece in pieces}
        for piece in pieces:
            key = piece.start, piece.rank
            for other in [other for other in self._begun if other != key]:
                if not self.is_following or other[0] < piece.start:
                    self._finish(other)
            whole, end, self._begun[key] = _extended(self._begun[key], piece).rpartition(b"\n")
            if end:
                self._print(*key, whole)

    def finish(self) -> None:
        """Print the lines that have not ended."""
        for key in list(self._begun):
            self._finish(key)

    def _finish(self, key: tuple[str, int]) -> None:
        if text := self._begun.pop(key):
            self._print(*key, text)

    def _print(self, start: str, rank: int, text: bytes) -> None:
        self.has_shown = True
        if start != self._start:
            click.echo(f"== attempt started {start_time(start):%Y-%m-%d %H:%M:%S} UTC ==")
            self._start = start
        prefix = f"[{rank}] " if len(self._ranks) > 1 else ""
        for line in text.decode(errors="replace").split("\n"):
            click.echo(f"{prefix}{line}")
