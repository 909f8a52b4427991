"""What running a sweep file would do now: which runs are to come, what is done, what the seeds can resolve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from muon_core.statuses import EARLY, FINISHED, in_order, status_told
from muon_core.store.dropped import DroppedRun, describe_dropped, dropped_runs, earlier_runs
from search_spaces.arm_names import arm_names
from search_spaces.changed import changed
from search_spaces.chosen import chosen_runs, stand_ins
from search_spaces.doubts import doubts, gate_doubts
from search_spaces.estimate import ASSUMED_GPU, Estimate, Guess, Speed, estimate
from search_spaces.expand import PlannedRun, expand
from search_spaces.power import Power, Result, powers
from search_spaces.searching import search_block
from search_spaces.spec import SweepSpec

if TYPE_CHECKING:
    from muon_core.store.sweeps import SweepRecord


@dataclass(frozen=True, slots=True)
class Search:
    """How far the search of a sweep is."""

    block: str
    cells: int
    """That it will have chosen in the end."""
    chosen: int
    counts: dict[str, int]
    """The runs of those chosen, by status."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep's runs with what the results store knows of them."""

    spec: SweepSpec
    runs: tuple[PlannedRun, ...]
    statuses: tuple[str, ...]
    """One for each run, in the words of `muon_core.statuses`."""
    to_run: tuple[PlannedRun, ...]
    """What `muon sweep run` would start, in order."""
    elsewhere: tuple[PlannedRun, ...]
    """What another process trains at this moment; `muon sweep run` waits for it."""
    powers: tuple[Power, ...]
    """What the seeds can resolve, by kind of arm."""
    names: dict[str, str]
    """arm_id to what the arm is called."""
    doubts: tuple[str, ...]
    """What is odd about it, a sentence each."""
    estimate: Estimate
    """How long what is coming will take."""
    dropped: tuple[DroppedRun, ...]
    """Runs that ended, that an earlier version of the sweep listed, and this one does not."""
    changed: tuple[str, ...]
    """Which optimizers by reference are others than those of runs in the store, a sentence each."""
    to_choose: tuple[PlannedRun, ...]
    """A run, drawn at random, in the place of each that `muon sweep run` would choose only when others have ended."""

    @property
    def coming(self) -> tuple[PlannedRun, ...]:
        """What `muon sweep run` would train, with stand-ins for what it would choose: time and money are theirs."""
        return self.to_run + self.to_choose

    @property
    def missing(self) -> str:
        """That the data set is still to be prepared, and how; empty where it is there."""
        corpora = {run.config.data.corpus for run in self.runs if run.config.data.corpus_sha256 is None} - {"stdlib"}
        if not corpora:
            return ""
        return f"{', '.join(sorted(corpora))} is not there, so nothing can be run; make it with `{self.spec.prepare}`"

    @property
    def search(self) -> Search | None:
        """How far its search is; None for a sweep without one."""
        found = search_block(self.spec)
        if found is None:
            return None
        chosen = {run.run_id for run in chosen_runs(self.spec, self.runs)}
        counts = Counter(status for run, status in zip(self.runs, self.statuses, strict=True) if run.run_id in chosen)
        return Search(found[0].name, found[1].n, len(found[1].chosen), in_order(counts))

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Ids of those that were dropped."""
        return tuple(run.run_id for run in self.dropped)

    @property
    def dropped_text(self) -> str:
        """How many were dropped, and which; empty where none was."""
        return describe_dropped(self.dropped, {run.config.seed for run in self.runs}, self.names.values())

    @property
    def duplicates(self) -> int:
        """Runs that several blocks contain and that are paid for once."""
        return sum(len(run.members) - 1 for run in self.runs)

    @property
    def counts(self) -> dict[str, int]:
        """Runs by status, those that occur."""
        return in_order(Counter(self.statuses))

    @property
    def finished(self) -> set[str]:
        """Ids of the runs that have a result; those of them in `to_run` are to be trained again."""
        return {run.run_id for run, status in zip(self.runs, self.statuses, strict=True) if status in FINISHED}

    @property
    def flops(self) -> float:
        """FLOPs of what is coming."""
        return sum(self.estimate.flops[run.arm_id] for run in self.coming)

    @property
    def seconds(self) -> float:
        """What is coming is expected to take, one run after the other."""
        return sum(self.estimate.seconds[run.arm_id] for run in self.coming)

    @property
    def tokens(self) -> int:
        """Training tokens of what is coming."""
        return sum(run.config.steps * run.config.tokens_per_step for run in self.coming)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        starting = {run.run_id for run in self.to_run}
        return {
            "sweep": self.spec.name,
            "question": self.spec.question,
            "runs": [
                {
                    "run_id": run.run_id,
                    "block": run.block,
                    "role": run.role,
                    "members": [{"block": block, "role": role} for block, role in run.members],
                    "optimizer": run.config.optimizer.name,
                    "arm": self.names[run.arm_id],
                    "arm_id": run.arm_id,
                    "seed": run.config.seed,
                    "status": status,
                    "to_run": run.run_id in starting,
                    "config": run.config.model_dump(mode="json"),
                }
                for run, status in zip(self.runs, self.statuses, strict=True)
            ],
            "counts": self.counts,
            "duplicates": self.duplicates,
            "to_run": [run.run_id for run in self.to_run],
            "to_choose": len(self.to_choose),
            "search": asdict(self.search) if self.search else None,
            "elsewhere": [run.run_id for run in self.elsewhere],
            "unlisted": list(self.unlisted),
            "changed": list(self.changed),
            "training_tokens": self.tokens,
            "flops": self.flops,
            "estimate": {
                "hours": self.seconds / 3600,
                "source": self.estimate.source,
                "measured": self.estimate.is_measured,
            },
            "power": [asdict(power) for power in self.powers],
            "doubts": list(self.doubts),
            "missing": self.missing or None,
        }


def plan(
    spec: SweepSpec,
    done: Mapping[str, str],
    *,
    alive: Collection[str] = (),
    past: Sequence[Speed] = (),
    measured: Sequence[Result] = (),
    records: Sequence[SweepRecord] = (),
    trained: Iterable[str | None] = (),
    retry: Collection[str] = (),
    sd: float | None = None,
    gpu: str = ASSUMED_GPU,
) -> Plan:
    """What running `spec` would do.

    Args:
        done: run_id to status, of the runs in the results store; it may hold runs of other sweeps.
        alive: run_id of those that another process trains now.
        past: how fast runs in the store were.
        measured: what runs in the store came to; from their pairs is how arms of each kind scatter.
        trained: configs of runs in the store, as JSON.
        records: those of this sweep in the store, the newest last.
        retry: statuses of runs that have ended and are to be run again: failed, diverged.
        sd: standard deviation, between seeds, of a paired difference in the primary metric; None takes that of the
            store, or one assumed.
        gpu: what runs on GPUs are assumed to train on where none was measured, one of muon_core.gpus.
    Raises: SpecError if the spec cannot be expanded; ValueError for an `sd` that is not positive and finite.
    """
    runs = tuple(expand(spec))
    statuses = tuple(status_told(done.get(run.run_id), alive=run.run_id in alive) for run in runs)
    waiting = {"planned", "interrupted", "stopped", *retry}
    if spec.early_stopping is None:
        waiting.add(EARLY)
    to_run = tuple(run for run, status in zip(runs, statuses, strict=True) if status in waiting)
    elsewhere = tuple(run for run, status in zip(runs, statuses, strict=True) if status == "running")
    unchosen = stand_ins(spec, runs)
    arms = len(runs) // len(spec.seeds)  # the baseline is one of them
    once = (*runs[:arms], *unchosen)  # seeds change nothing about what is odd
    odd = (*doubts([run.config for run in once]), *gate_doubts(spec))
    asked = {run.arm_id: run.config for run in (*to_run, *elsewhere, *unchosen)}
    takes = estimate(asked, past, Guess(spec.resources, gpu))
    dropped = dropped_runs(earlier_runs(records, {run.run_id for run in runs}), done)
    others = tuple(changed(runs, {run.run_id for run in to_run}, trained))
    resolves = powers(spec, once, measured, sd)
    return Plan(
        spec, runs, statuses, to_run, elsewhere, resolves, arm_names(runs), odd, takes, dropped, others, unchosen
    )
