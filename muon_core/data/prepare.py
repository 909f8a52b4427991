"""`muon data prepare`: text of any size into token shards, in bounded memory, by several processes, whatever kills it.

One process reads records in order and cuts them into blocks; others make token ids of the blocks; the first takes what
they made in the same order, leaves duplicates out, deals the documents out to the two sides of the split, and appends
them to shards. So the result is a function of the text and of the settings: the number of processes, the size of
blocks and interruptions do not show in it. Every few seconds the state (where reading stands, how long the shards are,
what was counted) replaces the one before in the working folder, and the next call goes on from there. Imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from muon_core.config.base import canonical_json
from muon_core.data.corpus import is_validation
from muon_core.data.duplicates import Duplicates
from muon_core.data.encoding import BadRecord, Encoded, Encoder
from muon_core.data.manifest import (
    LARGEST_VOCABULARY,
    MANIFEST,
    SIDES,
    TOKENIZER,
    Counts,
    Manifest,
    Side,
    SourceFacts,
    Split,
    TokenizerFacts,
    check_dtype,
    parse_manifest,
)
from muon_core.data.prepared import is_remote
from muon_core.data.records import Position, Record, read_records
from muon_core.data.shard_writer import PATIENCE_S, ShardWriter
from muon_core.data.sources import Source, find_source
from muon_core.data.tokenizer import SAMPLE_BYTES, Choice, check_column, choose, describe, sample_file, train
from muon_core.data.work_folder import DIGESTS, State, differences, load_state, save_state, working_folder
from muon_core.data.worker_pool import WorkerPool
from muon_core.store.open import open_storage
from muon_core.store.storage import Storage, patiently

SPLIT_RULE = (
    "validation where the first 8 bytes of sha256('validation:' + digest) are below validation_share * 2^64; digest is "
    "the first 32 hexadecimal digits of the sha256 of the document"
)
SHARD_TOKENS = 2**25
BLOCK = 512 << 10  # bytes of records that a process takes at once
BLOCK_RECORDS = 4096
SAVE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a data set beside its text."""

    tokenizer: str | None = None
    train_bpe: int | None = None
    sample_bytes: int = SAMPLE_BYTES
    separator: str | None = None
    column: str = "text"
    validation_share: float = 0.01
    keep_duplicates: bool = False
    dtype: str = "auto"
    shard_tokens: int = SHARD_TOKENS


class Progress(NamedTuple):
    """How far it is."""

    read_bytes: int
    """Of the files, as they lie there; so is their sum."""
    total_bytes: int
    text_bytes: int
    documents: int
    tokens: int


def _say_nothing(_: object) -> None: ...


def prepare_set(
    inputs: Sequence[str],
    out: str,
    settings: Settings,
    *,
    workers: int = 1,
    report: Callable[[Progress], object] = _say_nothing,
    say: Callable[[str], object] = _say_nothing,
) -> Manifest:
    """Prepare the text of `inputs` at `out`, a folder or `s3://bucket/prefix`; the same call goes on after a kill.

    Args:
        workers: processes that tokenize; with 1 it is done in this one.
        report: called after each block.
        say: given what is about to take a while, and cannot be followed.
    Raises: ValueError for what is wrong with the text, the tokenizer or `out`; StoreError.
    """
    source = find_source(inputs)
    choice = choose(settings.tokenizer, settings.train_bpe, settings.sample_bytes, settings.separator)
    storage, plan, asked = open_storage(out), _plan(source, choice, settings), _asked(source, choice, settings)
    _check_apart(inputs, out)
    if done := _finished(storage, out, plan, asked):
        return done
    with working_folder(storage, out) as work:
        if done := _finished(storage, out, plan, asked):  # by a call that was under way a moment ago
            return done
        manifest = _prepare(work, storage, source, choice, settings, plan, asked, workers, report, say)
        shutil.rmtree(work)
    return manifest


def _prepare(
    work: Path,
    storage: Storage,
    source: Source,
    choice: Choice,
    settings: Settings,
    plan: str,
    asked: dict[str, str],
    workers: int,
    report: Callable[[Progress], object],
    say: Callable[[str], object],
) -> Manifest:
    # Who goes on needs the very files and release, who has finished does not: copies are the same data set.
    release = importlib.metadata.version("tokenizers")
    now = {"state of the files": source.version[:8], "release of tokenizers": release}
    state = load_state(work, f"{plan} {source.version} {release}", asked | now)
    content = choice.content
    if content is None:
        content, taken = _trained(work / f"tokenizer-{plan[:16]}.json", source, settings, workers, say)
        choice = replace(choice, source=f"bpe of {taken / 1e6:.3g} MB")
    facts = describe(choice, content, settings.separator)
    dtype = settings.dtype if settings.dtype != "auto" else _dtype(facts.vocab_size)
    check_dtype(facts.vocab_size, dtype)
    written = state.written or {}
    with contextlib.ExitStack() as stack:
        writers: dict[Side, ShardWriter] = {}
        for side in SIDES:
            writers[side] = ShardWriter(side, work, storage, dtype, settings.shard_tokens, written.get(side))
            stack.callback(writers[side].close)
        make = partial(Encoder, content, facts.separator_id, dtype, settings.column)  # each process makes its own
        with WorkerPool(make, workers) as pool:
            _write(work, source, settings, state, writers, pool, report)
        if empty := next((side for side in SIDES if not getattr(state.counts, side)), None):
            # Whatever is done about it, nobody goes on with this.
            storage.delete([shard["name"] for writer in writers.values() for shard in writer.state().shards])
            shutil.rmtree(work)
            raise ValueError(
                f"of {state.counts.train + state.counts.validation} documents none is for {empty}; give more "
                f"documents, or another --validation-share than {settings.validation_share:g}"
            )
        manifest = _manifest(source, settings, facts, dtype, plan, asked, state.counts, writers)
    patiently(lambda: storage.put(TOKENIZER, content), PATIENCE_S)
    text = manifest.model_dump_json(indent=2).encode()
    patiently(lambda: storage.put(MANIFEST, text), PATIENCE_S)  # last: now it is whole
    return manifest


class _Block(NamedTuple):
    records: list[Record]
    end: Position
    read_bytes: int


def _write(
    work: Path,
    source: Source,
    settings: Settings,
    state: State,
    writers: dict[Side, ShardWriter],
    pool: WorkerPool,
    report: Callable[[Progress], object],
) -> None:
    """Read, encode and append all that comes after `state`, which goes along."""
    saved, num_shards = time.monotonic(), sum(writer.num_shards for writer in writers.values())
    with contextlib.closing(Duplicates(work / DIGESTS)) as known:
        blocks = _blocks(source, settings.column, state.position)
        for block, encoded in _encoded(pool, blocks, source):
            _append(encoded, state, writers, known, settings)
            state.position = block.end
            total = sum(writer.num_shards for writer in writers.values())
            if total > num_shards or time.monotonic() - saved > SAVE_EVERY_S:
                save_state(work, state, writers, known)
                saved, num_shards = time.monotonic(), total
            tokens = sum(writer.num_tokens for writer in writers.values())
            report(Progress(block.read_bytes, source.num_bytes, state.counts.text_bytes, state.documents, tokens))


def _append(
    encoded: Encoded, state: State, writers: dict[Side, ShardWriter], known: Duplicates, settings: Settings
) -> None:
    counts, begin = state.counts.model_dump(), 0
    for digest, length in zip(encoded.digests, encoded.lengths, strict=True):
        tokens = encoded.tokens[begin : begin + length]
        begin += length
        is_duplicate = known.is_duplicate(digest, state.documents)
        state.documents += 1
        counts["duplicates"] += is_duplicate
        if is_duplicate and not settings.keep_duplicates:
            continue
        side: Side = "validation" if is_validation(digest.hex(), settings.validation_share) else "train"
        writers[side].append(tokens)
        counts[side] += 1
    for name in ("text_bytes", "empty", "cut"):
        counts[name] += getattr(encoded, name)
    state.counts = Counts.model_validate(counts)


def _blocks(source: Source, column: str, start: Position) -> Iterator[_Block]:
    """Records from `start` on, so many together that handing them over costs little."""
    records: list[Record] = []
    size, before = 0, [0]
    for file in source.files:
        before.append(before[-1] + file.size)
    read = before[start.file]
    for record, at in read_records(source.files, column, start):
        records.append(record)
        size, read = size + len(record.data or b""), before[record.file] + at
        if size >= BLOCK or len(records) >= BLOCK_RECORDS:
            yield _Block(records, record.end, read)
            records, size = [], 0
    if records:
        yield _Block(records, records[-1].end, source.num_bytes)


def _encoded(pool: WorkerPool, blocks: Iterator[_Block], source: Source) -> Iterator[tuple[_Block, Encoded]]:
    try:
        yield from pool.map(blocks, lambda block: block.records)
    except BadRecord as error:
        file, number, wrong = error.args
        raise ValueError(f"{source.files[file].place(number)}: {wrong}") from None


def _plan(source: Source, choice: Choice, settings: Settings) -> str:
    """Names all that decides the result: a call that goes on must be after the same."""
    tokenizer = [choice.source, choice.revision, hashlib.sha256(choice.content or b"").hexdigest()]
    facts = [list(source.inputs), source.sha256, source.revision, tokenizer, SPLIT_RULE, asdict(settings)]
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def _asked(source: Source, choice: Choice, settings: Settings) -> dict[str, str]:
    """What `_plan` is of, by the names its user knows."""
    content = f", sha256 {hashlib.sha256(choice.content).hexdigest()[:8]}" if choice.content else ""
    facts = {
        "text": ", ".join(source.inputs),
        "files": f"{len(source.files)} of {source.num_bytes:,} bytes, hash {source.sha256[:8]}",
        "revision": source.revision,
        "--tokenizer": settings.tokenizer and f"{settings.tokenizer}{content}",
        "--train-bpe": settings.train_bpe,
        "--sample-mb": f"{settings.sample_bytes / 2**20:g}",
        "--separator": settings.separator,
        "--column": settings.column,
        "--validation-share": settings.validation_share,
        "--keep-duplicates": "yes" if settings.keep_duplicates else "no",
        "--dtype": settings.dtype,
        "--shard-tokens": settings.shard_tokens,
    }
    return {name: "none" if value is None else str(value) for name, value in facts.items()}


def _finished(storage: Storage, out: str, plan: str, asked: dict[str, str]) -> Manifest | None:
    """The manifest that a call before has written. Raises ValueError if it is of something else."""
    try:
        manifest = parse_manifest(storage.get(MANIFEST), out)
    except FileNotFoundError:
        return None
    if manifest.plan != plan:
        which = differences(manifest.asked, asked) or ", ".join(manifest.source.inputs)
        raise ValueError(
            f"{out} holds a data set of other text or settings ({which}); choose another place, or remove it"
        )
    return manifest


def _check_apart(inputs: Sequence[str], out: str) -> None:
    """Raises ValueError if the data set would become a part of its own text."""
    for given in inputs:
        is_inside = out.startswith(f"{given.rstrip('/')}/")
        if os.path.isdir(given) and not is_remote(out):
            is_inside = Path(out).expanduser().absolute().is_relative_to(Path(given).absolute())
        if is_inside:
            raise ValueError(f"{out} lies in the input {given}, of which it would become a part; choose another place")


def _trained(
    file: Path, source: Source, settings: Settings, workers: int, say: Callable[[str], object]
) -> tuple[bytes, int]:
    """The tokenizer that is to be trained, once, and kept in `file`; and how many bytes of text that took."""
    if not (file.is_file() and sample_file(file).is_file()):
        assert settings.train_bpe is not None
        check_column(source.files, settings.column)
        say(
            f"training a vocabulary of {settings.train_bpe:,} on a sample of the text, "
            f"{settings.sample_bytes / 2**20:g} MiB at most"
        )
        arguments = (settings.column, settings.train_bpe, settings.sample_bytes, settings.validation_share, file)
        if workers == 1:
            train(source.inputs, *arguments)
        else:
            WorkerPool.call(train, source.inputs, *arguments)
    return file.read_bytes(), int(sample_file(file).read_text())


def _dtype(vocab_size: int) -> str:
    return "uint16" if vocab_size <= LARGEST_VOCABULARY["uint16"] else "uint32"


def _manifest(
    source: Source,
    settings: Settings,
    tokenizer: TokenizerFacts,
    dtype: str,
    plan: str,
    asked: dict[str, str],
    counts: Counts,
    writers: dict[Side, ShardWriter],
) -> Manifest:
    """The manifest of what was written."""
    return Manifest.model_validate({
        "dtype": dtype,
        "tokenizer": tokenizer,
        "split": Split(
            rule=SPLIT_RULE, validation_share=settings.validation_share, keep_duplicates=settings.keep_duplicates
        ),
        "source": SourceFacts(
            inputs=source.inputs,
            revision=source.revision,
            column=settings.column,
            files=len(source.files),
            bytes=source.num_bytes,
            sha256=source.sha256,
        ),
        "documents": counts,
        "shards": {side: writers[side].finish() for side in SIDES},
        "plan": plan,
        "asked": asked,
        "versions": {name: importlib.metadata.version(name) for name in ("tokenizers", "numpy")},
    })  # fmt: skip
