"""`muon optimizers`: those there are, and what one of them keeps of what runs rely on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from muon_core.config.optimizers import OPTIMIZERS, OptimizerConfig
from ray_jobs.cli.options import Group, json_option
from ray_jobs.cli.pretrain import OptimizerName, assigned
from ray_jobs.cli.text import table_lines, to_terminal

if TYPE_CHECKING:
    from muon_core.optim.contract import Finding


@click.group("optimizers", cls=Group, invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the built-in optimizers of the hidden matrices, or check one, also your own.

    Sweep files and `muon pretrain --optimizer` take their names, and `package.module:Class` or `./file.py:Class` for
    any other torch.optim.Optimizer.

    --json gives a list of objects with name, about and lr, the default.

    \b
    muon optimizers
    muon optimizers check soap
    muon optimizers check ./my_opt.py:MyOptimizer --set lr=0.01
    """
    if context.invoked_subcommand is not None:
        return
    listed = [{"name": name, "about": about(config), "lr": _lr(config)} for name, config in OPTIMIZERS.items()]
    if as_json:
        click.echo(json.dumps(listed, indent=2))
        return
    rows = [("optimizer", "lr", "about"), *((one["name"], f"{one['lr']:g}", one["about"]) for one in listed)]
    click.echo("\n".join(map(to_terminal, table_lines(rows))))
    click.echo("next: muon optimizers check ./my_opt.py:MyOptimizer", err=True)


@command.command("check")
@click.argument("optimizer", metavar="REF", type=OptimizerName(list(OPTIMIZERS)))
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A parameter of it: lr=0.02.")
@json_option
def check_command(optimizer: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Try what runs rely on with REF: a built-in name, `package.module:Class` or `./file.py:Class`.

    It drives a dozen small matrices to fixed targets: whether the loss falls, two runs and a resumed one end on the
    same bits, the state survives a file, gradients stay as they are, a parameter may lack one, two workers step like
    one, and weights may be bf16. What is broken is no reason to refuse it: a warning says what it costs.

    --json gives an object with optimizer, ok, and checks: a list of objects with check, ok, seen and consequence.

    \b
    muon optimizers check normuon
    muon optimizers check torch.optim:Adafactor --set lr=0.01
    muon optimizers check ./my_opt.py:MyOptimizer --json

    Exit codes: 0 it was checked, whatever was found; 2 there is no such optimizer.
    """
    from search_spaces.run_file import resolve_run

    config = resolve_run("tiny", optimizer, assigned(assignments)).optimizer
    found = []
    for finding in _findings(config):
        found.append(finding)
        if not as_json:
            click.echo(f"{'broken' if finding.seen else 'kept':<8}{finding.promise:<24}{finding.seen or ''}".rstrip())
    broken = [finding for finding in found if finding.seen]
    if as_json:
        checks = [
            {"check": one.promise, "ok": not one.seen, "seen": one.seen, "consequence": one.costs} for one in found
        ]
        click.echo(json.dumps({"optimizer": optimizer, "ok": not broken, "checks": checks}, indent=2))
    for finding in broken:
        click.echo(f"warning: {finding.promise} is broken: {finding.costs}", err=True)
    click.echo(f"next: muon pretrain --optimizer {optimizer} --steps 50", err=True)


def _findings(config: OptimizerConfig) -> Iterable[Finding]:
    import torch

    from muon_core.optim.build import build_optimizers
    from muon_core.optim.contract import HEAD_SIZE, check

    torch.set_num_threads(1)  # as a run's worker on the CPU; bits depend on it
    return check(partial(build_optimizers, config=config, noise_seed=0, head_size=HEAD_SIZE))


def about(config: type[OptimizerConfig]) -> str:
    """The first sentence of a config's documentation."""
    return " ".join((config.__doc__ or "").split()).split(". ")[0].rstrip(".")


def _lr(config: type[OptimizerConfig]) -> Any:
    return config.model_fields["lr"].default
