"""What a prepared data set consists of: `manifest.json`, beside token shards and the tokenizer. Imports no torch.

    manifest.json            this, written last: a folder or prefix without it is not finished
    tokenizer.json           of the `tokenizers` library
    train-00000.npy ...      token ids, each document followed by one separator
    validation-00000.npy ...

Its content hash is over the tokens, their meaning and how they were split, not over where the text lay: the same text
prepared elsewhere is the same data set, and runs on it share their identity.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from muon_core.config.base import canonical_json

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
WORK = ".preparing"  # folder of what is not finished
Side = Literal["train", "validation"]
SIDES: tuple[Side, Side] = ("train", "validation")
LARGEST_VOCABULARY = {"uint16": 2**16, "uint32": 2**32}
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """Immutable, rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Part):
    """One file of token ids."""

    # A name from a bucket becomes that of a file on this machine, so it can lead nowhere else.
    name: str = Field(pattern=r"^(train|validation)-\d{5,}\.npy$")
    tokens: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: Sha256


class TokenizerFacts(_Part):
    """The tokenizer of a data set."""

    sha256: Sha256
    source: str
    """As it was asked for: a path, the name of a repository, or how it was trained."""
    revision: str | None
    """Commit of a repository."""
    vocab_size: int = Field(gt=0)
    """One more than the largest id."""
    separator: str
    separator_id: int = Field(ge=0)


class SourceFacts(_Part):
    """The text of a data set."""

    inputs: tuple[str, ...]
    revision: str | None
    """Commit of a Hugging Face dataset."""
    column: str
    files: int
    bytes: int
    """Of the files, as they lie there."""
    sha256: Sha256
    """Over names and sizes of the files."""


class Counts(_Part):
    """Documents, and what became of them."""

    train: int = 0
    validation: int = 0
    duplicates: int = 0
    """Documents equal to an earlier one."""
    empty: int = 0
    """Left out, for they hold nothing."""
    cut: int = 0
    """Parts of documents that were too long for one."""
    text_bytes: int = 0


class Split(_Part):
    """How documents are dealt out."""

    rule: str
    validation_share: float
    keep_duplicates: bool


class Manifest(_Part):
    """The contents of `manifest.json`."""

    format: Literal[1] = 1
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerFacts
    split: Split
    source: SourceFacts
    documents: Counts
    shards: dict[Side, tuple[Shard, ...]]
    plan: Sha256
    """Of all that was asked for, by which the same call knows that it is done."""
    asked: dict[str, str] | None = None
    """The same by the names its user knows, for who asks for something else; None in those of earlier releases."""
    versions: dict[str, str]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if set(self.shards) != set(SIDES):
            raise ValueError(f"shards are of {', '.join(SIDES)}, not of {', '.join(self.shards)}")
        check_dtype(self.tokenizer.vocab_size, self.dtype)
        return self

    @cached_property
    def content_hash(self) -> str:
        """The identity of the data set."""
        content = {
            "format": self.format,
            "dtype": self.dtype,
            "tokenizer": [self.tokenizer.sha256, self.tokenizer.revision, self.tokenizer.separator_id],
            "split": self.split.model_dump(),
            "shards": {side: [[shard.sha256, shard.tokens] for shard in self.shards[side]] for side in SIDES},
        }
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    def tokens(self, side: Side) -> int:
        """Token ids on one side of the split."""
        return sum(shard.tokens for shard in self.shards[side])

    @property
    def all_shards(self) -> tuple[Shard, ...]:
        """Of both sides."""
        return tuple(shard for side in SIDES for shard in self.shards[side])

    @property
    def num_bytes(self) -> int:
        """Of all shards."""
        return sum(shard.bytes for shard in self.all_shards)


def check_dtype(vocab_size: int, dtype: str) -> None:
    """Raises ValueError for a vocabulary with ids that `dtype` cannot hold: they would wrap to other tokens."""
    if vocab_size > (largest := LARGEST_VOCABULARY[dtype]):
        raise ValueError(f"a vocabulary of {vocab_size} does not fit into {dtype}, which holds {largest}; use uint32")


def parse_manifest(text: str | bytes, place: str) -> Manifest:
    """The manifest that lies at `place`. Raises ValueError, in one line, if the text is none."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(
            f"{place}/{MANIFEST} is no manifest that this release reads ({at}: {first['msg']}); prepare the data again"
        ) from None
