"""`muon pretrain`: one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from muon_core.config import OPTIMIZERS, PRESETS, RunConfig
from muon_core.results import read_statuses
from muon_core.storage import Storage, check_writable, open_storage
from ray_jobs.cli.main import EXIT_FAILED_RUNS
from ray_jobs.cli.options import store_option
from search_spaces.parameters import apply_overrides, locate_corpus, parse_assignment
from search_spaces.strict_yaml import YamlError, parse


@click.command("pretrain")
@click.argument("config", default="tiny")
@click.option(
    "--optimizer", type=click.Choice(list(OPTIMIZERS)), help="Optimizer of the hidden matrices.  [default: muon]"
)
@click.option("--orthonoise", "noise", flag_value="orthonoise", help="Short for --optimizer orthonoise.")
@click.option("--isotropic", "noise", flag_value="isotropic", help="Short for --optimizer isotropic.")
@click.option("--alpha", type=float, help="Noise norm as a share of the momentum's norm.")
@click.option("--anneal", is_flag=True, help="Let alpha fall exponentially, to a tenth.")
@click.option("--rank-threshold", type=float, help="Noise only while effective rank / full rank is below it.")
@click.option("--steps", type=int, help="Optimizer steps.")
@click.option("--seed", type=int, help="Seed of the four streams: init, data, noise, dropout.")
@click.option(
    "--ngpus", type=click.IntRange(min=0), default=0, show_default=True, help="GPUs, one worker each, on Ray."
)
@click.option("--workers", type=click.IntRange(min=1), help="Workers on Ray without GPUs (gloo); 1 is this process.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any other field: data.seq_len=256, lr=0.02."
)
@click.option("--dry-run", is_flag=True, help="Print the resolved config and its run id; train nothing.")
@click.option("--again", is_flag=True, help="Train even if the store has this run.")
@store_option
def command(
    config: str,
    optimizer: str | None,
    noise: str | None,
    anneal: bool,
    ngpus: int,
    workers: int | None,
    assignments: tuple[str, ...],
    dry_run: bool,
    again: bool,
    store: str,
    **flags: Any,
) -> int:
    """Train one run. CONFIG is a preset (tiny 88m 350m 1b) or a YAML file with the fields of a run.

    \b
    muon pretrain --steps 50
    muon pretrain --orthonoise --alpha 1e-2 --anneal --steps 10
    muon pretrain 88m --optimizer adamw --ngpus 1 --set data.corpus=books/
    """
    if noise and optimizer and noise != optimizer:
        raise click.UsageError(f"--{noise} and --optimizer {optimizer} contradict each other; give one of them")
    named = dict(parse_assignment(text) for text in assignments)
    named |= {name: value for name, value in flags.items() if value is not None}
    if anneal:
        named["anneal"] = "exponential"
    run = resolve_config(config, noise or optimizer, named)
    if dry_run:
        click.echo(run.model_dump_json(indent=2))
        click.echo(run.run_id, err=True)
        return 0
    storage = open_storage(store)
    check_writable(storage)
    status = read_statuses(storage).get(run.run_id)
    if status in ("done", "diverged") and not again:
        click.echo(f"{run.run_id} is {status} already; --again trains it once more", err=True)
        return 0
    return _train(run, storage, ngpus, workers or max(1, ngpus))


def resolve_config(base: str, optimizer: str | None, named: dict[str, Any]) -> RunConfig:
    """The run of a preset or file, with an optimizer and named parameters. Raises ValueError in plain words."""
    partial = dict(PRESETS[base] if base in PRESETS else load_config(base))
    if optimizer:
        partial["optimizer"] = {"name": optimizer}
    run = apply_overrides(partial, named)
    return run.replace(data=locate_corpus(run.data, Path.cwd()))


def load_config(path: str) -> dict[str, Any]:
    """Fields of a run from a YAML file. Raises ValueError with file and line."""
    try:
        document = parse(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file, and no preset ({', '.join(PRESETS)})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except YamlError as error:
        raise ValueError(f"{path}:{error.line}: {error}") from error
    if not isinstance(document.value, dict):
        raise ValueError(f"{path}: a run's config is a mapping of fields, such as `steps: 100`")
    return document.value


def _train(run: RunConfig, storage: Storage, ngpus: int, workers: int) -> int:
    train = _on_ray if workers > 1 or ngpus else _in_process
    status, error = train(run, storage, ngpus, workers)
    click.echo(f"{run.run_id}: {status}{f' ({error.strip().splitlines()[-1]})' if error else ''}", err=True)
    return EXIT_FAILED_RUNS if status == "failed" else 0


def _in_process(run: RunConfig, storage: Storage, ngpus: int, workers: int) -> tuple[str, str | None]:
    import torch

    from muon_core.train import train

    torch.set_num_threads(1)  # the bits of a run depend on it, and two threads gain nothing on the tiny model
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    outcome = train(run, storage, report=_reporter(), device=device)
    return outcome.status, outcome.error


def _on_ray(run: RunConfig, storage: Storage, ngpus: int, workers: int) -> tuple[str, str | None]:
    from ray_jobs.cli.progress import Display
    from ray_jobs.launch import Resources, run_on_ray

    resources = Resources(workers=workers, gpus_per_worker=1 if ngpus else 0)
    with Display(1) as display:
        (state,) = run_on_ray([run], storage, resources, watch=display.update)
    return state.state, state.error


def _reporter() -> Callable[[Any], bool]:
    """Says where the run stands at every evaluation, and at least every ten steps."""
    shown = None

    def report(progress: Any) -> bool:
        nonlocal shown
        if progress.val_loss != shown or progress.step % 10 == 0:
            shown = progress.val_loss
            loss = "" if progress.train_loss is None else f"  train {progress.train_loss:.4f}"
            speed = "" if progress.tokens_per_s is None else f"  {progress.tokens_per_s:,.0f} tokens/s"
            click.echo(f"step {progress.step}/{progress.steps}{loss}  val {progress.val_loss:.4f}{speed}", err=True)
        return True

    return report
