"""Early stopping: what a sweep file may ask for, whom the scheduler compares, and how a run is told to end."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from muon_core.config.run import RunConfig
from muon_core.progress import Progress
from muon_core.statuses import EARLY, record_told
from muon_core.store.folder import Folder
from ray_jobs.cli.plan_text import render_plan
from ray_jobs.money import money
from ray_jobs.run_queue import RunQueue
from ray_jobs.terms import Comparison
from search_spaces.early_stopping import EarlyStopping, compared
from search_spaces.errors import SpecError
from search_spaces.expand import expand
from search_spaces.plan import plan
from search_spaces.spec import SweepSpec, parse_spec

TEXT = """\
version: 1
name: rates
seeds: [1, 2]
constants: {steps: 90, tracking.eval_every: 10}
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - {name: lr, optimizer: muon, grid: {lr: [0.01, 0.02, 0.05]}}
  - {name: plain, role: control, optimizer: muon, set: {nesterov: false}}
early_stopping: {scheduler: asha, grace_steps: 10}
"""


def rates(*changes: tuple[str, str]) -> SweepSpec:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_spec(text, name="rates.yaml")


# ---- the file


def test_candidates_alone_are_compared() -> None:
    """Not the baseline nor a control, also where a candidate block lists the same run: lr 0.02 is the baseline's."""
    runs = expand(rates())
    assert [run.block for run in runs if run.run_id in compared(runs)] == ["lr"] * 4
    assert len(compared(runs)) == 2 * 2


MISTAKES = [
    ("asha", "hyperband", "early_stopping: scheduler must be 'asha' or 'median', got 'hyperband'"),
    ("grace_steps: 10", "grace_steps: 0", "early_stopping: grace_steps must be greater than 0, got 0"),
    (
        "grace_steps: 10",
        "grace_steps: 90",
        "early_stopping: grace_steps 90 is not below steps, 90: no run could end early; write 10, or another number "
        "below",
    ),
    (
        "grace_steps: 10",
        "grace_steps: 9",
        "early_stopping: grace_steps 9 is below tracking.eval_every, 10: there is nothing to compare by; write at "
        "least 10, or a smaller tracking.eval_every",
    ),
    (
        "{scheduler: asha, grace_steps: 10}",
        "{scheduler: median, grace_steps: 10, reduction_factor: 4}",
        "early_stopping: reduction_factor is for asha, the median has none; remove it",
    ),
    ("grace_steps: 10", "grace: 10", "early_stopping: unknown field 'grace'. Did you mean 'grace_steps'?"),
    (
        "{scheduler: asha, grace_steps: 10}",
        "asha",
        "early_stopping: must be a mapping, got 'asha'; write early_stopping: {scheduler: asha, grace_steps: 100}",
    ),
    (
        "role: control, optimizer: muon, set: {nesterov: false}",
        "optimizer: adamw",
        "early_stopping: would compare 2 optimizers (muon, adamw) before the end, which misleads: between their order "
        "at step 1000 and at the end the rank correlation was 0.02 in measurements; give each optimizer its own sweep, "
        "or write across_optimizers: true",
    ),
    (
        "grid: {lr: [0.01, 0.02, 0.05]}",
        "grid: {steps: [90, 180]}",
        "early_stopping: compares runs at the same step, and the candidates have 90, 180 steps, each with a schedule "
        "of its own; give all of them the same, or remove early_stopping",
    ),
    (
        "name: lr, optimizer: muon",
        "name: lr, role: control, optimizer: muon",
        "early_stopping: compares candidates, and no block is one; add a block, or remove early_stopping",
    ),
]


@pytest.mark.parametrize(("old", "new", "answer"), MISTAKES, ids=[new for _, new, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_place_and_a_remedy(old: str, new: str, answer: str) -> None:
    with pytest.raises(SpecError) as refused:
        expand(rates((old, new)))
    assert refused.value.lines == (f"rates.yaml:9: {answer}",)


def test_optimizers_are_compared_early_by_who_insists() -> None:
    both = ("role: control, optimizer: muon, set: {nesterov: false}", "optimizer: adamw")
    insisting = ("grace_steps: 10", "grace_steps: 10, across_optimizers: true")
    assert len(expand(rates(both, insisting))) == 2 * 4


# ---- the plan


def test_a_plan_leaves_what_was_stopped_early_until_the_file_no_longer_asks_for_it() -> None:
    runs = [run.run_id for run in expand(rates())]
    statuses = dict.fromkeys(runs, "done") | {runs[1]: EARLY, runs[3]: "stopped"}
    planned = plan(rates(), statuses)
    assert planned.counts == {"done": 6, "stopped early": 1, "stopped": 1}
    assert [run.run_id for run in planned.to_run] == [runs[3]]
    whole = plan(rates(("early_stopping: {scheduler: asha, grace_steps: 10}\n", "")), statuses)
    assert [run.run_id for run in whole.to_run] == [runs[1], runs[3]]
    for told, is_early in ((planned, True), (whole, False)):
        (time,) = [line for line in render_plan(told, money(told, Folder("no"))).splitlines() if line[:6] == "time: "]
        assert time.endswith("; less, for candidates may end early") == is_early


# ---- the queue


def test_a_run_asked_to_end_early_hears_why_and_the_next_of_its_slot_goes_on() -> None:
    reason = "early stopping: too bad"

    async def story() -> None:
        queue = RunQueue()
        turn = await queue.submit("slot", "a", "A")
        await queue.next("slot")
        assert await queue.report("slot", turn, Progress("a", 1, 10, 1.0, 3.0, 10, 1.0, 1.0)) is True
        await queue.end_early("a", reason)
        assert await queue.report("slot", turn, Progress("a", 2, 10, 1.0, 3.0, 20, 1.0, 1.0)) == reason
        await queue.finish("slot", turn, "stopped", reason)
        (state,) = await queue.runs()
        assert record_told(state.status, state.error) == EARLY
        turn = await queue.submit("slot", "b", "B")
        await queue.next("slot")
        assert await queue.report("slot", turn, Progress("b", 1, 10, 1.0, 3.0, 10, 1.0, 1.0)) is True

    asyncio.run(story())


# ---- the scheduler


@dataclass(eq=False)
class Trial:
    """What a scheduler sees of a trial of Tune."""

    run_id: str

    @property
    def trial_id(self) -> str:
        return self.run_id

    @property
    def config(self) -> dict[str, Any]:
        return {"run": {"run_id": self.run_id}}


class Controller:
    """What the median asks of Tune's: which trials wait; as many as it likes."""

    def get_live_trials(self) -> list[Any]:
        @dataclass
        class Waiting:
            status: str = "PENDING"

        return [Waiting()]


@dataclass
class Story:
    """Trials under a scheduler, and which of them it ended."""

    scheduler: Any
    ended: dict[str, str]

    def evaluate(self, run_id: str, step: int, val_loss: float | None, *, done: bool = False) -> None:
        """A result of a trial, as the slot gives it."""
        trial = self.trials.setdefault(run_id, Trial(run_id))
        if run_id not in self.added:
            self.added.add(run_id)
            self.scheduler.on_trial_add(Controller(), trial)
        result = {} if val_loss is None else {"val_loss": val_loss, "steps_done": step}
        if done:
            self.scheduler.on_trial_complete(Controller(), trial, result | {"done": True})
        else:
            assert self.scheduler.on_trial_result(Controller(), trial, result) == "CONTINUE"

    def __post_init__(self) -> None:
        self.trials: dict[str, Trial] = {}
        self.added: set[str] = set()


@pytest.fixture
def story() -> Callable[..., Story]:
    from ray_jobs.early_stopping import EarlyStopping as Scheduler

    def begin(scheduler: str, runs: str, **metric: Any) -> Story:
        ended: dict[str, str] = {}
        rule = EarlyStopping.model_validate({"scheduler": scheduler, "grace_steps": 10})
        return Story(Scheduler(Comparison(rule, set(runs), **metric), 90, ended.__setitem__), ended)

    return begin


def test_asha_ends_who_is_not_among_the_best_third_of_those_that_came_as_far(story: Callable[..., Story]) -> None:
    told = story("asha", "abcdef")
    for run_id, loss in {"a": 3.0, "b": 2.0, "c": 2.5}.items():
        told.evaluate(run_id, 0, 6.0)  # before the grace nobody is judged
        told.evaluate(run_id, 10, loss)
    assert set(told.ended) == {"c"}  # of 2.0 and 3.0 the best third ends at 2.33
    assert told.ended["c"] == (
        "early stopping: val_loss 2.5 after 10 of 90 steps is not among the best 1/3 of the runs that came as "
        "far (asha)"
    )
    assert record_told("stopped", told.ended["c"]) == EARLY
    told.evaluate("c", 20, 9.0)  # while it saves itself
    told.evaluate("c", 21, 9.0, done=True)
    told.evaluate("d", 10, 1.0)
    told.evaluate("d", 30, 1.0)
    told.evaluate("b", 30, 1.9)
    assert set(told.ended) == {"c", "b"}  # at the second rung d is ahead
    told.evaluate("d", 90, 99.0)  # at its end there is nothing to save
    assert set(told.ended) == {"c", "b"}


def test_the_median_ends_who_is_worse_than_the_median_and_never_pauses(story: Callable[..., Story]) -> None:
    told = story("median", "abcde")
    for run_id, loss in {"a": 2.0, "b": 2.2, "c": 2.4}.items():
        told.evaluate(run_id, 10, loss)
        told.evaluate(run_id, 90, loss, done=True)
    told.evaluate("d", 10, 2.3)
    assert set(told.ended) == {"d"}
    assert told.ended["d"].endswith("after 10 of 90 steps is worse than the median of the other runs (median)")
    told.evaluate("d", 20, 2.3)
    told.evaluate("d", 22, 2.3, done=True)
    told.evaluate("e", 10, 2.1)
    assert set(told.ended) == {"d"}


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_baselines_and_controls_neither_end_early_nor_decide_about_others(
    story: Callable[..., Story], scheduler: str
) -> None:
    told = story(scheduler, "abcd")
    for run_id in ("base", "control", "plain", "other"):
        told.evaluate(run_id, 10, 1.0)
        told.evaluate(run_id, 90, 1.0, done=True)
    told.evaluate("a", 10, 2.0)
    told.evaluate("base", 10, 99.0)
    assert told.ended == {}


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_run_that_ends_before_it_was_evaluated_is_no_sample(story: Callable[..., Story], scheduler: str) -> None:
    told = story(scheduler, "abcde")
    told.evaluate("a", 0, None, done=True)
    for run_id, loss in {"b": 2.0, "c": 2.0, "d": 2.0, "e": 3.0}.items():
        told.evaluate(run_id, 10, loss)
    assert set(told.ended) == {"e"}


def test_accuracy_is_compared_the_other_way_round(story: Callable[..., Story]) -> None:
    told = story("asha", "ab", metric="val_accuracy", goal="max")
    for run_id, accuracy in {"a": 0.5, "b": 0.4}.items():
        trial = Trial(run_id)
        told.scheduler.on_trial_add(Controller(), trial)
        told.scheduler.on_trial_result(Controller(), trial, {"val_accuracy": accuracy, "steps_done": 10})
    assert set(told.ended) == {"b"}


def test_runs_start_in_an_order_that_follows_no_grid_the_baseline_first() -> None:
    from ray_jobs.early_stopping import in_drawn_order

    configs = [RunConfig.model_validate({"optimizer": {"name": "muon", "lr": 0.01 * n}}) for n in range(1, 21)]
    base, others = configs[4], {config.run_id for config in configs} - {configs[4].run_id}
    comparison = Comparison(EarlyStopping(scheduler="asha", grace_steps=10), others)
    drawn = in_drawn_order(configs, comparison)
    assert drawn[0] == base
    assert {run.run_id for run in drawn[1:]} == others
    assert drawn == in_drawn_order(configs[::-1], comparison)
    rates = [run.optimizer.lr for run in drawn[1:]]
    better = sum(rate > max(rates[:index]) for index, rate in enumerate(rates) if index)
    assert better < 8  # in the order of the grid it would be 18
