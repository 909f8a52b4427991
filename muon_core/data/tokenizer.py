"""The tokenizer of a data set: from a file, from the Hugging Face Hub, or trained on a sample of the text.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from muon_core.data.bpe import train_bpe
from muon_core.data.corpus import END_OF_TEXT, is_validation
from muon_core.data.encoding import BadRecord, digest, load, texts
from muon_core.data.manifest import TOKENIZER, TokenizerFacts
from muon_core.data.records import Record, read_records
from muon_core.data.sources import InputFile, find_source, near_file
from muon_core.spelling import did_you_mean
from muon_core.store.folder import Folder

SEPARATORS = (END_OF_TEXT, "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>", "<|im_end|>")
"""What well-known tokenizers end a document with, looked for in this order."""
SAMPLE_BYTES = 64 << 20
SAMPLE_FILES = 256
_NAME = re.compile(r"(?:hf:)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tokenizer: the bytes of `tokenizer.json`, or the size of the vocabulary that is to be trained."""

    source: str
    """As it is asked for; of one that is trained `describe` is told what it was trained on."""
    revision: str | None = None
    content: bytes | None = None
    train_bpe: int | None = None
    sample_bytes: int = SAMPLE_BYTES


def choose(
    given: str | None, train_bpe: int | None, sample_bytes: int = SAMPLE_BYTES, separator: str | None = None
) -> Choice:
    """The tokenizer `given` as a path or as NAME[@REVISION] of the Hub, or a BPE to be trained.

    Raises ValueError if it is neither or both, is not there, or will not have the separator.
    """
    if (given is None) == (train_bpe is None):
        raise ValueError("give a --tokenizer, or --train-bpe and the size of its vocabulary: one of them")
    if train_bpe is not None:
        if train_bpe < 257:
            raise ValueError(f"--train-bpe {train_bpe}: 256 bytes and a separator are 257 tokens; give more")
        if separator not in (None, END_OF_TEXT):
            raise ValueError(
                f"--separator {separator!r}: a vocabulary that is trained ends documents with {END_OF_TEXT}; give none"
            )
        return Choice(f"bpe of {sample_bytes / 2**20:g} MiB", None, None, train_bpe, sample_bytes)
    assert given is not None
    path = Path(given).expanduser()
    path = path / TOKENIZER if path.is_dir() else path
    if path.is_file():
        return Choice(given, None, path.read_bytes())
    match = _NAME.fullmatch(given)
    if not match or given.endswith(".json"):
        near = near_file(str(path))
        raise ValueError(f"tokenizer {given!r}: no such file{near}, nor is it OWNER/NAME of the Hugging Face Hub")
    from muon_core.data.hub import tokenizer_file  # only who asks for one pays for the import

    content, commit = tokenizer_file(match["name"], match["revision"])
    return Choice(f"hf:{match['name']}", commit, content)


def describe(choice: Choice, content: bytes, separator: str | None) -> TokenizerFacts:
    """The facts of `content`, with the separator asked for, or the one of `SEPARATORS` that it has.

    Raises ValueError if this is no tokenizer, or has no such token.
    """
    try:
        vocabulary = load(content).get_vocab(with_added_tokens=True)
    except Exception as error:  # `tokenizers` has no class of its own
        raise ValueError(f"tokenizer {choice.source!r}: this is no tokenizer.json ({str(error)[:200]})") from None
    known = [token for token in ((separator,) if separator else SEPARATORS) if token in vocabulary]
    if not known:
        near = did_you_mean(separator, vocabulary) if separator else ""
        asked = f"no token {separator!r}{near}" if separator else f"none of {', '.join(SEPARATORS)}"
        raise ValueError(f"tokenizer {choice.source!r} has {asked} to end documents with; name another by --separator")
    return TokenizerFacts(
        sha256=hashlib.sha256(content).hexdigest(),
        source=choice.source,
        revision=choice.revision,
        vocab_size=max(vocabulary.values()) + 1,
        separator=known[0],
        separator_id=vocabulary[known[0]],
    )


def train(
    inputs: Sequence[str], column: str, vocab_size: int, sample_bytes: int, validation_share: float, keep: Path
) -> None:
    """Write the `tokenizer.json` of a byte-level BPE, trained on a sample of the training documents, to `keep`, and
    beside it how many bytes of text that was.

    The sample begins at the beginning of up to `SAMPLE_FILES` files, which are spread over all of them. It takes memory
    that Python does not give back, so it is called in a process of its own. Raises ValueError for what cannot be read.
    """
    files = find_source(inputs).files
    taken = [0]
    tokenizer = train_bpe(_sample(files, column, sample_bytes, validation_share, taken), vocab_size)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise ValueError(f"--train-bpe {vocab_size}: the text gives {found} tokens only; ask for so many, or give more")
    Folder(keep.parent).put(sample_file(keep).name, str(taken[0]).encode())
    Folder(keep.parent).put(keep.name, tokenizer.to_str().encode())


def check_column(files: Sequence[InputFile], column: str) -> None:
    """Raises ValueError if the first record has no text in `column`."""
    for record, _ in read_records(files[:1], column):
        _texts(files, record, column)
        break


def sample_file(keep: Path) -> Path:
    """Where `train` says how many bytes of text the tokenizer in `keep` was trained on."""
    return keep.with_suffix(".bytes")


def _sample(
    files: Sequence[InputFile], column: str, sample_bytes: int, validation_share: float, taken: list[int]
) -> Iterator[str]:
    """Texts to train on; `taken` is how many bytes they have so far."""
    chosen = files[:: -(-len(files) // SAMPLE_FILES)]
    left = sample_bytes
    for number, file in enumerate(chosen):
        share = left // (len(chosen) - number)  # what short files leave goes to those that follow
        for record, _ in read_records([file], column):
            for text in _texts([file], record, column):
                share, left = share - len(text), left - len(text)
                data = text.encode()
                if not is_validation(digest(data).hex(), validation_share):
                    taken[0] += len(data)
                    yield text
            if share <= 0:
                break


def _texts(files: Sequence[InputFile], record: Record, column: str) -> list[str]:
    try:
        return [text for text, _ in texts([record], column)]
    except BadRecord as error:
        raise ValueError(f"{files[error.args[0]].place(error.args[1])}: {error.args[2]}") from None
