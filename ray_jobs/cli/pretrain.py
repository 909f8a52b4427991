"""`muon pretrain`: one run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from muon_core.by_reference import is_reference
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.presets import PRESETS
from muon_core.config.run import RunConfig
from muon_core.sources import publish_source
from muon_core.statuses import FINISHED, last_line
from muon_core.store.keys import next_start
from muon_core.store.known import read_known
from muon_core.store.open import open_storage
from muon_core.store.storage import Storage, StoreError, check_writable
from ray_jobs.cli.main import EXIT_FAILED_RUNS
from ray_jobs.cli.options import Choice, next_command, store_option
from ray_jobs.elsewhere import wait_for_others
from ray_jobs.stop_signals import stop_signals
from search_spaces.doubts import doubts
from search_spaces.explain import suggest
from search_spaces.parameters import parse_assignment
from search_spaces.run_file import resolve_run

if TYPE_CHECKING:
    import torch


class OptimizerName(Choice):
    """A built-in optimizer, or a reference, which is looked for later."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value if is_reference(value) else super().convert(value, param, ctx)


def _preset_is_argument(_: click.Context, __: click.Parameter, value: str | None) -> None:
    if value is not None:
        unknown = "" if value in PRESETS else f"; {value!r} is none{suggest(value, PRESETS)}"
        raise click.UsageError(f"the preset is the argument: muon pretrain {value}{unknown}.")


@click.command("pretrain")
@click.argument("config", default="tiny")
@click.option("--preset", hidden=True, expose_value=False, callback=_preset_is_argument, help="No option: CONFIG.")
@click.option(
    "--optimizer",
    type=OptimizerName(list(OPTIMIZERS)),
    help="Optimizer of the hidden matrices, a built-in one or any by reference: ./my_opt.py:MyOptimizer or "
    "package.module:MyOptimizer.  [default: CONFIG's, or muon]",
)
@click.option("--orthonoise", is_flag=True, help="Short for --optimizer orthonoise.")
@click.option("--isotropic", is_flag=True, help="Short for --optimizer isotropic.")
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
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other parameter: data.seq_len=256, lr=0.02. May be given several times; the flags above win.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved config and its run id; train nothing.")
@click.option("--again", is_flag=True, help="Train from the first step even if the store has this run.")
@store_option
def command(
    config: str,
    optimizer: str | None,
    orthonoise: bool,
    isotropic: bool,
    anneal: bool,
    ngpus: int,
    workers: int | None,
    assignments: tuple[str, ...],
    dry_run: bool,
    again: bool,
    store: str,
    **flags: Any,
) -> int:
    """Train one run. CONFIG is a preset (tiny 88m 350m 1b) or a YAML file of parameters.

    A run that was interrupted continues from its newest checkpoint, one that is done is not trained again.

    \b
    muon pretrain --steps 50
    muon pretrain --orthonoise --alpha 1e-2 --anneal --steps 10
    muon pretrain 88m --optimizer adamw --ngpus 1 --set data.corpus=books/
    muon pretrain --optimizer torch.optim:Adafactor --set lr=0.01
    muon pretrain --seed 137 --dry-run > run.yaml   # such a file: the resolved config
    muon pretrain run.yaml --steps 50

    Exit codes: 0 done (a diverged run is a result too); 2 invalid input; 3 the run failed; 7 cannot reach the store;
    130 interrupted.
    """
    asked = {"--orthonoise": "orthonoise"} if orthonoise else {}
    asked |= {"--isotropic": "isotropic"} if isotropic else {}
    asked |= {f"--optimizer {optimizer}": optimizer} if optimizer else {}
    if len(set(asked.values())) > 1:
        raise click.UsageError(f"{' and '.join(asked)} contradict each other; give one of them.")
    if workers and ngpus and workers != ngpus:
        raise click.UsageError(f"--ngpus {ngpus} means {ngpus} workers; leave --workers {workers} out.")
    if again and (ngpus or (workers or 1) > 1):
        raise click.UsageError("--again trains in this process only; without it, another --store trains the run anew.")
    named = assigned(assignments)
    named |= {name: value for name, value in flags.items() if value is not None}
    if anneal:
        named["anneal"] = "exponential"
    run = resolve_run(config, next(iter(asked.values()), None), named)
    run.check_workers(workers or max(1, ngpus))
    if dry_run:
        click.echo(run.model_dump_json(indent=2))
        click.echo(run.run_id, err=True)
        return 0
    return _train_unless_done(run, open_storage(store), ngpus, workers or max(1, ngpus), again)


def assigned(texts: tuple[str, ...]) -> dict[str, Any]:
    """What `--set` gives, by name. Raises: click.UsageError for a parameter that is set twice."""
    named: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for text in texts:
        name, value = parse_assignment(text)
        if earlier := seen.get(parameter := name.removeprefix("optimizer.")):
            raise click.UsageError(f"--set {earlier} and --set {text} set the same parameter; keep one of them.")
        named[name], seen[parameter] = value, text
    return named


def _train_unless_done(run: RunConfig, storage: Storage, ngpus: int, workers: int, again: bool) -> int:
    check_writable(storage)
    wait_for_others(storage, [run.run_id], lambda line: click.echo(line, err=True), again=again)
    status = read_known(storage).statuses.get(run.run_id)
    if status in FINISHED and not again:
        click.echo(f"{run.run_id} is {status} already; --again trains it once more", err=True)
        click.echo(f"next: {next_command(f'muon status {run.run_id}')}", err=True)
        return 0
    publish_source(run.optimizer, storage)
    on_ray = workers > 1 or ngpus > 0
    if on_ray:
        _check_machine(ngpus, workers)
    else:
        _check_device(run)
    from muon_core.data.shards import prepare  # numpy and the tokenizer take a moment to load
    from ray_jobs.cli.waiting import waiting

    click.echo(f"training {run.run_id}, results in {storage.url}", err=True)
    for doubt in doubts([run]):
        click.echo(f"odd: {doubt}", err=True)
    click.echo(f"tokens: corpus {run.data.corpus}, vocabulary {run.model.vocab_size}", err=True)
    with waiting("tokenizing what the run reads"):
        prepare(run.data, run.model.vocab_size)  # bad data is an error of the input, not a failed run
    status, detail = _on_ray(run, storage, ngpus, workers) if on_ray else _in_process(run, storage, again)
    if status == "held":  # by one that came at the same moment
        return _train_unless_done(run, storage, ngpus, workers, again)
    show = next_command(f"muon status {run.run_id}")
    if status == "failed":
        click.echo(f"failed: {run.run_id}: {last_line(detail)} (traceback: {show})", err=True)
        return EXIT_FAILED_RUNS
    click.echo(f"{status}: {run.run_id}: {last_line(detail)}", err=True)
    if status in FINISHED and (flag := _health(storage, run.run_id)):
        click.echo(f"flagged: {flag}", err=True)
    click.echo(f"next: {show}", err=True)
    return 0 if status in FINISHED else EXIT_FAILED_RUNS


def _health(storage: Storage, run_id: str) -> str | None:
    """How the momentum of a run that has ended froze or ran away, if it was seen to."""
    from analysis.store import open_store

    found: list[str | None] = open_store(storage).run(run_id).runs.collect()["health"].to_list()
    return found[0] if found else None


def _in_process(run: RunConfig, storage: Storage, again: bool) -> tuple[str, str]:
    """Train here; returns how the run ended, and its loss or why it did not end well."""
    import torch

    from muon_core.train import train
    from ray_jobs.cli.run_progress import RunProgress
    from ray_jobs.run_output import run_output

    torch.set_num_threads(1)  # the bits of a run depend on it, and two threads gain nothing on the tiny model
    try:
        with RunProgress() as progress, stop_signals() as signals, run_output(storage, run.run_id, next_start()):
            outcome = train(
                run, storage, report=lambda news: progress(news) and not signals, device=_device(), resume=not again
            )
    except StoreError:
        raise  # the store does not know of it
    except Exception as error:
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
    if signals and outcome.status == "stopped":
        raise KeyboardInterrupt
    return outcome.status, outcome.error or _loss(outcome.final.val_loss if outcome.final else None)


def _device() -> torch.device:
    """Where a run of this process trains."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _check_device(run: RunConfig) -> None:
    """Raises ValueError if the run does not fit, or nothing compiles it: here an error of the input, in a worker a
    failed run."""
    from muon_core.compiled import check_compiler
    from muon_core.train import check_memory

    check_memory(run, _device())
    if run.compile:
        check_compiler(_device())


def _check_machine(ngpus: int, workers: int) -> None:
    """Raises ValueError if this machine is too small: Ray would wait for more of it for ever."""
    import torch

    wanted = [("--ngpus", ngpus, torch.cuda.device_count()), ("--workers", workers, os.cpu_count() or 1)]
    for option, asked, found in wanted:
        if asked > found:
            raise ValueError(f"{option} {asked} is more than this machine has, {found}; lower it")


def _on_ray(run: RunConfig, storage: Storage, ngpus: int, workers: int) -> tuple[str, str]:
    """Train on a private Ray of this machine; returns what `_in_process` does."""
    os.environ.pop("RAY_ADDRESS", None)  # it means a cluster, and Ray decides at import whether it is private
    from ray_jobs.cli.progress import Display
    from ray_jobs.launch import run_on_ray
    from search_spaces.spec import Resources

    resources = Resources(workers=workers, gpus_per_worker=1 if ngpus else 0)
    with Display(1) as display:
        (state,) = run_on_ray([run], storage, resources, watch=display.update)
    return state.status, state.error or _loss(state.progress.val_loss if state.progress else None)


def _loss(value: float | None) -> str:
    return "" if value is None else f"val loss {value:.4f} nats per token"
