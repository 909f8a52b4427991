"""The queue without Ray: which run a slot's workers get, and what they and the trial hear."""

import asyncio

from muon_core.progress import Progress
from muon_core.store.storage import StoreError
from ray_jobs.run_queue import RunQueue


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
        states, error = await queue.look()
        assert (states[0].status, states[0].error) == ("stopped", "full")
        assert str(error) == "full"
        assert not await queue.report("b", turns[1], progress(3))

    asyncio.run(story())
