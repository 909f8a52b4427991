"""The desk without Ray: which run a slot's workers get, and what they and the trial hear."""

import asyncio

from muon_core.progress import Progress
from ray_jobs.run_queue import Desk


def progress(step: int, val_loss: float | None = None) -> Progress:
    return Progress("r", step, 10, 1.0, val_loss, 1000, 100.0, 1.0)


def test_next_hands_out_the_submitted_run_and_counts_restarts() -> None:
    async def story() -> None:
        desk = Desk()
        seq = await desk.submit("slot", "r", "{}")
        first, again = await desk.next("slot"), await desk.next("slot")
        assert first is not None
        assert again is not None
        assert (first.seq, first.config, first.starts) == (seq, "{}", 1)
        assert (again.seq, again.starts) == (seq, 2)

    asyncio.run(story())


def test_next_waits_for_a_run_and_ends_with_none_when_the_slot_closes() -> None:
    async def story() -> None:
        desk = Desk()
        waiting = asyncio.create_task(desk.next("slot"))
        await asyncio.sleep(0)
        await desk.submit("slot", "r", "{}")
        task = await waiting
        assert task is not None
        await desk.finish("slot", task.seq, "done")
        waiting = asyncio.create_task(desk.next("slot"))
        await asyncio.sleep(0)
        await desk.close("slot")
        assert await waiting is None

    asyncio.run(story())


def test_a_finished_run_is_not_handed_out_again_but_the_next_is() -> None:
    async def story() -> None:
        desk = Desk()
        first = await desk.submit("slot", "a", "A")
        await desk.finish("slot", first, "failed", "boom")
        second = await desk.submit("slot", "b", "B")
        task = await desk.next("slot")
        assert task is not None
        assert (task.seq, task.config) == (second, "B")
        assert [(run.run_id, run.state, run.error) for run in await desk.runs()] == [
            ("a", "failed", "boom"),
            ("b", "running", None),
        ]

    asyncio.run(story())


def test_report_stops_a_superseded_run_and_every_run_once_asked_to() -> None:
    async def story() -> None:
        desk = Desk()
        old = await desk.submit("slot", "a", "A")
        assert await desk.report("slot", old, progress(1))
        new = await desk.submit("slot", "b", "B")
        assert not await desk.report("slot", old, progress(2))
        assert await desk.report("slot", new, progress(1))
        await desk.stop()
        assert not await desk.report("slot", new, progress(2))

    asyncio.run(story())


def test_wait_returns_at_another_val_loss_at_the_end_and_after_the_timeout() -> None:
    async def story() -> None:
        desk = Desk()
        seq = await desk.submit("slot", "a", "A")
        quiet = await desk.wait("slot", seq, None, 0.01)
        assert quiet.progress is None
        waiting = asyncio.create_task(desk.wait("slot", seq, None, 60))
        await asyncio.sleep(0)
        await desk.report("slot", seq, progress(1, val_loss=3.0))
        state = await waiting
        assert state.progress is not None
        assert state.progress.val_loss == 3.0
        waiting = asyncio.create_task(desk.wait("slot", seq, 3.0, 60))
        await asyncio.sleep(0)
        await desk.finish("slot", seq, "done")
        assert (await waiting).state == "done"

    asyncio.run(story())


def test_first_step_is_timed_at_the_first_report_after_step_0() -> None:
    async def story() -> None:
        desk = Desk()
        seq = await desk.submit("slot", "a", "A")
        await desk.report("slot", seq, progress(0))
        (run,) = await desk.runs()
        assert run.first_step_at is None
        await desk.report("slot", seq, progress(1))
        first = run.first_step_at
        assert first is not None
        await desk.report("slot", seq, progress(2))
        assert run.first_step_at == first

    asyncio.run(story())
