"""Arms whose runs die alike start no more, others do; how a run diverged may end its sweep."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from muon_core.store.folder import Folder
from muon_core.store.ledger import LOCAL
from muon_core.store.reader import read_statuses
from muon_core.store.writer import RunWriter
from ray_jobs.admission import Admission
from ray_jobs.breaker import Breaker, Ended, sweep_breaker
from search_spaces.expand import expand
from search_spaces.plan import plan
from search_spaces.spec import parse_spec

ARMS = {f"{arm}{seed}": arm for arm in "ab" for seed in range(5)}
SPEC = """\
version: 1
name: hunt
seeds: [1, 2, 3]
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - {name: other, optimizer: adamw}
breaker: {same_error: 2}
stop: [{when: spike, action: drain}]
"""


def test_an_arm_whose_runs_die_alike_starts_no_more_and_others_go_on() -> None:
    admission = Admission(breaker=Breaker(ARMS, 3))
    for run, error in (("a0", "ValueError: 1 bad"), ("a1", "ValueError: 2 bad"), ("b0", "ValueError: 3 bad")):
        admission.end(run, "failed", error)
    admission.end("a2", "failed", "TypeError: bad")  # another death
    admission.end("a3", "done")
    assert admission.refuse("a4", LOCAL) is None
    admission.end("a3", "failed", "ValueError: 4 bad")
    assert admission.refuse("a4", LOCAL) == "breaker: 3 runs of this arm died alike: ValueError: 4 bad"
    assert admission.refuse("b1", LOCAL) is None
    assert admission.refuse("of no arm", LOCAL) is None


def test_without_a_limit_an_arm_may_die_as_often_as_it_has_runs() -> None:
    breaker = Breaker(ARMS, None)
    for seed in range(5):
        breaker.note(f"a{seed}", "failed", "boom")
    assert breaker.refuse("a0") is None


def test_a_run_that_diverged_drains_its_sweep_where_that_is_asked_for() -> None:
    breaker = Breaker(ARMS, 1, {"spike"})
    breaker.note("a0", "diverged", "train loss nan at step 3")
    assert breaker.refuse("a1") is None
    breaker.note("a1", "diverged", "train loss 9.0000 at step 60 spiked by more than 1.0 nats")
    reason = breaker.refuse("b0")
    assert reason is not None
    assert reason.startswith("stop: a1 diverged (train loss 9.0000 at step 60 spiked")


def test_what_ended_before_counts() -> None:
    breaker = Breaker(ARMS, 2, (), {"a0": Ended("failed", "ValueError: 1"), "a1": Ended("failed", "ValueError: 2")})
    assert breaker.refuse("a2") == "breaker: 2 runs of this arm died alike: ValueError: 2"


def test_of_earlier_calls_what_is_still_failed_counts_until_it_is_asked_for_again(tmp_path: Path) -> None:
    """Two runs of the other arm failed alike, and one of the baseline's diverged by a spike."""
    storage, spec = Folder(tmp_path), parse_spec(SPEC)
    base, other = ([run for run in expand(spec) if run.block == block] for block in ("base", "other"))
    spiked = "train loss 9.0000 at step 60 spiked by more than 1.0 nats"
    for run, status, error in (
        (base[0], "diverged", spiked),
        (base[1], "done", None),
        (other[0], "failed", "ValueError: 1"),
        (other[1], "failed", "ValueError: 2"),
    ):
        RunWriter(storage, run.run_id, {}).end(status=status, error=error)

    def refused(text: str, retry: Collection[str] = ()) -> list[str]:
        """Of what is left to do, as the reasons begin."""
        planned = plan(parse_spec(text), read_statuses(storage), retry=retry)
        breaker = sweep_breaker(planned, storage)
        return [(breaker.refuse(run.run_id) or "").partition(":")[0] for run in (base[2], other[2])]

    assert refused(SPEC) == ["stop", "stop"]
    assert refused(SPEC, ["diverged"]) == ["", "breaker"]
    assert refused(SPEC, ["diverged", "failed"]) == ["", ""]
    again = plan(parse_spec(SPEC), read_statuses(storage), retry=["diverged", "failed"])
    narrowed = replace(again, to_run=tuple(run for run in again.to_run if run.block == "base"))
    assert sweep_breaker(narrowed, storage).refuse(other[2].run_id)  # of that arm none is trained again
    assert refused(SPEC.replace("drain", "fail")) == ["", "breaker"]
    assert refused(SPEC.replace("drain", "fail").replace("same_error: 2", "same_error: 3")) == ["", ""]
