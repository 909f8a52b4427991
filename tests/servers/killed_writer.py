"""A process that writes a run and can be killed anywhere: it goes on from its newest checkpoint until the run is done.

Usage: python killed_writer.py STORE_URL STEPS
Checkpoints lie in the store, as those of a training do, and are sent in parts.
"""

import random
import sys
import time

from servers.rows import made_up

from muon_core.store.keys import END, ROOT, Checkpoint, parse_checkpoint
from muon_core.store.lineage import lineage
from muon_core.store.open import open_storage
from muon_core.store.parquet import digest
from muon_core.store.reader import read_attempts
from muon_core.store.s3 import bucket as s3
from muon_core.store.storage import Storage
from muon_core.store.writer import ResumePoint, RunWriter, Superseded
from muon_core.tables import SERIES

RUN = "r"
CHECKPOINT_EVERY = 4
CHECKPOINT_BYTES = 6 << 20
KEEP_LAST = 2
PART_BYTES = 5 << 20  # servers take smaller parts only as the last


def write(storage: Storage, steps: int) -> None:
    """Rows of every table up to step `steps`, from the newest checkpoint on; the last steps have none."""
    step, point = newest(storage)
    writer = RunWriter(storage, RUN, {"seed": 1}, parent=point.attempt, resume_seq=point.seq)
    while step < steps:
        step += 1
        time.sleep(0.01)
        saves = step % CHECKPOINT_EVERY == 0
        for table in SERIES if saves else ("train", "health"):  # a wrong bound would lose those at a checkpoint
            for layer in range(2):
                writer.emit(table, step=step, tokens=8 * step, **made_up(table, step, layer))
        if saves:
            save(storage, step, writer.barrier())
        else:
            writer.flush(wait=False)
    writer.end(status="done", steps=steps)


def save(storage: Storage, step: int, point: ResumePoint) -> None:
    """Put a checkpoint there and remove all but the newest ones."""
    data = random.Random(step).randbytes(CHECKPOINT_BYTES)
    key = f"checkpoints/{RUN}/latest/{step:09d}.{point.attempt}.{point.seq:012d}.{digest(data)}.pt"
    storage.put(key, memoryview(data))
    storage.delete([key for _, key in saved(storage)[KEEP_LAST:]])


def newest(storage: Storage) -> tuple[int, ResumePoint]:
    """Step and resume point of the newest checkpoint, which must be whole."""
    for found, key in saved(storage)[:1]:
        assert digest(storage.get(key)) == found.digest
        return found.step, ResumePoint(found.attempt, found.seq)
    return 0, ResumePoint(ROOT, 0)


def saved(storage: Storage) -> list[tuple[Checkpoint, str]]:
    """Checkpoints of rows that the newest attempt continues, the newest first."""
    alive = {attempt.id: bound for attempt, bound in lineage(read_attempts(storage, RUN).get(RUN, {}))}
    keys = {key: parse_checkpoint(key) for key, _ in storage.list(f"checkpoints/{RUN}/")}
    found = [(item, key) for key, item in keys.items() if item and item.attempt in alive]
    bounds = {id_: END if bound is None else bound for id_, bound in alive.items()}
    return sorted(((item, key) for item, key in found if item.seq <= bounds[item.attempt]), reverse=True)


if __name__ == "__main__":
    s3.MULTIPART_BYTES, s3.PART_BYTES = 1 << 20, PART_BYTES
    try:
        write(open_storage(sys.argv[1]), int(sys.argv[2]))
    except Superseded:
        print("superseded")
