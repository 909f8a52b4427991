"""Which runs may start within a budget, and when those under way save themselves."""

import pytest

from muon_core.progress import Progress
from muon_core.store.ledger import Rate
from ray_jobs import admission as module
from ray_jobs.admission import Admission, Limits

DOLLAR_A_SECOND = Rate(usd_per_hour=3600.0)


class Clock:
    """Seconds, set by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def progress(run: str, step: int, steps: int = 10) -> Progress:
    return Progress(run, step, steps, None, None, 0, None, 0.0)


def test_without_a_budget_everything_may_start(clock: Clock) -> None:
    admission = Admission()
    assert admission.refuse("a", Rate(usd_per_hour=None)) is None
    admission.start("a")
    assert admission.stop(progress("a", 1)) is None


def test_a_run_starts_only_if_it_fits_beside_what_is_spent_and_under_way(clock: Clock) -> None:
    admission = Admission(Limits(usd=30), {"old": 5.0}, dict.fromkeys("abc", 10.0), is_measured=True)
    for run in "ab":
        assert admission.refuse(run, DOLLAR_A_SECOND) is None
        admission.start(run)
    refused = admission.refuse("c", DOLLAR_A_SECOND)
    assert refused is not None
    assert "5 USD spent, 20 for runs under way and about 10 for this one are more than budget.usd, 30" in refused
    clock.now = 10.0
    admission.end("a", "done")
    assert admission.refuse("c", DOLLAR_A_SECOND) is not None  # 25 are spent now


def test_what_runs_take_is_learned_from_those_that_trained(clock: Clock) -> None:
    admission = Admission(Limits(usd=20), {}, {"a": 1.0, "b": 2.0}, is_measured=False)
    assert admission.refuse("a", DOLLAR_A_SECOND) is None
    admission.start("a")
    clock.now = 8.0
    admission.end("a", "done", whole=True)
    assert "about 16 for this one" in (admission.refuse("b", DOLLAR_A_SECOND) or "")


def test_a_run_that_takes_longer_than_expected_saves_itself_when_the_money_is_gone(clock: Clock) -> None:
    admission = Admission(Limits(usd=10), {}, {"a": 5.0}, is_measured=True)
    assert admission.refuse("a", DOLLAR_A_SECOND) is None
    admission.start("a")
    assert admission.stop(progress("a", 0)) is None
    clock.now = 6.0
    assert admission.stop(progress("a", 1)) is None
    assert admission.committed_usd == pytest.approx(54.0)  # nine steps are left
    clock.now = 7.0  # which leaves three seconds to save it
    assert "7 USD spent, budget.usd is 10" in (admission.stop(progress("a", 1)) or "")


def test_a_run_that_gets_to_its_end_with_the_last_of_the_money_is_let_go_on(clock: Clock) -> None:
    admission = Admission(Limits(usd=10), {}, {"a": 10.0}, is_measured=True)
    assert admission.refuse("a", DOLLAR_A_SECOND) is None
    admission.start("a")
    assert admission.stop(progress("a", 0, 100)) is None
    clock.now = 9.5
    assert admission.stop(progress("a", 96, 100)) is None


def test_stop_at_once_ends_the_others_when_a_run_no_longer_fits(clock: Clock) -> None:
    for at_once in (False, True):
        admission = Admission(Limits(usd=15, stop_at_once=at_once), {}, dict.fromkeys("ab", 10.0), is_measured=True)
        assert admission.refuse("a", DOLLAR_A_SECOND) is None
        admission.start("a")
        assert admission.refuse("b", DOLLAR_A_SECOND) is not None
        assert (admission.stop(progress("a", 0)) is not None) == at_once


def test_a_run_has_a_limit_of_its_own_over_all_its_attempts(clock: Clock) -> None:
    admission = Admission(Limits(per_run_usd=3), {"a": 2.0, "b": 3.5})
    assert "3.50 USD spent on it" in (admission.refuse("b", DOLLAR_A_SECOND) or "")
    assert admission.refuse("a", DOLLAR_A_SECOND) is None
    admission.start("a")
    clock.now = 0.5
    assert admission.stop(progress("a", 1)) is None
    clock.now = 1.0
    assert "budget.per_run_usd is 3" in (admission.stop(progress("a", 1)) or "")


def test_a_budget_is_not_kept_by_a_price_nobody_knows(clock: Clock) -> None:
    unknown = Rate("huge", None, "no price for 'huge'")
    assert admission_refusal(Limits(usd=5), unknown) == "budget: no price for 'huge'"
    assert admission_refusal(Limits(per_run_usd=5), unknown) == "budget: no price for 'huge'"


def test_what_costs_nothing_runs_on_a_budget_that_is_spent(clock: Clock) -> None:
    admission = Admission(Limits(usd=5), {"old": 5.0})
    assert admission.refuse("a", Rate()) is None
    admission.start("a")
    assert admission.stop(progress("a", 1)) is None


def admission_refusal(limits: Limits, rate: Rate) -> str | None:
    return Admission(limits).refuse("a", rate)


def test_a_resumed_run_is_judged_by_the_steps_it_did_itself(clock: Clock) -> None:
    admission = Admission(Limits(usd=100), {}, {"a": 50.0}, is_measured=True)
    assert admission.refuse("a", DOLLAR_A_SECOND) is None
    admission.start("a")
    assert admission.stop(progress("a", 90, 100)) is None
    clock.now = 5.0
    assert admission.stop(progress("a", 91, 100)) is None
    assert admission.committed_usd == pytest.approx(45.0)  # nine steps of five seconds
    admission.end("a", "done")
    assert admission.refuse("b", DOLLAR_A_SECOND) is None


def test_a_start_that_died_is_paid_for_once_and_is_not_under_way(clock: Clock) -> None:
    admission = Admission(Limits(usd=10), {}, {"a": 6.0}, is_measured=True)
    assert admission.refuse("a", DOLLAR_A_SECOND) is None
    admission.start("a")
    clock.now = 1.0
    admission.settle("a")
    assert (admission.spent_usd, admission.committed_usd) == (1.0, 0.0)
    assert admission.refuse("a", DOLLAR_A_SECOND) is None  # 1 is spent and it may take 6


def test_what_another_process_counted_is_taken_over_but_not_that_it_was_open(clock: Clock) -> None:
    here, there = Admission(Limits(usd=10)), Admission(Limits(usd=10))
    here.close("stop: asked for", at_once=False)
    there.start("a")
    there.rate = DOLLAR_A_SECOND
    there.start("a")
    clock.now = 4.0
    there.end("a", "done")
    here.learn(there)
    assert here.spent_usd == 4.0
    assert here.refuse("b", DOLLAR_A_SECOND) == "stop: asked for"
