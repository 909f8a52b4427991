"""What the commands that train a sweep have in common: their options, and the plan in a line."""

from __future__ import annotations

import click

from muon_core.spelling import counted
from muon_core.statuses import counts_text
from ray_jobs.cli.options import Choice
from search_spaces.plan import Plan

RETRY = click.option(
    "--retry",
    multiple=True,
    type=Choice(["failed", "diverged"]),
    help="Run those runs again too; without it they stay as they are. Failed ones go on from their checkpoint, "
    "diverged ones begin anew. May be given twice.",
)
ONLY = click.option(
    "--only",
    metavar="EXPR",
    help="Train only runs for which this SQL condition holds, over their block, role, arm, arm_id, optimizer, seed, "
    "status and parameters.",
)
MAX_USD = click.option(
    "--max-usd", type=click.FloatRange(min=0), help="Spend no more on the sweep; goes over `budget.usd`."
)
LIMIT = click.option("--limit", type=click.IntRange(min=1), help="Train at most so many runs now.")
SHARED_FOLDER = click.option(
    "--shared-folder", is_flag=True, help="All nodes of the cluster share the folder of the results."
)
YES = click.option("--yes", is_flag=True, help="Do not ask before using a cluster.")


def headline(planned: Plan) -> str:
    """How many runs there are, and what becomes of them."""
    others = f", {len(planned.elsewhere)} trained by another process" if planned.elsewhere else ""
    chosen = f", {len(planned.to_choose)} to be chosen" if planned.to_choose else ""
    runs = counted(len(planned.runs), "run")
    return f"{runs} ({counts_text(planned.counts)}), {len(planned.to_run)} to train{chosen}{others}"
