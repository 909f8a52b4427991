"""`muon gates`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ray_jobs.cli.main import EXIT_GATE_FAIL, EXIT_GATE_INCONCLUSIVE
from ray_jobs.cli.options import json_option, next_command, store_option
from ray_jobs.cli.text import terminal_width

if TYPE_CHECKING:
    from analysis.summary import Summary

EXIT_CODES = {"PASS": 0, "FAIL": EXIT_GATE_FAIL, "INCONCLUSIVE": EXIT_GATE_INCONCLUSIVE}


@click.command("gates")
@click.argument("name")
@store_option
@json_option
def command(name: str, store: str, as_json: bool) -> int:
    """Judge the sweep NAME by the `gates` of its file: each is PASS, FAIL or INCONCLUSIVE.

    Each arm has its difference, an interval, n, p after Holm over the arms of the gate, and where the runs do not tell,
    the fresh seeds that would settle it with their GPU hours and USD. A seed that diverged or failed fails
    `non_inferior` and `equivalent`. While seeds are to come a gate is INCONCLUSIVE.

    --json gives an object with sweep, metric, result, and gates, each with gate (its fields), result, vs, unit, level,
    tests, and arms, each with arm, result, reason, n, effect, interval, adjusted_p, adjusted_p_against, seeds,
    gpu_hours and usd.

    \b
    muon gates demo
    muon gates demo --json

    Exit codes: 0 all pass; 2 invalid input, or a sweep without gates; 4 a gate fails; 5 none fails, and one is
    inconclusive.
    """
    from analysis.gate_texts import arm_line, headline
    from analysis.gates import overall
    from analysis.store import open_store
    from analysis.summary import summarize
    from ray_jobs.cli.answer_text import indented, wrap

    summary = summarize(open_store(store).sweep(name))
    if not summary.gates:
        raise ValueError(f"sweep {name!r} has no gates; write `gates:` into its file and run it again")
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


def _after(summary: Summary) -> str:
    """What to type after having seen the gates."""
    if summary.counts["failed"] or summary.counts["diverged"]:
        return f"muon failures {summary.sweep}"
    is_chosen = any(not found.gate.needs_all and found.result == "PASS" and found.tests > 1 for found in summary.gates)
    if is_chosen:
        return f"muon sweep confirm {summary.sweep} --top 1 --fresh-seeds 3"
    return f"muon report {summary.sweep} -o report"
