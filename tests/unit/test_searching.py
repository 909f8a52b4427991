"""Searches: what a sweep file may ask for, which cell comes next by which results, and what a store remembers of it."""

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import test_cli
from support.analysis_fixtures import write_run
from support.schema import schema_refuses
from test_cli import Muon
from test_names import trained

from analysis.standing import Follower
from analysis.store import open_store
from muon_core.store.folder import Folder
from muon_core.store.sweeps import read_sweep, write_sweep
from ray_jobs.admission import Admission
from ray_jobs.breaker import Breaker
from ray_jobs.money import money
from ray_jobs.searching import Search
from ray_jobs.suggestions import Told, suggestions
from ray_jobs.sweep_plan import plan_sweep, sweep_record
from search_spaces.chosen import chosen_runs, run_of
from search_spaces.errors import SpecError
from search_spaces.expand import PlannedRun, expand
from search_spaces.plan import plan
from search_spaces.sampling import Row
from search_spaces.searching import search_block, to_choose, with_chosen
from search_spaces.spec import SweepSpec, parse_spec
from search_spaces.write_yaml import as_sweep_yaml

muon = test_cli.muon
TEXT = """\
version: 1
name: rates
seeds: [1]
constants: {steps: 20}
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - name: lr
    optimizer: muon
    sample: {n: 12, searcher: optuna, lr: "loguniform(1e-3, 1)"}
"""


def rates(*changes: tuple[str, str]) -> SweepSpec:
    return parse_spec(changed(*changes), name="rates.yaml")


def changed(*changes: tuple[str, str]) -> str:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


# ---- the file

CHOSEN = 'searcher: optuna, chosen: [{lr: 0.02}], lr: "loguniform(1e-3, 1)"'
GIVEN = 'searcher: optuna, lr: "loguniform(1e-3, 1)"'
ELSEWHERE = True  # a schema sees no rule that joins two places
MISTAKES: list[tuple[str, str, str, bool]] = [
    (
        "seeds: [1]",
        "seeds: [1, 2]",
        "3: seeds: has 2 values, and a searcher chooses by the results of one seed; list one, and try the best cells "
        "on fresh ones with `muon sweep confirm`",
        ELSEWHERE,
    ),
    (
        "version: 1",
        "version: 1\nearly_stopping: {scheduler: asha, grace_steps: 10}",
        "2: early_stopping: cannot stand beside the searcher of blocks[lr], which learns from complete runs; remove "
        "one",
        ELSEWHERE,
    ),
    (
        "    sample:",
        "    grid: {momentum: [0.9]}\n    sample:",
        "9: blocks[lr]: grid cannot stand beside a searcher, which chooses whole cells; move its parameters under "
        'sample, each as one of its own: lr: "choice(0.01, 0.02)"',
        ELSEWHERE,
    ),
    (
        "    sample:",
        "    skip: [{lr: 0.1}]\n    sample:",
        "9: blocks[lr]: skip cannot stand beside a searcher, which chooses whole cells; remove it",
        ELSEWHERE,
    ),
    (
        "blocks:",
        'blocks:\n  - {name: other, optimizer: adamw, sample: {n: 2, searcher: optuna, lr: "uniform(0.1, 1)"}}',
        "10: blocks[lr]: sample.searcher is one too many: blocks[other] has one, too, and a sweep searches in one "
        "block; give this one a sweep of its own",
        ELSEWHERE,
    ),
    (
        "searcher: optuna",
        "searcher: optunna",
        "9: blocks[lr]: sample.searcher must be 'optuna', got 'optunna'. Did you mean 'optuna'?",
        False,
    ),
    (
        "searcher: optuna, ",
        "chosen: [{lr: 0.02}], ",
        "9: blocks[lr]: sample.chosen is for cells that a searcher goes on from; add searcher: optuna, or remove it",
        ELSEWHERE,
    ),
    (
        f"n: 12, {GIVEN}",
        f"n: 1, {CHOSEN}".replace("}]", "}, {lr: 0.3}]"),
        "9: blocks[lr]: sample.chosen has 2 cells, and n is 1; raise n, or remove some",
        ELSEWHERE,
    ),
    (
        GIVEN,
        CHOSEN.replace("0.02", "2"),
        "9: blocks[lr]: sample.chosen[0].lr is 2, which loguniform(1e-3, 1) cannot give; change one of them",
        ELSEWHERE,
    ),
    (
        GIVEN,
        CHOSEN.replace("lr: 0.02", "rate: 0.02"),
        "9: blocks[lr]: sample.chosen[0] must give lr and nothing else, got {rate: 0.02}",
        ELSEWHERE,
    ),
    (
        GIVEN,
        CHOSEN.replace("}]", "}, {lr: 0.02}]"),
        "9: blocks[lr]: sample.chosen[1] is {lr: 0.02} a second time; list each cell once",
        ELSEWHERE,
    ),
    (
        '"loguniform(1e-3, 1)"',
        '"choice(0.1, 0.2)"',
        "9: blocks[lr]: sample draws only 2 different cells, n is 12; lower n, or list the values under grid",
        ELSEWHERE,
    ),
    (
        '"loguniform(1e-3, 1)"',
        '"uniform(-2, -1)"',
        "9: blocks[lr]: lr must be greater than 0, got -1.547",
        ELSEWHERE,
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "is_beyond_the_schema"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_line_with_its_remedy(old: str, new: str, line: str, is_beyond_the_schema: bool) -> None:
    with pytest.raises(SpecError) as caught:
        plan(rates((old, new)), {})
    (found,) = caught.value.lines
    assert found.startswith(f"rates.yaml:{line}")
    assert schema_refuses(changed((old, new))) is not is_beyond_the_schema


def test_a_search_is_a_good_file_and_survives_being_written() -> None:
    for text in (TEXT, changed((GIVEN, CHOSEN)), changed(("searcher: optuna", "searcher: null"))):
        assert not schema_refuses(text)
    spec = rates((GIVEN, CHOSEN))
    assert parse_spec(as_sweep_yaml(spec)).model_dump() == spec.model_dump()
    assert [run.config.optimizer.lr for run in expand(spec)] == [0.02]  # which is the baseline's, too
    assert expand(spec)[0].members == (("base", "baseline"), ("lr", "candidate"))


# ---- what comes next


def tell(spec: SweepSpec, told: list[Told], goal: Any = "min", number: int | None = None) -> Iterator[Row]:
    found = search_block(spec)
    assert found
    return suggestions(found[0], told, goal, len(told) if number is None else number)


def search(spec: SweepSpec, loss: Callable[[Row], float | None], cells: int, goal: Any = "min") -> list[Told]:
    """The cells a search chooses one by one, with their losses."""
    told: list[Told] = []
    for _ in range(cells):
        row = next(row for row in tell(spec, told, goal) if row not in [each.row for each in told])
        told.append(Told(row, loss(row)))
    return told


def quadratic(row: Row) -> float:
    """Least at lr 0.1, in the upper half of a range of three decades."""
    return (math.log10(row["lr"]) + 1) ** 2


def test_the_same_results_give_the_same_cell_and_others_another() -> None:
    told = search(rates(), quadratic, 8)
    assert next(tell(rates(), told)) == next(tell(rates(), list(told)))
    assert next(tell(rates(), told)) != next(tell(rates(("n: 12", "n: 12, seed: 1")), told))
    others = [Told(row, -value) for row, value in told if value is not None]
    assert next(tell(rates(), told)) != next(tell(rates(), others))


def test_the_first_cells_are_those_of_a_sample_without_a_searcher() -> None:
    plain = expand(rates(("searcher: optuna, ", "")))
    drawn = [run.config.optimizer.lr for run in plain if run.block == "lr"]
    assert [row["lr"] for row, _ in search(rates(), quadratic, 5)] == drawn[:5]
    unknown = [Told({"lr": lr}, None) for lr in drawn[:7]]  # nothing has ended yet
    known = [told.row for told in unknown]
    assert next(row for row in tell(rates(), unknown) if row not in known) == {"lr": drawn[7]}


@pytest.mark.parametrize("goal", ["min", "max"])
def test_after_twelve_results_it_prefers_the_good_region(goal: str) -> None:
    """Of ten searches by other seeds, the next eight cells lie nearer to the best rate than eight draws at random."""
    sign = 1 if goal == "min" else -1
    nearer = 0
    for seed in range(10):
        spec = rates(("n: 12", f"n: 20, seed: {seed}"))
        found = search(spec, lambda row: sign * quadratic(row), 20, goal)
        drawn = random.Random(seed)
        at_random = [quadratic({"lr": 10 ** drawn.uniform(-3, 0)}) for _ in range(8)]
        nearer += sum(quadratic(row) for row, _ in found[12:]) < sum(at_random)
    assert nearer >= 9


def test_it_keeps_away_from_where_runs_diverge() -> None:
    """Above 0.2 every run does, and the losses below fall up to there."""
    found = search(rates(("n: 12", "n: 24")), lambda row: math.inf if row["lr"] > 0.2 else -row["lr"], 24)
    assert sum(row["lr"] > 0.2 for row, _ in found[12:]) <= 4
    assert min(found[12:], key=lambda told: told.value or 0).row["lr"] > 0.1
    worst = search(rates(("n: 12", "n: 24")), lambda row: -math.inf if row["lr"] > 0.2 else row["lr"], 24, "max")
    assert [told.row for told in worst] == [told.row for told in found]


def test_only_diverged_runs_are_no_error() -> None:
    assert len(search(rates(), lambda row: math.inf, 12)) == 12


def test_runs_under_way_are_kept_apart() -> None:
    """Told of one under way, it does not choose next to it what it would have chosen."""
    told = search(rates(), quadratic, 10)
    first = next(tell(rates(), told))
    second = next(tell(rates(), [*told, Told(first, None)], number=10))
    assert abs(math.log(second["lr"] / first["lr"])) > 0.01


def test_each_kind_of_distribution_is_searched_with_values_of_its_own() -> None:
    kinds = (
        'lr: "uniform(0.01, 0.1)", momentum: "choice(0.9, 0.95)", adam_betas: "choice([0.9, 0.95], [0.8, 0.9])", '
        'model.num_layers: "randint(1, 4)", nesterov: "choice(true, false)"'
    )
    spec = rates(("n: 12", "n: 20"), ('lr: "loguniform(1e-3, 1)"', kinds))
    found = search(spec, lambda row: row["lr"] + row["model.num_layers"], 20)
    for row, _ in found:
        assert float(f"{row['lr']:.4g}") == row["lr"]
        assert (type(row["model.num_layers"]), type(row["nesterov"])) == (int, bool)
        run = run_of(spec, row)
        assert run
        assert run.config.optimizer.adam_betas == tuple(row["adam_betas"])
        found_again = search_block(with_chosen(spec, [row]))
        assert found_again
        assert found_again[1].holds(row)
    assert max(row["model.num_layers"] for row, _ in found[15:]) < 4


def test_every_cell_of_a_small_space_is_chosen_once() -> None:
    spec = rates(("n: 12", "n: 8"), ('"loguniform(1e-3, 1)"', '"choice(1, 2, 3, 4)", momentum: "choice(0.8, 0.9)"'))
    rows = [row for row, _ in search(spec, lambda row: row["lr"], 8)]
    assert sorted((row["lr"], row["momentum"]) for row in rows) == [(lr, m) for lr in (1, 2, 3, 4) for m in (0.8, 0.9)]


# ---- what the store remembers


@pytest.fixture
def storage(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "results")


def end(storage: Folder, run: PlannedRun, loss: float, status: str = "done", **facts: Any) -> None:
    fake = trained(run, loss)
    fake.status = status
    fake.facts |= facts
    write_run(storage, fake)


def begin(storage: Folder, spec: SweepSpec, at_most: int = 100) -> Search:
    """What `muon sweep run` does before it trains."""
    planned = plan_sweep(spec, storage)
    write_sweep(storage, sweep_record(planned))
    return Search(planned.spec, storage, at_most)


def train(storage: Folder, search: Search, losses: Callable[[PlannedRun], float] | None = None) -> list[PlannedRun]:
    """Let it choose all it will, each run ending before the next is chosen."""
    found = []
    while run := search.next():
        end(storage, run, losses(run) if losses else quadratic({"lr": run.config.optimizer.lr}))
        found.append(run)
    return found


def ids(runs: list[PlannedRun]) -> list[str]:
    return [run.run_id for run in runs]


def test_a_search_goes_on_from_the_store_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    whole = train(Folder(tmp_path / "whole"), begin(Folder(tmp_path / "whole"), rates()))
    parts = Folder(tmp_path / "parts")
    found = [run for at_most in (3, 4, 100) for run in train(parts, begin(parts, rates(), at_most))]
    assert ids(found) == ids(whole)
    assert len({*ids(whole)}) == 12
    record = read_sweep(parts, "rates")
    assert record
    assert [run.run_id for run in record.runs if run.block == "lr"] == ids(whole)
    assert record.to_choose == 0
    assert begin(parts, rates()).next() is None


def test_a_cell_is_recorded_before_it_is_trained_and_stays_chosen(storage: Folder) -> None:
    run = begin(storage, rates()).next()
    assert run
    planned = plan_sweep(rates(), storage)
    assert run.run_id in [other.run_id for other in planned.to_run]
    assert planned.search
    assert (planned.search.cells, planned.search.chosen, planned.search.counts) == (12, 1, {"planned": 1})
    assert len(planned.to_choose) == 11
    record = read_sweep(storage, "rates")
    assert record
    assert record.to_choose == 11


def test_what_two_calls_choose_at_the_same_moment_is_kept_of_both(storage: Folder, tmp_path: Path) -> None:
    """Each in a copy of the store, as if neither saw the record of the other before it wrote its own."""
    ours = begin(storage, rates())
    copy = Folder(shutil.copytree(tmp_path / "results", tmp_path / "copy"))
    first, twin = ours.next(), begin(copy, rates()).next()
    assert first
    assert twin
    assert first.run_id == twin.run_id  # from the same results; the lease says who trains it
    other = begin(copy, rates((GIVEN, CHOSEN.replace("0.02", "0.5")))).next()
    assert other
    for key, _ in copy.list("sweeps/rates/"):
        storage.put(key, copy.get(key))
    found = {round(run.config.optimizer.lr, 9) for run in ours.runs}
    assert {first.config.optimizer.lr, other.config.optimizer.lr, 0.5} == found
    assert ours.next()
    record = read_sweep(storage, "rates")
    assert record
    assert {run.run_id for run in record.runs if run.block == "lr"} == {*ids(ours.runs)}
    assert len(ours.runs) == 4


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (("n: 12", "n: 30"), 6),
        (("n: 12", "n: 4"), 4),
        (("loguniform(1e-3, 1)", "loguniform(1e-4, 2)"), 6),
        (("loguniform(1e-3, 1)", "loguniform(1e-2, 1)"), None),  # those within
        (("steps: 20", "steps: 30"), 0),
        (("lr: ", 'momentum: "uniform(0.1, 0.9)", lr: '), 0),
        (("seeds: [1]", "seeds: [1]\nquestion: Why?"), 6),
    ],
    ids=["more cells", "fewer cells", "wider", "narrower", "other constants", "another parameter", "another question"],
)
def test_a_cell_stays_as_long_as_the_file_gives_its_run(
    storage: Folder, change: tuple[str, str], kept: int | None
) -> None:
    found = train(storage, begin(storage, rates(), 6))
    planned = plan_sweep(rates(change), storage)
    stay = found if kept is None else found[:kept]
    wanted = [run for run in stay if kept is not None or run.config.optimizer.lr >= 0.01]
    assert ids(chosen_runs(planned.spec, planned.runs)) == ids(wanted)
    assert set(planned.unlisted) == {*ids(found)} - {*ids(wanted)}
    assert 0 < len(wanted) < 6 if kept is None else len(wanted) == kept


def test_a_run_that_failed_is_not_told_and_one_that_diverged_is_the_worst(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_jobs import searching

    search = begin(storage, rates())
    losses, statuses = iter([5.0, 1.0, 2.0, math.nan]), iter(["failed", "diverged", "done", "done"])
    runs = []
    for status in statuses:
        run = search.next()
        assert run
        end(storage, run, next(losses), status)
        runs.append(run)
    under_way = search.next()
    assert under_way
    seen: list[list[Told]] = []

    def asked(block: Any, told: list[Told], *others: Any) -> Iterator[Row]:
        seen.append(told)
        return suggestions(block, told, *others)

    monkeypatch.setattr(searching, "suggestions", asked)
    assert search.next()
    assert [told.value for told in seen[0]] == [math.inf, 2.0, math.inf, None]
    rates_told = [told.row["lr"] for told in seen[0]]
    assert rates_told == [run.config.optimizer.lr for run in (*runs[1:], under_way)]


def test_accuracy_is_told_as_the_answer_takes_it(storage: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_jobs import searching

    spec = rates(("version: 1", "version: 1\nmetrics: {primary: val_accuracy, at: best}"))
    search = begin(storage, spec)
    run, other = search.next(), None
    assert run
    end(storage, run, 3.0)
    seen: list[tuple[list[Told], str]] = []

    def asked(block: Any, told: list[Told], goal: Any, number: int) -> Iterator[Row]:
        seen.append((told, goal))
        return suggestions(block, told, goal, number)

    monkeypatch.setattr(searching, "suggestions", asked)
    other = search.next()
    assert other
    assert seen == [([Told({"lr": run.config.optimizer.lr}, 0.25)], "max")]


def test_a_cell_that_another_sweep_trained_is_chosen_and_not_trained(storage: Folder) -> None:
    """Also where it is the baseline's run."""
    spec = rates(("n: 12", "n: 3"), ('"loguniform(1e-3, 1)"', '"choice(0.02, 0.1, 0.2)"'))
    for run, loss in zip(expand(rates(("searcher: optuna, ", ""))), count(), strict=False):
        if run.block == "base" or run.config.optimizer.lr == 0.1:
            end(storage, run, float(loss))
    done = run_of(spec, {"lr": 0.1})
    assert done
    end(storage, done, 1.0)
    found = train(storage, begin(storage, spec))
    assert [run.config.optimizer.lr for run in found] == [0.2]
    planned = plan_sweep(spec, storage)
    assert planned.search
    assert (planned.search.chosen, planned.search.counts, planned.to_choose) == (3, {"done": 3}, ())


# ---- plan, run, status


def test_the_plan_tells_what_is_chosen_and_what_will_be(muon: Muon, tmp_path: Path) -> None:
    Path("rates.yaml").write_text(TEXT)
    fresh = muon("sweep", "plan", "rates.yaml").out
    assert "1 run: 1 arm x 1 seed" in fresh
    assert "search: 12 cells of block lr, chosen as results come; 0 chosen so far\n" in fresh
    assert "to run: 13 runs, 12 of them to be chosen, " in fresh
    assert "one seed gives no interval and resolves nothing; confirm the best (" in fresh
    storage = Folder("results")
    search = begin(storage, rates(), 5)
    runs = [run for run in islice(iter(search.next, None), 5) if run]
    for run in runs[:3]:
        end(storage, run, 3.0)
    shown = muon("sweep", "plan", "rates.yaml")
    assert "search: 12 cells of block lr, chosen as results come; 5 chosen so far: 3 done, 2 planned\n" in shown.out
    assert "to run: 10 runs, 7 of them to be chosen, " in shown.out
    told = json.loads(muon("sweep", "plan", "rates.yaml", "--json").out)
    assert told["to_choose"] == 7
    assert told["search"] == {"block": "lr", "cells": 12, "chosen": 5, "counts": {"done": 3, "planned": 2}}
    assert len(told["to_run"]) == 3
    assert told["training_tokens"] == 10 * told["training_tokens"] // 10 > 0


def test_without_optuna_a_search_is_refused_unless_it_is_complete(
    storage: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = rates(("n: 12", "n: 2"))
    train(storage, begin(storage, few))
    monkeypatch.setattr("ray_jobs.sweep_plan.find_spec", lambda name: None)
    assert plan_sweep(few, storage).to_choose == ()
    with pytest.raises(SpecError) as caught:
        plan_sweep(rates(), storage)
    assert caught.value.lines == (
        "rates.yaml:9: blocks[lr]: sample.searcher needs Optuna, which is not installed; pip install "
        '"muon-jobs[search]"',
    )


@pytest.mark.parametrize(
    ("condition", "to_run", "to_choose"),
    [
        ("block = 'lr'", 2, 10),
        ("block = 'base'", 1, 0),
        ("seed = 1", 3, 10),
        ("lr < 0.05", None, 0),
        ("role = 'candidate' and lr > 0", 2, 10),
    ],
)
def test_only_keeps_a_search_that_it_speaks_of_as_a_whole(
    storage: Folder, condition: str, to_run: int | None, to_choose: int
) -> None:
    search = begin(storage, rates())
    search.next()
    search.next()
    planned = plan_sweep(rates(), storage, only=condition)
    assert len(planned.to_choose) == to_choose
    if to_run is not None:
        assert len(planned.to_run) == to_run


def test_the_cells_of_a_search_are_one_arm_for_the_breaker() -> None:
    spec = rates((GIVEN, CHOSEN))
    breaker = Breaker({"base-run": "base"}, same_error=2)
    assert plan(spec, {}).search
    for run in ("a", "b"):
        assert breaker.refuse(run) is None
        breaker.note(run, "failed", "ValueError: no")
    assert str(breaker.refuse("c")).startswith("breaker: 2 runs of this arm died alike")
    assert breaker.refuse("base-run") is None


def test_money_counts_cells_that_are_to_be_chosen(storage: Folder) -> None:
    planned = plan_sweep(rates(), storage)
    costs = money(planned, storage)
    assert planned.seconds == pytest.approx(13 * planned.estimate.seconds[planned.runs[0].arm_id])
    admission = costs.admission()
    assert admission.usual_s == pytest.approx(planned.seconds / 13)
    assert Admission().usual_s == 0
    assert costs.refusal() is None


def test_status_sees_what_a_search_chooses_while_it_looks_and_is_not_over_before(storage: Folder) -> None:
    spec = rates(("n: 12", "n: 2"))
    search = begin(storage, spec)
    end(storage, expand(spec)[0], 3.0)
    follower = Follower(open_store(storage).sweep("rates"))
    standing = follower.look()
    assert (standing.counts, standing.to_choose, standing.is_over) == ({"done": 1}, 2, False)
    first = search.next()
    assert first
    standing = follower.look()
    assert (standing.counts, standing.to_choose, standing.is_over) == ({"done": 1, "planned": 1}, 1, False)
    end(storage, first, 2.0)
    second = search.next()
    assert second
    end(storage, second, 1.0)
    standing = follower.look()
    assert (standing.counts, standing.to_choose, standing.is_over) == ({"done": 3}, 0, True)
    assert standing.best
    assert standing.best.value == 1.0


def test_its_best_cells_are_confirmed_on_fresh_seeds(muon: Muon) -> None:
    Path("rates.yaml").write_text(TEXT)
    storage = Folder("results")
    search = begin(storage, rates())
    end(storage, expand(rates())[0], 3.0)
    found = train(storage, search, lambda run: 2 + quadratic({"lr": run.config.optimizer.lr}))
    best = min(found, key=lambda run: quadratic({"lr": run.config.optimizer.lr}))
    shown = muon("sweep", "confirm", "rates", "--top", "1", "--fresh-seeds", "2")
    assert shown.code == 0, shown.err
    written = parse_spec(Path("rates-confirm.yaml").read_text())
    assert written.seeds == [2, 3]
    assert to_choose(written) == 0
    assert {run.config.optimizer.lr for run in expand(written)} == {0.02, best.config.optimizer.lr}


def test_show_gives_a_file_that_goes_on_in_another_store(muon: Muon, tmp_path: Path) -> None:
    Path("rates.yaml").write_text(TEXT)
    storage = Folder("results")
    found = train(storage, begin(storage, rates(), 4))
    text = muon("sweep", "show", "rates").out
    again = plan_sweep(parse_spec(text), Folder(tmp_path / "elsewhere"))
    assert [run.run_id for run in again.to_run if run.block == "lr"] == ids(found)


def test_planning_a_search_loads_neither_optuna_nor_ray(tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text(TEXT)
    begin(Folder(tmp_path / "results"), rates(), 3).next()
    unwanted = {"optuna", "sqlalchemy", "torch", "ray", "altair", "polars"}
    test_cli.test_commands_that_train_nothing_import_nothing_heavy(["sweep", "plan", "rates.yaml"], unwanted, tmp_path)


def test_tune_is_given_the_runs_there_are_and_then_those_chosen_until_one_cannot_begin(storage: Folder) -> None:
    from ray.tune.search import Searcher

    from ray_jobs.tune_searcher import CellSearcher

    base = expand(rates())[0]
    searcher = CellSearcher([base.config], begin(storage, rates()), lambda run: {"run_id": run.run_id})
    assert searcher.suggest("a") == {"run": {"run_id": base.run_id}}
    chosen = searcher.suggest("b")
    assert chosen == {"run": {"run_id": searcher.chosen[0].run_id}}
    searcher.on_trial_complete("a", {"status": "done"})
    assert searcher.suggest("c") not in (chosen, Searcher.FINISHED)
    searcher.on_trial_complete("b", {"status": "left out"})
    assert searcher.suggest("d") == Searcher.FINISHED
    assert searcher.error is None


def test_a_store_that_fails_ends_the_search_and_is_told_when_the_runs_under_way_have_ended(storage: Folder) -> None:
    from ray.tune.search import Searcher

    from ray_jobs.tune_searcher import CellSearcher

    searcher = CellSearcher([], begin(storage, rates()), lambda run: {"run_id": run.run_id})
    (key, _) = storage.list("sweeps/rates/")[-1]
    storage.put(key, b"{")
    assert searcher.suggest("a") == Searcher.FINISHED
    assert "is not JSON" in str(searcher.error)
