"""`muon data`: text of any size into the token shards that runs read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from muon_core.spelling import counted
from ray_jobs.cli.options import Choice, Group, json_option
from ray_jobs.cli.text import short_count, table_lines, to_terminal

if TYPE_CHECKING:
    from muon_core.data.listing import Found
    from muon_core.data.manifest import Manifest

SAMPLE_MB = 64


@click.group("data", cls=Group)
def command() -> None:
    """Prepare data sets: text of any size into token shards, in a folder or on S3.

    \b
    muon data prepare books --train-bpe 512 --validation-share 0.2 --out sets/books
    muon data ls sets
    muon data verify sets/books
    """


@command.command("prepare")
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "-o", "--out", required=True, metavar="PLACE", help="Where the data set goes: a folder or s3://bucket/prefix."
)
@click.option("--tokenizer", metavar="T", help="A tokenizer.json, or OWNER/NAME[@REVISION] of the Hugging Face Hub.")
@click.option("--train-bpe", type=int, metavar="N", help="Train a byte-level BPE of N tokens on a sample of the text.")
@click.option(
    "--sample-mb", type=click.IntRange(min=1), default=SAMPLE_MB, show_default=True, help="Size of that sample, in MB."
)
@click.option("--column", default="text", show_default=True, help="Where JSON lines and Parquet have the text.")
@click.option("--separator", metavar="TOKEN", help="What ends a document.  [default: the tokenizer's end of text]")
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Share of the documents kept for validation, chosen by a hash of their text.",
)
@click.option("--keep-duplicates", is_flag=True, help="Count documents equal to an earlier one, but keep them.")
@click.option(
    "--dtype", type=Choice(["auto", "uint16", "uint32"]), default="auto", show_default=True, help="Of a token."
)
@click.option(
    "--shard-tokens",
    type=click.IntRange(min=1024),
    default=2**25,
    show_default=True,
    help="Tokens of a shard, at most.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Processes that tokenize.  [default: one for each CPU]"
)
def prepare_command(
    inputs: tuple[str, ...],
    out: str,
    tokenizer: str | None,
    train_bpe: int | None,
    sample_mb: int,
    column: str,
    separator: str | None,
    validation_share: float,
    keep_duplicates: bool,
    dtype: str,
    shard_tokens: int,
    workers: int | None,
) -> None:
    """Tokenize INPUTS into a data set at PLACE, which runs name as their `data.corpus`.

    An input is a file of text, JSON lines or Parquet (.jsonl .json .ndjson .parquet; anything else is text, and all but
    Parquet may be .gz or .zst), a folder or a glob of such files, s3://bucket/prefix, or a dataset of the Hugging Face
    Hub, hf:OWNER/NAME[@REVISION][:GLOB]. Text files are cut into documents at <|endoftext|>.

    Memory does not grow with the text. Whatever ends the command, the same command goes on from there, and ends with
    the same bytes.

    \b
    muon data prepare books --train-bpe 512 --validation-share 0.2 --out sets/books
    muon data prepare 'dumps/*.jsonl.zst' --column body --train-bpe 49152 -o s3://bucket/sets/dumps
    muon data prepare hf:HuggingFaceFW/fineweb-edu --tokenizer HuggingFaceTB/SmolLM-135M -o sets/fineweb

    Exit codes: 0 done; 2 invalid input; 7 cannot reach S3; 130 interrupted.
    """
    from muon_core.config.run import DataConfig
    from muon_core.data.prepare import Settings, prepare_set
    from muon_core.data.work_folder import is_begun
    from muon_core.store.open import open_storage
    from ray_jobs.cli.data_progress import DataProgress

    settings = Settings(
        tokenizer=tokenizer,
        train_bpe=train_bpe,
        sample_bytes=sample_mb << 20,
        separator=separator,
        column=column,
        validation_share=validation_share,
        keep_duplicates=keep_duplicates,
        dtype=dtype,
        shard_tokens=shard_tokens,
    )
    workers = workers or len(os.sched_getaffinity(0))
    try:
        with DataProgress() as progress:
            done = prepare_set(inputs, out, settings, workers=workers, report=progress, say=progress.say)
    except KeyboardInterrupt:
        if not is_begun(open_storage(out)):
            raise KeyboardInterrupt("nothing was finished yet, so nothing is kept") from None
        raise
    click.echo("\n".join(_facts(out, done)))
    settings_of_run = {"data.corpus": out, "model.vocab_size": done.tokenizer.vocab_size}
    held_out = done.tokens("validation") - 1
    if held_out < DataConfig.model_fields["validation_tokens"].default:
        settings_of_run["data.validation_tokens"] = held_out
    options = " ".join(f"--set {name}={value}" for name, value in settings_of_run.items())
    click.echo(f"next: muon pretrain {options}", err=True)


@command.command("ls")
@click.argument("places", nargs=-1)
@json_option
def ls_command(places: tuple[str, ...], as_json: bool) -> None:
    """List the prepared data sets at PLACES and in folders below; without any, below this folder.

    --json gives a list of objects with place, content_hash and the manifest.

    \b
    muon data ls
    muon data ls sets --json
    """
    from muon_core.data.listing import find_sets

    found = [one for place in places or (".",) for one in find_sets(place)]
    if as_json:
        listed = [
            {
                "place": one.place,
                "content_hash": one.manifest.content_hash,
                "manifest": one.manifest.model_dump(mode="json"),
            }
            for one in found
            if one.manifest
        ]
        click.echo(json.dumps(listed, indent=2))
    elif any(one.manifest for one in found):
        click.echo("\n".join(map(to_terminal, table_lines(_rows(found)))))
    else:
        click.echo("no prepared data set; `muon data prepare` makes one")
    for one in found:
        if one.wrong:
            click.echo(f"left out: {one.wrong}", err=True)


@command.command("verify")
@click.argument("place")
def verify_command(place: str) -> None:
    """Read all of the data set at PLACE, and compare each file with the manifest.

    \b
    muon data verify sets/books

    Exit codes: 0 it is sound; 2 a file is missing or damaged, each named; 7 cannot reach S3.
    """
    from muon_core.data.listing import verify
    from muon_core.data.prepared import read_manifest
    from search_spaces.errors import SpecError

    if wrong := verify(place, lambda _: None):
        raise SpecError(*(f"{place}/{line}; restore it, or prepare the data again" for line in wrong))
    click.echo("\n".join([*_facts(place, read_manifest(place)), "every file is what the manifest says"]))


def _rows(found: list[Found]) -> list[tuple[str, ...]]:
    head = ("place", "train", "validation", "documents", "vocabulary", "tokenizer", "hash")
    return [head, *(
        (
            one.place,
            short_count(one.manifest.tokens("train")),
            short_count(one.manifest.tokens("validation")),
            short_count(one.manifest.documents.train + one.manifest.documents.validation),
            str(one.manifest.tokenizer.vocab_size),
            one.manifest.tokenizer.source,
            one.manifest.content_hash[:12],
        )
        for one in found
        if one.manifest
    )]  # fmt: skip


def _facts(place: str, manifest: Manifest) -> list[str]:
    twice = counted(manifest.documents.duplicates, "duplicate")
    counts, tokens = manifest.documents, {side: manifest.tokens(side) for side in ("train", "validation")}
    return [
        f"data set    {place}",
        f"hash        {manifest.content_hash}",
        f"tokens      {tokens['train']:,} train, {tokens['validation']:,} validation, {manifest.dtype}, "
        f"{len(manifest.all_shards)} shards, {manifest.num_bytes / 1e6:,.1f} MB",
        f"documents   {counts.train:,} train, {counts.validation:,} validation; {twice} "
        f"{'kept' if manifest.split.keep_duplicates else 'left out'}, {counts.empty:,} empty, {counts.cut:,} cut",
        f"tokenizer   {manifest.tokenizer.source}, vocabulary {manifest.tokenizer.vocab_size}, "
        f"{manifest.tokenizer.separator} ends a document",
    ]
