"""`muon presets`: how large the presets are, or Hugging Face models, and what a run of each takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from muon_core.config import hf
from muon_core.config.memory import Memory, cut_to_fit, gib, memory
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from muon_core.config.sizes import flops_per_token, num_parameters, orthogonalizer_share, parameters
from muon_core.gpus import DATE, GPUS
from ray_jobs.cli.options import Choice, json_option
from ray_jobs.cli.text import aligned
from ray_jobs.prices import Prices, load_prices
from search_spaces.estimate import ASSUMED_GPU, ASSUMED_MFU, gpu_hours
from search_spaces.parameters import FieldPath, build, locate_model
from search_spaces.spec import Resources

MEMORY = ("weights", "gradients", "optimizer", "activations", "loss", "tracking", "peak")
FOR_HF = {name: value for name, value in PRESETS["88m"].items() if name != "model"}
"""The settings under which a Hugging Face model is described."""


class _Named(Choice):
    """A preset, or `hf:NAME_OR_PATH`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value if str(value).startswith("hf:") else super().convert(value, param, ctx)


@click.command("presets")
@click.argument("names", nargs=-1, metavar="[PRESET|hf:NAME]...", type=_Named(list(PRESETS)))
@click.option(
    "--optimizer",
    type=Choice(list(OPTIMIZERS)),
    default="muon",
    show_default=True,
    help="Optimizer of the hidden matrices.",
)
@click.option("--tokens", type=click.FloatRange(min=1), default=1.7e9, show_default=True, help="Training tokens.")
@click.option("--gpu", type=Choice(list(GPUS)), default=ASSUMED_GPU, show_default=True, help="GPU, of which one.")
@click.option(
    "--mfu",
    type=click.FloatRange(0, 1, min_open=True),
    default=ASSUMED_MFU,
    show_default=True,
    help="Share of the GPU's peak that is used; an assumption, until a run has measured it.",
)
@click.option("--sequences", type=click.IntRange(min=1), help="Of a forward pass.  [default: a step's]")
@click.option("--seq-len", type=click.IntRange(min=2), help="Tokens of a sequence.  [default: the preset's]")
@click.option("--activation-checkpointing", is_flag=True, help="Count activations as this parameter keeps them.")
@json_option
def command(
    names: tuple[str, ...],
    optimizer: str,
    tokens: float,
    gpu: str,
    mfu: float,
    sequences: int | None,
    seq_len: int | None,
    activation_checkpointing: bool,
    as_json: bool,
) -> None:
    """Show the presets: weights by part, FLOPs, memory, and hours and USD of a number of tokens on one GPU.

    FLOPs of a token are 6 a weight and 12 x layers x width x sequence; Muon's share is Newton-Schulz, of all FLOPs of a
    step. A Hugging Face model, a folder or OWNER/NAME of the Hub, is told of under the settings of 88m. Memory is what
    cannot be done without; kernels and allocator take more, and so does tracking, where there is room for it. What does
    not fit has the fewest micro-batches that do, where there are any, and else no hours: these are FLOPs by the GPU's
    peak in the preset's precision times --mfu, as `muon sweep plan` has them. --json gives a list of objects, bytes and
    FLOPs in full.

    \b
    muon presets
    muon presets 88m 350m --gpu a100 --tokens 1e9
    muon presets 1b --sequences 2 --activation-checkpointing --json
    muon presets 88m hf:HuggingFaceTB/SmolLM2-135M
    """
    prices = load_prices()
    changes: dict[FieldPath, Any] = {("activation_checkpointing",): True} if activation_checkpointing else {}
    changes |= {("data", "seq_len"): seq_len} if seq_len else {}
    runs = {name: _cut(_run(name, optimizer, changes), sequences) for name in names or PRESETS}
    found = [facts(name, run, tokens, gpu, mfu, prices) for name, run in runs.items()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = _rows(found, gpu, tokens)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    click.echo("\n".join(aligned(row, widths, [False] + [True] * len(found)) for row in rows))
    click.echo(f"peak: {GPUS[gpu].source}, looked up {DATE}; {_price(gpu, prices)}", err=True)
    click.echo(f"assumed: {mfu:.0%} of the peak; a run tells its own as mfu (muon runs show)", err=True)


def _run(name: str, optimizer: str, changes: dict[FieldPath, Any]) -> RunConfig:
    if name in PRESETS:
        return build(PRESETS[name], optimizer, changes)
    named: dict[FieldPath, Any] = {("data", "seq_len"): 2, ("model", "hf"): name}  # no longer than any allows
    run = locate_model(build(FOR_HF, optimizer, named | changes), Path.cwd())
    if ("data", "seq_len") in changes:
        return run
    assert run.model.hf_config is not None
    longest, usual = hf.max_positions(run.model.hf_config), FOR_HF["data"]["seq_len"]
    return run.replace(data=run.data.replace(seq_len=min(longest or usual, usual)))


def _cut(run: RunConfig, sequences: int | None) -> RunConfig:
    """`run` with micro-batches of so many sequences. Raises ValueError if its batch does not divide."""
    if sequences is None:
        return run
    if run.batch_size % sequences:
        raise ValueError(f"--sequences {sequences} does not divide batch_size {run.batch_size}; choose a divisor")
    return run.replace(micro_batches=run.batch_size // sequences)


def facts(name: str, run: RunConfig, tokens: float, gpu: str, mfu: float, prices: Prices) -> dict[str, Any]:
    """What `--json` shows of a preset."""
    device, held = GPUS[gpu], memory(run)
    cut = cut_to_fit(run, device.memory)
    hours = gpu_hours(run, gpu, mfu, tokens) if cut else None
    usd = prices.rate(Resources(gpus_per_worker=1), device.node).usd_per_hour if device.node else None
    return {
        "preset": name,
        "optimizer": run.optimizer.name,
        "parameters": num_parameters(run.model),
        "parts": parameters(run.model),
        "sequences": run.batch_size // run.most_micro_batches(),
        "seq_len": run.data.seq_len,
        "precision": run.precision,
        "flops_per_token": flops_per_token(run),
        "orthogonalizer_share": orthogonalizer_share(run),
        "memory_bytes": _bytes(held),
        "fits": held.peak <= device.memory,
        "to_fit": cut.model_dump(include={"micro_batches", "activation_checkpointing"}) if cut else None,
        "gpu": gpu,
        "mfu_assumed": mfu,
        "tokens": tokens,
        "hours": hours,
        "usd": None if usd is None or hours is None else hours * usd,
    }


def _price(gpu: str, prices: Prices) -> str:
    """Where the dollars are from, or why there are none."""
    if (node := GPUS[gpu].node) is None:
        return f"prices: none, for {gpu} is in no machine of AWS; give its hours your own"
    rate = prices.rate(Resources(gpus_per_worker=1), node)
    return f"price of {node}: {rate.source}, not looked up since {rate.date}"


def _bytes(held: Memory) -> dict[str, int]:
    return {part: getattr(held, part) for part in MEMORY}


def _rows(found: list[dict[str, Any]], gpu: str, tokens: float) -> list[list[str]]:
    """A line for each fact, a column for each preset."""
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "preset": lambda one: one["preset"].removeprefix("hf:").rpartition("/")[2],
        "parameters": lambda one: f"{one['parameters'] / 1e6:.2f} M",
        **{f"  {part}": partial(_weights, part) for part in found[0]["parts"]},
        "FLOPs a token": lambda one: f"{one['flops_per_token'] / 1e9:.3g} G",
        f"{found[0]['optimizer']}'s share of FLOPs": lambda one: f"{one['orthogonalizer_share']:.1%}",
        "a forward pass": lambda one: f"{one['sequences']} x {one['seq_len']}, {one['precision']}",
        "memory, GiB": lambda one: gib(one["memory_bytes"]["peak"]),
        **{f"  {part}": partial(_held, part) for part in MEMORY if part != "peak"},
        f"fits one {gpu}": lambda one: "yes" if one["fits"] else "no",
        **({} if all(one["fits"] for one in found) else {"  it does with": _to_fit}),
        f"time of {tokens:.3g} tokens": lambda one: "-" if one["hours"] is None else hours_text(one["hours"]),
        "USD": lambda one: "unknown" if one["usd"] is None else usd_text(one["usd"]),
    }
    return [[title, *map(text, found)] for title, text in lines.items()]


def hours_text(hours: float) -> str:
    """`53 h`, `4.4 h`, `5.4 min`, `2.5 s`."""
    if hours >= 0.995:
        return f"{hours:.3g} h"
    return f"{hours * 60:.2g} min" if hours * 60 >= 0.995 else f"{hours * 3600:.2g} s"


def usd_text(usd: float) -> str:
    """To the cent: `46.79`, `under 0.01`."""
    return f"{usd:,.2f}" if usd >= 0.005 else "under 0.01"


def _to_fit(one: dict[str, Any]) -> str:
    """What of its preset to change."""
    if one["fits"]:
        return ""
    if not (cut := one["to_fit"]):
        return "nothing"
    saving = " + checkpoints" if cut["activation_checkpointing"] else ""
    return f"{cut['micro_batches']} micro-batches{saving}"


def _weights(part: str, one: dict[str, Any]) -> str:
    return f"{one['parts'][part] / 1e6:.2f} M"


def _held(part: str, one: dict[str, Any]) -> str:
    return gib(one["memory_bytes"][part])
