"""A prepared data set as a run reads it: `data.corpus` names its folder or its `s3://` prefix.

Its content hash is the run's `corpus_sha256`, as that of text is. Vocabulary, split and size are compared with what a
run asks for when it is planned, before anything is fetched. Imports no torch.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from muon_core.config.run import DataConfig, RunConfig
from muon_core.data.manifest import MANIFEST, SIDES, WORK, Manifest, parse_manifest
from muon_core.data.set_cache import PATIENCE_S, cache_root, fetched
from muon_core.data.soundness import damaged_files, describe_damage
from muon_core.data.windows import num_windows, validation_windows
from muon_core.store.open import open_storage
from muon_core.store.storage import patiently

REMOTE = "s3://"


def is_remote(corpus: str) -> bool:
    """Whether `corpus` lies on S3."""
    return corpus.startswith(REMOTE)


def is_prepared(corpus: str) -> bool:
    """Whether `corpus` is a prepared data set, or one that is not finished, not text."""
    if corpus == DataConfig.model_fields["corpus"].default:  # no path, whatever lies here under that name
        return False
    folder = Path(corpus).expanduser()
    return is_remote(corpus) or (folder / MANIFEST).is_file() or (folder / WORK).is_dir()


def read_manifest(corpus: str) -> Manifest:
    """What the data set at `corpus` consists of. Raises ValueError if there is none, StoreError."""
    if is_remote(corpus):
        return _read_manifest(corpus, 0)
    folder = Path(corpus).expanduser().absolute()
    try:
        return _read_manifest(str(folder), (folder / MANIFEST).stat().st_mtime_ns)
    except FileNotFoundError:
        raise _no_manifest(corpus) from None


@lru_cache(maxsize=16)  # a plan asks for every run
def _read_manifest(place: str, _modified: int) -> Manifest:
    try:
        text = patiently(lambda: open_storage(place).get(MANIFEST), PATIENCE_S)
    except FileNotFoundError:
        raise _no_manifest(place) from None
    return parse_manifest(text, place)


def _no_manifest(place: str) -> ValueError:
    return ValueError(
        f"{place} holds no prepared data set ({MANIFEST} is missing); `muon data prepare` makes one there"
    )


def check_run(config: RunConfig) -> None:
    """Raises ValueError if the prepared data set of `config` does not suit it; other corpora are not looked at.

    That is: ids beyond the model's vocabulary, a split other than the set's, fewer tokens than a sequence or an
    evaluation takes, or than the steps of the run take in `allow_epochs` epochs.
    """
    data = config.data
    if not is_prepared(data.corpus):
        return
    manifest = read_manifest(data.corpus)
    check_sizes(manifest, data, config.model.vocab_size)
    needed = config.steps * config.tokens_per_step
    epochs = needed / (num_windows(manifest.tokens("train"), data.seq_len) * data.seq_len)
    if epochs > config.allow_epochs:
        many = f"{epochs:,.0f}" if epochs >= 100 else f"{epochs:.3g}"
        raise ValueError(
            f"corpus {data.corpus!r}: {needed:,} tokens are {many} epochs of its {manifest.tokens('train'):,} "
            f"training tokens, allow_epochs is {config.allow_epochs:g}; lower steps, prepare more text, or set "
            f"allow_epochs: {-(-epochs // 1):.0f}"
        )


def check_sizes(manifest: Manifest, data: DataConfig, vocab_size: int) -> None:
    """The part of `check_run` that hangs on data and vocabulary alone. Raises ValueError."""
    what, tokenizer = f"corpus {data.corpus!r}", manifest.tokenizer
    if vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"{what}: its tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size is {vocab_size}; "
            f"set model.vocab_size: {tokenizer.vocab_size}"
        )
    share, default = manifest.split.validation_share, DataConfig.model_fields["validation_share"].default
    if data.validation_share not in (share, default):
        raise ValueError(
            f"{what}: it was prepared with validation_share {share:g}, not {data.validation_share:g}; remove "
            "data.validation_share, or prepare the data again"
        )
    needed = {"train": data.seq_len, "validation": validation_windows(data) * data.seq_len}
    for side in SIDES:
        if (found := manifest.tokens(side)) <= needed[side]:
            field = "data.seq_len" if found <= data.seq_len else "data.validation_tokens"
            value = data.seq_len if found <= data.seq_len else data.validation_tokens
            more = "prepare more text" + (", or with a larger --validation-share" if side == "validation" else "")
            raise ValueError(
                f"{what}: {found} {side} tokens, {field} {value} needs {needed[side] + 1}; lower {field}, or {more}"
            )


def local_copy(data: DataConfig, vocab_size: int, cache: Path | None = None) -> Path:
    """The folder of this machine with the data set `data.corpus`, its files compared with the manifest.

    Raises: ValueError if it does not suit `data`, is no longer what `data.corpus_sha256` says, or holds a damaged file;
    StoreError if it cannot be fetched or kept.
    """
    manifest, cache = read_manifest(data.corpus), cache or cache_root()
    if data.corpus_sha256 not in (None, manifest.content_hash):
        raise ValueError(
            f"corpus {data.corpus!r} has changed: sha256 {manifest.content_hash[:12]}, planned "
            f"{str(data.corpus_sha256)[:12]}; plan the runs again"
        )
    check_sizes(manifest, data, vocab_size)
    if is_remote(data.corpus):
        return fetched(data.corpus, manifest, cache)
    folder = Path(data.corpus).expanduser().absolute()
    if damaged := damaged_files(folder, manifest, cache):
        raise ValueError(describe_damage(data.corpus, damaged))
    return folder
