"""`muon gates`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ray_jobs.cli.main import EXIT_GATE_FAIL, EXIT_GATE_INCONCLUSIVE
from ray_jobs.cli.options import json_option, next_command, store_option
from ray_jobs.cli.runs import find_run
from ray_jobs.cli.text import terminal_width

if TYPE_CHECKING:
    import polars as pl

    from analysis.store import Store
    from analysis.summary import Summary


EXIT_CODES = {"PASS": 0, "FAIL": EXIT_GATE_FAIL, "INCONCLUSIVE": EXIT_GATE_INCONCLUSIVE}


def _share(_: click.Context, __: click.Parameter, value: str) -> float:
    """`1%` as 0.01."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*%", value.strip())
    if not found:
        raise click.BadParameter(f"must be a share such as 2%, got {value!r}")
    return float(found[1]) / 100


@click.command("gates")
@click.argument("name")
@click.option("--baseline", metavar="RUN|SWEEP", help="Judge the runs of NAME by the band of these instead.")
@click.option(
    "--margin",
    metavar="N%",
    callback=_share,
    default="1%",
    show_default=True,
    help="Of --baseline: room for losses, twice that for accuracies.",
)
@click.option(
    "--layer-margin",
    metavar="N%",
    callback=_share,
    default="10%",
    show_default=True,
    help="Of --baseline: room for ranks and norms.",
)
@store_option
@json_option
def command(name: str, baseline: str | None, margin: float, layer_margin: float, store: str, as_json: bool) -> int:
    """Judge the sweep NAME by the `gates` of its file: each is PASS, FAIL or INCONCLUSIVE.

    Each arm has its difference, an interval, n, p after Holm over the arms of the gate, and where the runs do not tell,
    the fresh seeds that would settle it with their GPU hours and USD. A seed that diverged or failed fails
    `non_inferior` and `equivalent`. While seeds are to come a gate is INCONCLUSIVE.

    --json gives an object with sweep, metric, result, and gates, each with gate (its fields), result, vs, unit, level,
    tests, and arms, each with arm, result, reason, n, effect, interval, adjusted_p, adjusted_p_against, seeds,
    gpu_hours and usd.

    With --baseline NAME may be a run, too, or the beginning of one, and no gates are needed. Each of its runs must stay
    in the band of a golden baseline that the store has: final metrics, curves at equal tokens, ranks and norms of all
    matrices. A run that failed or diverged fails; docs/sweeps.md tells when one that leaves the band does. --json gives
    an object with result, golden (arm, run_ids, seeds, left_out), val_margin, layer_margin, and runs, each with run_id,
    arm, seed, status, result, reason, vs, and checks: what, result, points, outside, beyond, first, is_assumed, reason.

    \b
    muon gates demo
    muon gates demo --json
    muon gates nightly --baseline golden
    muon gates muon-s137 --baseline muon-s42 --margin 2%

    Exit codes: 0 all pass; 2 invalid input, or a sweep without gates; 4 a gate or run fails; 5 none fails, and one is
    inconclusive.
    """
    if baseline is None:
        _refuse_margins()
    else:
        return _judge_golden(name, baseline, margin, layer_margin, store, as_json=as_json)
    from analysis.gate_texts import arm_line, headline
    from analysis.gates import overall
    from analysis.store import open_store
    from analysis.summary import summarize
    from ray_jobs.cli.answer_text import indented, wrap

    view = open_store(store).sweep(name)
    summary = summarize(view)
    if not summary.gates:
        remedy = (
            "an imported one has none: judge it against stored runs with --baseline RUN|SWEEP"
            if view.record and view.record.is_imported
            else "write `gates:` into its file and run it again"
        )
        raise ValueError(f"sweep {name!r} has no gates; {remedy}")
    result = overall(summary.gates)
    if as_json:
        gates = [asdict(found) for found in summary.gates]
        answer = {"sweep": name, "metric": summary.metric, "result": result, "gates": gates}
        click.echo(json.dumps(answer, indent=2, allow_nan=False))
        return EXIT_CODES[result]
    texts = [[headline(found), *indented([arm_line(arm, found) for arm in found.arms])] for found in summary.gates]
    click.echo("\n\n".join("\n".join(wrap(lines, terminal_width())) for lines in texts))
    click.echo(f"next: {next_command(_after(summary))}", err=True)
    return EXIT_CODES[result]


def _judge_golden(name: str, baseline: str, margin: float, layer_margin: float, store: str, *, as_json: bool) -> int:
    from analysis.golden import judge_golden
    from analysis.golden_texts import check_lines, golden_lines, run_line
    from analysis.store import open_store
    from ray_jobs.cli.answer_text import indented, wrap

    opened = open_store(store)
    judged, golden = _runs_named(opened, name), _runs_named(opened, baseline)
    found = judge_golden(opened, judged, golden, val_margin=margin, layer_margin=layer_margin)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, allow_nan=False))
        return EXIT_CODES[found.result]
    texts = [golden_lines(found), *([run_line(run), *indented(check_lines(run))] for run in found.runs)]
    click.echo("\n\n".join("\n".join(wrap(lines, terminal_width())) for lines in texts))
    off = next((run for run in found.runs if run.result != "PASS"), None)
    golden_run = next(one.run_ids[0] for one in found.golden if off is None or one.arm == off.vs)
    then = f"muon runs diff {golden_run} {off.run_id}" if off else f"muon runs show {found.runs[0].run_id}"
    click.echo(f"next: {next_command(then)}", err=True)
    return EXIT_CODES[found.result]


def _refuse_margins() -> None:
    """Margins of gates stand in the sweep file. Raises UsageError where one is given."""
    context = click.get_current_context()
    for name in ("margin", "layer_margin"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is of --baseline; the margin of a gate is in the sweep's file."
            )


def _runs_named(store: Store, name: str) -> pl.DataFrame:
    """The runs of the sweep `name`, or the run that it names or begins. Raises ValueError if it is neither."""
    from analysis.golden import run_alone, runs_of_sweep

    sweeps = store.sweep_names()
    if name in sweeps:
        return runs_of_sweep(store, name)
    try:
        return run_alone(store, find_run(store, name)["run_id"])
    except ValueError as error:
        raise ValueError(f"no sweep is called {name!r}, it holds {', '.join(sweeps) or 'none'}; and {error}") from error


def _after(summary: Summary) -> str:
    """What to type after having seen the gates."""
    if summary.counts["failed"] or summary.counts["diverged"]:
        return f"muon failures {summary.sweep}"
    is_chosen = any(not found.gate.needs_all and found.result == "PASS" and found.tests > 1 for found in summary.gates)
    if is_chosen:
        return f"muon sweep confirm {summary.sweep} --top 1 --fresh-seeds 3"
    return f"muon report {summary.sweep} -o report"
