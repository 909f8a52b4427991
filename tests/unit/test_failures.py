"""Which kind of failure an error is, and when two runs died alike."""

import traceback

import pytest
import torch
import torch.distributed as dist
from ray import exceptions as ray_errors
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from muon_core.distributed import LostPeers, check_whole
from muon_core.failures import classify, divergence, gravest, headline, signature

OF_A_DEAD_WORKER = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tpid: 4242\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The "
    "process is killed by SIGKILL by OOM killer due to high memory usage: out of memory."
)


def died(message: str = OF_A_DEAD_WORKER, *, preempted: bool = False) -> ray_errors.RayActorError:
    return ray_errors.RayActorError(error_msg=message, preempted=preempted)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("bad"), "program"),
        (RuntimeError("shapes differ"), "program"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"), "program"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] can't allocate memory"), "out_of_memory"),
        (ray_errors.OutOfMemoryError("Task was killed due to the node running low on memory."), "out_of_memory"),
        (died("The actor was killed due to the node running low on memory."), "out_of_memory"),
        (WorkerHealthCheckFailedError("poll", died()), "infrastructure"),
        (WorkerHealthCheckFailedError("poll", died(preempted=True)), "preemption"),
        (WorkerHealthCheckTimeoutError("no answer"), "infrastructure"),
        (died(preempted=True), "preemption"),
        (ray_errors.NodeDiedError("gone"), "infrastructure"),
        (ray_errors.WorkerCrashedError(), "infrastructure"),
        (LostPeers("of 2 workers this one is left"), "infrastructure"),
        (dist.DistBackendError("NCCL error: remote process exited"), "infrastructure"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "infrastructure"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_the_kind_of_a_failure_is_told_by_its_error(error: Exception, kind: str) -> None:
    assert classify(error) == kind


def test_a_worker_whose_process_group_was_taken_away_knows_that_it_is_alone() -> None:
    check_whole(1)
    with pytest.raises(LostPeers):
        check_whole(2)
    with pytest.raises(ValueError, match="process group") as without:
        dist.all_reduce(torch.zeros(1))
    assert classify(without.value) == "infrastructure"


def test_of_a_group_what_the_others_failed_by_is_the_kind() -> None:
    collateral = RuntimeError("gloo: Connection closed by peer")
    assert gravest([collateral, torch.OutOfMemoryError("CUDA out of memory")]) == "out_of_memory"
    assert gravest([ValueError("x"), died(preempted=True), collateral]) == "preemption"
    assert gravest([collateral, ValueError("x")]) == "infrastructure"
    assert gravest([ValueError("x")]) == "program"
    assert gravest([]) == "infrastructure"


def raised(error: Exception) -> str:
    try:
        raise error
    except Exception:
        return traceback.format_exc()


def test_errors_that_differ_in_numbers_ids_paths_and_runs_are_alike() -> None:
    first = "muon-s42-3f9a1c07: /tmp/a/x.bin at 0x7f12ab holds 1,024 of 3.5e-4, id 01f3ca9d22 in 's3://b/my runs/1'"
    second = "adamw-lr0.1-s7-0badcafe: /var/y at 0x1 holds 7 of 12, id 99aa88bb77 in '/elsewhere'"
    assert signature(raised(ValueError(first))) == signature(raised(ValueError(second)))
    assert signature(raised(ValueError(first))).startswith(
        "ValueError: <run>: <path> at <id> holds <n> of <n>, id <id> in <path> ("
    )
    assert "float32" in signature("TypeError: expected float32, got 3")


def test_errors_are_told_apart_by_type_words_and_place() -> None:
    def elsewhere() -> str:
        return raised(ValueError("bad 1"))

    def inner() -> None:
        raise ValueError("bad 1")

    def from_inner() -> str:
        try:
            inner()
        except ValueError:
            return traceback.format_exc()
        raise AssertionError

    texts = [raised(ValueError("bad 1")), raised(TypeError("bad 1")), raised(ValueError("good 1")), from_inner()]
    assert len({signature(text) for text in texts}) == len(texts)
    assert signature(elsewhere()) == signature(texts[0])  # raised at the same place, called from another


def test_the_place_is_the_innermost_frame_that_is_no_librarys() -> None:
    try:
        torch.zeros(2) @ torch.zeros(3, 4)
    except RuntimeError:
        text = traceback.format_exc()
    library = text.replace(
        "RuntimeError:",
        '  File "/x/lib/python3.11/site-packages/torch/f.py", line 3, in g\n    boom\nRuntimeError:',
    )
    assert signature(library) == signature(text)
    assert signature(text).endswith("test_failures.py, test_the_place_is_the_innermost_frame_that_is_no_librarys)")
    ours = '  File "/x/lib/python3.11/site-packages/muon_core/train.py", line 9, in _loop\n    f()\nKeyError: 1\n'
    assert signature(ours) == "KeyError: <n> (muon_core/train.py, _loop)"


def test_of_several_lines_and_of_the_end_of_a_traceback_the_exception_is_found() -> None:
    text = raised(ValueError("first line\nsecond line"))
    assert headline(text) == "ValueError: first line"
    assert headline("..." + text[9:]) == "ValueError: first line"
    try:
        try:
            raise KeyError("cause")
        except KeyError as cause:
            raise OSError("effect") from cause
    except OSError:
        assert headline(traceback.format_exc()) == "OSError: effect"
    assert headline("its slot broke\nbadly") == "its slot broke"
    assert (headline(None), signature(None)) == ("", "")


def test_how_a_run_diverged_is_told_by_its_record() -> None:
    assert divergence("train loss nan at step 3") == "nonfinite"
    assert divergence("gradient norm inf at step 3") == "nonfinite"
    assert divergence("train loss 9.1000 at step 60 spiked by more than 1.0 nats") == "spike"
