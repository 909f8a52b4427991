"""What a job knows of its submission, from the two files that lie beside the packages it was sent with.

Elsewhere there are none, and all is as ever.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from muon_core.code_state import PACKAGES, ROOT, SENT
from muon_core.store.storage import Storage, StoreUnavailable
from ray_jobs.job_entry import JOB, sources_sha256


@dataclass(frozen=True, slots=True)
class SentJob:
    """What a job is to do, and whence it comes."""

    arguments: tuple[str, ...]
    """Of `muon`."""
    command: str
    """What submits it again."""
    mark: str
    """Key of an object that whoever submits it has written to the store, for the job to find and remove."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the driver, no secrets."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Of corpora and optimizers: path below the job's folder -> path where it was submitted."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


@functools.cache
def sent_job(folder: Path = ROOT) -> SentJob | None:
    """The job that this process is; None if it is none."""
    try:
        fields = json.loads((folder / JOB).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return SentJob(**fields | {"arguments": tuple(fields["arguments"])})


def original_path(path: str) -> str:
    """What the corpus or optimizer at `path` was called where the job was submitted; without a job, `path` itself."""
    job = sent_job()
    return job.files.get(os.path.relpath(path, ROOT), path) if job else path


def check_sent(storage: Storage) -> None:
    """Raises StoreUnavailable if this process is a job whose store is another than that of who submitted it."""
    job = sent_job()
    if job is None:
        return
    try:
        storage.get(job.mark)
        storage.delete([job.mark])
    except FileNotFoundError:
        raise StoreUnavailable(
            f"the head of the cluster finds another store at {storage.place} than the machine that submitted the job; "
            "give both the same S3 endpoint in AWS_ENDPOINT_URL_S3, or a folder that they share"
        ) from None


@functools.cache
def sent_code(folder: Path = ROOT) -> str | None:
    """Hash of the sources that were sent with the job this process belongs to; None if they were not sent."""
    try:
        fields = json.loads((folder / SENT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return str(fields["sha256"])


@functools.cache
def code_here() -> str:
    """The same of those that this process runs."""
    return sources_sha256(PACKAGES)
