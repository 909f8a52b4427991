"""Says how runs did against a golden baseline: where they first leave its band, and what was assumed."""

from __future__ import annotations

from analysis.bands import ASSUMED, Check, Departure
from analysis.golden import VAL_METRICS, Golden, GoldenResult, RunResult


def golden_lines(found: GoldenResult) -> list[str]:
    """What the bands are made of, a line a golden arm."""
    return [f"baseline {golden.arm}: {_made_of(golden, found)}" for golden in found.golden]


def run_line(run: RunResult) -> str:
    """`muon-s7-3f9a1c07: PASS: 8 of 8 checks inside`, then a count of the others."""
    if run.reason:
        return f"{run.run_id}: {run.result}: {run.reason}"
    results = [check.result for check in run.checks]
    others = [f"{results.count(kind)} {kind}" for kind in ("FAIL", "INCONCLUSIVE") if kind in results]
    text = f"{results.count('PASS')} of {len(results)} checks inside the band of {run.vs}"
    return f"{run.run_id}: {run.result}: {', '.join([text, *others])}"


def check_lines(run: RunResult) -> list[str]:
    """The checks that did not pass."""
    return [check_line(check) for check in run.checks if check.result != "PASS"]


def check_line(check: Check) -> str:
    """`val_loss: FAIL: outside first at step 60 (122,880 tokens): 5.12, band 4.8 to 5.01; ...`."""
    parts = [_first(check.first)] if check.first else []
    explained = "beyond what is assumed of seeds" if check.is_assumed else "beyond what seeds explain"
    if check.points > 1 and check.outside:
        parts.append(f"outside at {check.outside:,} of {check.points:,} points, {check.beyond:,} {explained}")
    elif check.outside:
        parts.append(explained if check.beyond else "which seeds may explain")
    parts += [check.reason] if check.reason else []
    return f"{check.what}: {check.result}: {'; '.join(parts)}"


def _first(first: Departure) -> str:
    where = "" if first.layer is None else f", layer {first.layer} of {first.projection}"
    value = "not finite" if first.value is None else f"{first.value:.4g}"
    band = f"band {first.low:.4g} to {first.high:.4g}"
    return f"outside first at step {first.step:,} ({first.tokens:,} tokens{where}): {value}, {band}"


def _made_of(golden: Golden, found: GoldenResult) -> str:
    val = " and ".join(f"{100 * found.val_margin * many:g} % of {metric}" for metric, many in VAL_METRICS.items())
    margins = f"{val}, {100 * found.layer_margin:g} % of ranks and norms"
    left = f"; {golden.left_out} more not done, left out" if golden.left_out else ""
    if len(golden.run_ids) == 1:
        return (
            f"one run, {golden.run_ids[0]}, widened by {margins}; it tells nothing of seeds, which are assumed to "
            f"explain up to {ASSUMED} times as much{left}"
        )
    seeds = ", ".join("none" if seed is None else str(seed) for seed in golden.seeds)
    return f"range of {len(golden.run_ids)} runs (seeds {seeds}), widened by {margins}{left}"
