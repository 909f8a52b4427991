"""The queue without Ray: which run a slot's workers get, and what they and the trial hear."""

import asyncio
from typing import Any

import pytest

from muon_core.failures import Kind
from muon_core.progress import Progress
from muon_core.store.storage import StoreError
from ray_jobs import run_queue
from ray_jobs.retrying import Preempted
from ray_jobs.run_queue import RunQueue, RunState
from search_spaces.limits import Retries

PLACES: Any = object()  # a placement group, which the queue only keeps


def progress(step: int, val_loss: float | None = None) -> Progress:
    return Progress("r", step, 10, 1.0, val_loss, 1000, 100.0, 1.0)


def test_next_hands_out_the_submitted_run_and_counts_restarts() -> None:
    async def story() -> None:
        queue = RunQueue()
        turn = await queue.submit("slot", "r", "{}")
        first, again = await queue.next("slot"), await queue.next("slot")
        assert first is not None
        assert again is not None
        assert (first.turn, first.config, first.starts) == (turn, "{}", 1)
        assert (again.turn, again.starts) == (turn, 2)

    asyncio.run(story())


def test_a_run_asked_for_again_begins_anew_until_workers_have_begun_it() -> None:
    """Those that take over from dead ones go on with what these began. The next run of the slot is one as any."""

    async def story() -> None:
        queue = RunQueue()
        turn = await queue.submit("slot", "r", "{}", again=True)
        tasks = [await queue.next("slot"), await queue.next("slot")]
        begun = Progress("r", 1, 10, 1.0, None, 1000, 100.0, 1.0, attempt="00002.aa")
        await queue.report("slot", turn, begun)
        tasks.append(await queue.next("slot"))
        await queue.finish("slot", turn, "done")
        await queue.submit("slot", "s", "{}")
        tasks.append(await queue.next("slot"))
        assert [task.again for task in tasks if task] == [True, True, False, False]
        assert len({task.log for task in tasks if task}) == 4  # each start has a log of its own

    asyncio.run(story())


def test_next_waits_for_a_run_and_ends_with_none_when_the_slot_closes() -> None:
    async def story() -> None:
        queue = RunQueue()
        waiting = asyncio.create_task(queue.next("slot"))
        await asyncio.sleep(0)
        await queue.submit("slot", "r", "{}")
        task = await waiting
        assert task is not None
        await queue.finish("slot", task.turn, "done")
        waiting = asyncio.create_task(queue.next("slot"))
        await asyncio.sleep(0)
        await queue.close("slot")
        assert await waiting is None

    asyncio.run(story())


def test_a_finished_run_is_not_handed_out_again_but_the_next_is() -> None:
    async def story() -> None:
        queue = RunQueue()
        first = await queue.submit("slot", "a", "A")
        await queue.finish("slot", first, "failed", "boom")
        second = await queue.submit("slot", "b", "B")
        task = await queue.next("slot")
        assert task is not None
        assert (task.turn, task.config) == (second, "B")
        assert [(run.run_id, run.status, run.error) for run in await queue.runs()] == [
            ("a", "failed", "boom"),
            ("b", "running", None),
        ]

    asyncio.run(story())


def test_report_stops_a_superseded_run_and_every_run_once_asked_to() -> None:
    async def story() -> None:
        queue = RunQueue()
        old = await queue.submit("slot", "a", "A")
        assert await queue.report("slot", old, progress(1))
        new = await queue.submit("slot", "b", "B")
        assert not await queue.report("slot", old, progress(2))
        assert await queue.report("slot", new, progress(1))
        await queue.stop()
        assert not await queue.report("slot", new, progress(2))

    asyncio.run(story())


def test_wait_returns_at_another_val_loss_at_the_end_and_after_the_timeout() -> None:
    async def story() -> None:
        queue = RunQueue()
        turn = await queue.submit("slot", "a", "A")
        quiet = await queue.wait("slot", turn, None, 0.01)
        assert quiet.progress is None
        waiting = asyncio.create_task(queue.wait("slot", turn, None, 60))
        await asyncio.sleep(0)
        await queue.report("slot", turn, progress(1, val_loss=3.0))
        state = await waiting
        assert state.progress is not None
        assert state.progress.val_loss == 3.0
        waiting = asyncio.create_task(queue.wait("slot", turn, 3.0, 60))
        await asyncio.sleep(0)
        await queue.finish("slot", turn, "done")
        assert (await waiting).status == "done"

    asyncio.run(story())


def test_first_step_is_timed_at_the_first_report_after_step_0() -> None:
    async def story() -> None:
        queue = RunQueue()
        turn = await queue.submit("slot", "a", "A")
        await queue.report("slot", turn, progress(0))
        (run,) = await queue.runs()
        assert run.first_step_at is None
        await queue.report("slot", turn, progress(1))
        first = run.first_step_at
        assert first is not None
        await queue.report("slot", turn, progress(2))
        assert run.first_step_at == first

    asyncio.run(story())


def test_a_store_that_failed_halts_every_slot() -> None:
    async def story() -> None:
        queue = RunQueue()
        turns = [await queue.submit(slot, slot, "{}") for slot in ("a", "b")]
        for slot in ("a", "b"):
            await queue.next(slot)
        await queue.halt("a", turns[0], StoreError("full"))
        ended, going, error = await queue.look()
        assert [(run.run_id, run.status, run.error) for run in ended] == [("a", "stopped", "full")]
        assert [run.run_id for run in going] == ["b"]
        assert str(error) == "full"
        assert (await queue.look(1))[0] == []  # what was told once is not told again
        assert not await queue.report("b", turns[1], progress(3))

    asyncio.run(story())


def test_a_run_is_tried_again_as_often_as_what_ended_it_allows() -> None:
    async def story(retries: Retries, failures: list[Kind]) -> str | None:
        queue = RunQueue(retries=retries)
        await queue.submit("slot", "r", "{}")
        for failure in failures:
            assert await queue.next("slot") is not None
            await queue.lose("slot", failure)
            await queue.lose("slot", "program")  # what comes later of the same start is not believed
        task = await queue.next("slot")
        assert task is not None
        assert task.failure == failures[-1]
        assert task.starts == len(failures) + 1
        return task.over

    def over(retries: Retries, failures: list[Kind]) -> str | None:
        return asyncio.run(story(retries, failures))

    assert over(Retries(), ["preemption"] * 9) is None
    assert over(Retries(preemption=0), ["preemption"]) == (
        "its node was taken back once in this run; `retries.preemption` allows 0"
    )
    assert over(Retries(), ["infrastructure", "hang", "infrastructure", "preemption"]) is None
    assert over(Retries(), ["infrastructure", "hang", "hang", "infrastructure"]) == (
        "a worker died 2 times and it hung 2 times in this run; `retries.infrastructure` allows 3"
    )
    assert over(Retries(), ["out_of_memory"]) == "it ran out of memory once in this run; `retries.program` allows 0"
    assert over(Retries(program=1), ["out_of_memory"]) is None


def test_workers_that_ask_again_without_a_word_have_lost_one_of_them() -> None:
    async def story() -> None:
        queue = RunQueue(retries=Retries(infrastructure=1))
        await queue.submit("slot", "r", "{}")
        tasks = [await queue.next("slot") for _ in range(3)]
        assert [task.failure for task in tasks if task] == [None, "infrastructure", "infrastructure"]
        assert [task.over for task in tasks if task] == [
            None, None, "a worker died 2 times in this run; `retries.infrastructure` allows 1"
        ]  # fmt: skip

    asyncio.run(story())


def test_workers_that_die_before_they_ask_for_the_run_use_up_its_retries() -> None:
    """Else others would be started for ever that can no better."""

    async def story() -> None:
        queue = RunQueue(retries=Retries(infrastructure=1))
        await queue.submit("slot", "r", "{}")
        for _ in range(2):
            assert [run.status for run in await queue.runs()] != ["failed"]
            await queue.hold("slot", "actor", None)  # type: ignore[arg-type]
            await queue.lose("slot", "infrastructure")
        (run,) = await queue.runs()
        assert (run.status, run.error) == (
            "failed",
            "a worker died 2 times in this run; `retries.infrastructure` allows 1; it did not come as far as to begin",
        )
        await queue.submit("slot", "s", "{}")  # for which workers that start may be better ones
        await queue.hold("slot", "actor", None)  # type: ignore[arg-type]
        task = await queue.next("slot")
        assert task is not None
        assert (task.starts, task.failure) == (1, None)

    asyncio.run(story())


def test_an_attempt_is_known_since_its_claim_but_a_run_asked_for_again_begins_when_it_reports() -> None:
    async def story() -> None:
        queue = RunQueue()
        turn = await queue.submit("slot", "r", "{}", again=True)
        await queue.next("slot")
        await queue.claim("slot", turn, "00002.aa")
        await queue.claim("slot", turn - 1, "00009.ff")  # of an older run
        await queue.lose("slot", "infrastructure")
        task = await queue.next("slot")
        assert task is not None
        assert (task.attempt, task.again) == ("00002.aa", True)

    asyncio.run(story())


def test_an_exception_ends_a_run_unless_it_may_be_tried_again() -> None:
    """All ranks tell of it; the one that comes late tells of a start that nobody is at any more."""

    async def story(program: int) -> list[RunState]:
        queue = RunQueue(retries=Retries(program=program))
        turn = await queue.submit("slot", "r", "{}")
        for start in (1, 2):
            waiting = asyncio.create_task(queue.next("slot"))
            await asyncio.sleep(0)
            for rank in (0, 1):
                await queue.fail("slot", turn, start, "program", f"error {start} of rank {rank}")
            await queue.fail("slot", turn, start - 1, "program", "late")
            await queue.lose("slot", "infrastructure")
            waiting.cancel()
        return await queue.runs()

    for program, starts in ((0, 1), (1, 2), (2, 2)):
        (run,) = asyncio.run(story(program))
        assert (run.status, run.starts) == ("running" if program == 2 else "failed", starts)
        assert run.error == (None if program == 2 else f"error {starts} of rank 0")
        assert run.failures == ["program"] * starts


def test_nothing_is_tried_again_once_the_sweep_is_asked_to_stop() -> None:
    async def story() -> None:
        queue = RunQueue(retries=Retries(program=9))
        turn = await queue.submit("slot", "r", "{}")
        await queue.next("slot")
        await queue.stop()
        await queue.fail("slot", turn, 1, "program", "boom")
        assert [(run.status, run.error) for run in await queue.runs()] == [("failed", "boom")]

    asyncio.run(story())


class Clock:
    """Seconds, set by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


def test_a_run_hangs_when_no_step_comes_after_one_of_this_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first one data is prepared and the model compiled, in each start anew."""
    clock = Clock()
    monkeypatch.setattr(run_queue, "time", clock)

    async def story() -> None:
        queue = RunQueue(retries=Retries(hang_after_s=10))
        patient = RunQueue(retries=Retries(hang_after_s=None))
        for each in (queue, patient):
            turn = await each.submit("slot", "r", "{}")
            assert await each.hang("slot") is None
            for _ in range(2):
                await each.next("slot")
                clock.now += 100
                await each.report("slot", turn, progress(5))  # taken up there
                clock.now += 100
                assert await each.hang("slot") is None
                await each.report("slot", turn, progress(6))
                clock.now += 9
                assert await each.hang("slot") is None
                clock.now += 2
                hangs = None if each is patient else "no step for 11 s; `retries.hang_after_s` is 10"
                assert await each.hang("slot") == hangs
                await each.lose("slot", "hang")
                assert await each.hang("slot") is None  # it is being started again
            await each.finish("slot", turn, "done")
            assert await each.hang("slot") is None

    asyncio.run(story())


def test_runs_that_wait_for_workers_end_when_the_sweep_is_to_end() -> None:
    """On a cluster without room nobody would ever ask for them."""

    async def story() -> None:
        stopped, closed = RunQueue(), RunQueue()
        for queue in (stopped, closed):
            await queue.submit("busy", "a", "{}")
            await queue.next("busy")
            await queue.submit("lost its workers", "b", "{}")
            await queue.next("lost its workers")
            await queue.lose("lost its workers", "infrastructure")
            await queue.submit("never had any", "c", "{}")
        await stopped.stop()
        await closed.close_admission("stop: asked for", at_once=False)
        await closed.submit("idle", "d", "{}")
        told = [[(run.run_id, run.status, run.error) for run in await queue.runs()] for queue in (stopped, closed)]
        assert told[0] == [("a", "running", None), ("b", "stopped", None), ("c", "stopped", None)]
        reason = "stop: asked for"
        assert told[1] == [
            ("a", "running", None),
            ("b", "left out", reason),
            ("c", "left out", reason),
            ("d", "left out", reason),
        ]

    asyncio.run(story())


def test_workers_are_started_only_for_a_run_and_never_once_the_slot_closes() -> None:
    async def story() -> None:
        queue = RunQueue()
        wanted = asyncio.create_task(queue.wants_workers("slot"))
        await asyncio.sleep(0)
        assert not wanted.done()
        turn = await queue.submit("slot", "r", "{}")
        assert await wanted
        await queue.next("slot")
        await queue.finish("slot", turn, "failed", "boom")
        wanted = asyncio.create_task(queue.wants_workers("slot"))
        await asyncio.sleep(0)
        assert not wanted.done()  # the run failed and there is no other yet
        await queue.close_all()
        assert not await wanted
        assert not await queue.hold("slot", "actor", PLACES)

    asyncio.run(story())


def test_a_run_whose_node_is_taken_back_saves_itself_and_goes_on_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.places.nodes", lambda group: {"n1", "n2"})

    async def story() -> None:
        queue = RunQueue(retries=Retries(infrastructure=0))
        turn = await queue.submit("slot", "r", "{}")
        await queue.hold("slot", "actor", PLACES)
        await queue.next("slot")
        assert await queue.report("slot", turn, progress(0)) is True
        queue._leaving = {"n2": "10.0.0.2", "n9": "10.0.0.9"}
        reason = await queue.report("slot", turn, progress(3))
        assert reason == "preempted: node 10.0.0.2 is taken back"
        assert not await queue.finish("slot", turn, "stopped", reason)
        with pytest.raises(Preempted, match=r"10\.0\.0\.2"):  # which ends these workers; others are started elsewhere
            await queue.next("slot")
        queue._leaving = {}
        task = await queue.next("slot")
        assert task is not None
        assert (task.starts, task.failure, task.over) == (2, "preemption", None)
        assert await queue.finish("slot", turn, "done")

    asyncio.run(story())


@pytest.mark.parametrize(("steps", "failure"), [(0, "infrastructure"), (1, "preemption")])
def test_a_node_that_is_gone_was_taken_back_unless_the_run_made_no_step(steps: int, failure: Kind) -> None:
    async def story() -> None:
        queue = RunQueue()
        turn = await queue.submit("slot", "r", "{}")
        await queue.next("slot")
        for step in range(steps + 1):
            await queue.report("slot", turn, progress(step))
        await queue.lose("slot", "infrastructure", node_is_gone=True)
        task = await queue.next("slot")
        assert task is not None
        assert task.failure == failure

    asyncio.run(story())
