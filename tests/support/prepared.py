"""Text and prepared data sets for tests: small, and made by the code that users call."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from muon_core.data.manifest import Manifest
from muon_core.data.prepare import Settings, prepare_set

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "r", "s", "th", "")]
SMALL = Settings(train_bpe=300, validation_share=0.2, shard_tokens=1500)


def documents(number: int, seed: int = 0, words: int = 60) -> list[str]:
    """Texts that differ, of a few sentences each."""
    draw = random.Random(seed)
    return [
        f"Document {seed}-{i}.\n" + "".join(f"{' '.join(draw.choices(WORDS, k=10))}.\n" for _ in range(words // 10))
        for i in range(number)
    ]


def write_jsonl(path: Path, texts: Sequence[str | None], column: str = "text") -> Path:
    """A file of JSON lines, with a column beside the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)))
    return path


def small_set(folder: Path, number: int = 60) -> Manifest:
    """A data set in `folder`, of text that lies beside it."""
    text = write_jsonl(folder.with_name(f"{folder.name}.jsonl"), documents(number))
    return prepare_set([str(text)], str(folder), SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a data set, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
