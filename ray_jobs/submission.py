"""A sweep as a job of a cluster: submitted, or joined where it runs already.

A job is called after its sweep and store, so whoever submits a sweep meets the job that runs it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from muon_core.store.storage import Storage
from muon_core.store.sweeps import write_sweep
from ray_jobs.job_package import PRICES, PROGRAM, SWEEP, content, pack, sent_sweep
from ray_jobs.jobs import Job, Jobs
from ray_jobs.kept_changes import keep_changes
from ray_jobs.same_store import store_environment
from ray_jobs.sent_job import SentJob
from ray_jobs.stop_requests import user_name
from ray_jobs.sweep_plan import sweep_record
from search_spaces.plan import Plan
from search_spaces.spec import SweepSpec

TRIES = 3  # somebody else may submit a job, or remove it, at the same moment


@dataclass(frozen=True, slots=True)
class Submission:
    """What is to become a job."""

    sweep: SweepSpec
    planned: Plan
    storage: Storage
    options: Sequence[str]
    """Of `muon sweep run` in the job."""
    command: str
    """What submits it again."""

    @property
    def job_id(self) -> str:
        """What its job is called: the same for the same sweep and store."""
        digest = hashlib.sha256(f"{self.sweep.name} {self.storage.place}".encode()).hexdigest()
        return f"muon-{self.sweep.name}-{digest[:8]}"

    @property
    def mark(self) -> str:
        """Key of the object in the store by which its job knows that it is the same."""
        return f"marks/{self.job_id}"

    def package(self) -> bytes:
        """What is sent: the same bytes for the same file, code and options. Raises ValueError if it is too large."""
        text, files = sent_sweep(self.sweep)
        environment = store_environment(self.storage)
        if os.environ.get("MUON_PRICES"):
            environment["MUON_PRICES"] = PRICES
        if level := os.environ.get("MUON_LOG_LEVEL"):
            environment["MUON_LOG_LEVEL"] = level
        arguments = ("sweep", "run", SWEEP, "--store", self.storage.url, "--yes", *self.options)
        return pack(text, SentJob(arguments, self.command, self.mark, environment, files))


@dataclass(frozen=True, slots=True)
class Sent:
    """The job of a submission."""

    job: Job
    is_new: bool
    """Else it ran already."""
    is_same: bool
    """Whether it was sent with the same file, code and options."""
    size: int
    """Bytes of what is sent."""

    @property
    def begin(self) -> str:
        """End of the line that its log begins with."""
        return self.job.metadata.get("begin", "")


def submit_or_join(jobs: Jobs, submission: Submission) -> Sent:
    """The job of `submission`, started now unless it runs already; one that is over makes room for it.

    Raises: ConnectionError if the cluster does not do it; ValueError for too large a package; StoreError.
    """
    package, id_ = submission.package(), submission.job_id
    for _ in range(TRIES):
        known = jobs.find(id_)
        if known and not known.is_over:
            return Sent(known, False, known.metadata.get("content") == content(package), len(package))
        if known:
            jobs.forget(id_)
        _tell_store(submission)
        if _submit(jobs, submission, package) and (job := jobs.find(id_)):
            return Sent(job, True, True, len(package))
    raise ConnectionError(f"job {id_} is submitted and removed by others at this moment; try again")


def _tell_store(submission: Submission) -> None:
    """What is to be trained, with which changes to the code, and the mark."""
    write_sweep(submission.storage, sweep_record(submission.planned))
    keep_changes(submission.storage)
    submission.storage.put(submission.mark, socket.gethostname().encode())


def _submit(jobs: Jobs, submission: Submission, package: bytes) -> bool:
    begin = secrets.token_hex(4)
    facts = {
        "sweep": submission.sweep.name,
        "store": submission.storage.url,
        "who": f"{user_name()} on {socket.gethostname()}",
        "submitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "content": content(package),
        "begin": begin,
    }
    with tempfile.TemporaryDirectory(prefix="muon-job-") as folder:
        path = Path(folder, "job.zip")
        path.write_bytes(package)
        return jobs.submit(submission.job_id, f"exec python3 {PROGRAM} {begin}", path, facts)
