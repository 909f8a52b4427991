"""A process that writes a run and can be killed anywhere: it goes on from its last checkpoint until the run is done.

Usage: python killed_writer.py STORE_URL CHECKPOINT_FILE STEPS
"""

import json
import sys
import time
from pathlib import Path

from muon_core.layout import ROOT
from muon_core.results import RunWriter
from muon_core.storage import open_storage

CHECKPOINT_EVERY = 7


def main(url: str, checkpoint: Path, steps: int) -> None:
    """Train rows at every step, val rows on the checkpoint steps, where a wrong bound would lose them."""
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "attempt": ROOT, "seq": 0}
    writer = RunWriter(open_storage(url), "r", {}, parent=state["attempt"], resume_seq=state["seq"])
    print("started", flush=True)
    for step in range(state["step"] + 1, steps + 1):
        time.sleep(0.005)
        writer.emit("train", step=step, tokens=0, train_loss=1 / step)
        if step % CHECKPOINT_EVERY == 0:
            writer.emit("val", step=step, tokens=0, val_loss=float(step))
            point = writer.barrier()
            aside = checkpoint.with_suffix(".tmp")
            aside.write_text(json.dumps({"step": step, "attempt": point.attempt, "seq": point.seq}))
            aside.rename(checkpoint)
        else:
            writer.flush(wait=False)
    writer.end(status="done")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
