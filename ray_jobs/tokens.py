"""What the runs of a sweep read, tokenized once before they start, and kept in the store where they start elsewhere.

A corpus travels with a job as text. One that is too large stays where it is: whoever submits the job tokenizes it and
puts the tokens into the store, and a file in the corpus's place says which they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from muon_core.config.run import DataConfig, RunConfig
from muon_core.data.corpus import corpus_files, corpus_sha256, split_name, stand_in
from muon_core.data.prepared import is_remote
from muon_core.store.storage import Storage

LARGEST = 100 << 20  # bytes of a job; the head keeps it in memory, and takes 500 MiB of all jobs


def prepare_tokens(
    configs: Sequence[RunConfig], storage: Storage | None, say: Callable[[str], None]
) -> dict[tuple[DataConfig, int], str]:
    """Tokenize what the runs read, once, before workers would each do it; bad data is an error before Ray starts.

    Where the workers are on other machines it is put into `storage` for them; returns what was, by data and vocabulary.

    Raises: ValueError as `shards.prepare` does, or if a corpus is not here and was not sent for such runs; StoreError.
    """
    kept = {}
    for data, vocab_size in dict.fromkeys((config.data, config.model.vocab_size) for config in configs):
        if sent := stand_in(data.corpus):
            kept[data, vocab_size] = _sent_hash(data, vocab_size, sent)
            continue
        if storage and is_remote(data.corpus):
            continue  # each node fetches it from where it is
        from muon_core.data.shards import prepare  # numpy and the tokenizer take a moment to load

        say(f"tokens: corpus {data.corpus}, vocabulary {vocab_size}")
        folder = prepare(data, vocab_size)
        if storage:
            from muon_core.data.sharing import publish

            kept[data, vocab_size] = publish(folder, storage)
    return kept


def _sent_hash(data: DataConfig, vocab_size: int, sent: dict[str, Any]) -> str:
    found: str | None = sent["tokens"].get(split_name(data.validation_share, vocab_size))
    if found is None:
        raise ValueError(
            f"corpus {data.corpus!r} was not sent with tokens for vocabulary {vocab_size} and validation_share "
            f"{data.validation_share:g}; submit the sweep again"
        )
    return found


def left_behind(corpora: Iterable[str]) -> set[str]:
    """Which corpora do not fit in a job beside the smaller ones. Raises ValueError if one cannot be read."""
    sizes = {corpus: sum(os.stat(path).st_size for path in corpus_files(corpus).values()) for corpus in corpora}
    total, left = 0, set()
    for corpus, size in sorted(sizes.items(), key=lambda item: (item[1], item[0])):
        total += size
        if total > LARGEST:
            left.add(corpus)
    return left


def send_tokens(
    corpora: Collection[str], configs: Sequence[RunConfig], storage: Storage, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Put the tokens of `corpora` into `storage` for the runs; returns what stands in for each of them in a job."""
    reading = [config for config in configs if config.data.corpus in corpora]
    tokens: dict[str, dict[str, str]] = {corpus: {} for corpus in corpora}
    for (data, vocab_size), data_hash in prepare_tokens(reading, storage, say).items():
        tokens[data.corpus][split_name(data.validation_share, vocab_size)] = data_hash
    return {corpus: {"sha256": corpus_sha256(corpus), "tokens": tokens[corpus]} for corpus in sorted(corpora)}
