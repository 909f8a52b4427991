"""What `muon sweep submit` sends: one zip, which every node of the cluster unpacks and works in.

    muon_job.py, code.json, job.json      the program of the job, the state of its code, what to do
    muon_core/ ray_jobs/ ...              this project's sources, which so come before any that is installed there
    sweep.yaml                            the sweep file with those that it extends, its corpora below this folder
    corpora/<n>/<name>                    text that may be on this machine only
    optimizers/<n>/<name>                 files whose classes the sweep refers to
    prices.yaml                           the table that MUON_PRICES names

Ray takes a wheel for such a purpose, too, but has pip install it with all that it depends on, torch among it, and not
every environment has pip. The same content makes the same bytes, which Ray sends once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muon_core.by_reference import file_of
from muon_core.code_state import PACKAGES, ROOT, SENT, code_state
from muon_core.data.corpus import corpus_files
from ray_jobs.job_entry import JOB, sources
from ray_jobs.sent_job import SentJob, code_here
from ray_jobs.sweep_plan import portable
from search_spaces.spec import SweepSpec
from search_spaces.write_yaml import as_sweep_yaml

PROGRAM, SWEEP, PRICES = "muon_job.py", "sweep.yaml", "prices.yaml"
LARGEST = 100 << 20  # bytes; the head keeps it in memory, and takes 500 MiB of all jobs
_WRITTEN = (1980, 1, 1, 0, 0, 0)  # in the place of a time: the same files are the same bytes


def sent_sweep(spec: SweepSpec) -> tuple[str, dict[str, str]]:
    """The sweep file as it is sent, and the files it names: path below the job's folder -> path here."""
    files: dict[str, str] = {}
    optimizers = {file_of(block.optimizer) for block in spec.blocks}

    def move(path: str) -> str:
        for sent, original in files.items():
            if original == path:
                return sent
        folder = "optimizers" if path in optimizers else "corpora"
        sent = f"{folder}/{len(files)}/{os.path.basename(path)}"  # documents are told apart by their names
        files[sent] = path
        return sent

    return as_sweep_yaml(SweepSpec.model_validate(portable(spec, move))), files


def pack(sweep: str, job: SentJob) -> bytes:
    """The zip of `job`, whose sweep file is the text `sweep`.

    Raises ValueError if it is too large, or a file that it names cannot be read.
    """
    commit, diff_hash = code_state()
    code = {"packages": PACKAGES, "sha256": code_here(), "commit": commit, "diff_hash": diff_hash}
    texts = {SENT: json.dumps(code, indent=2), JOB: job.to_json(), SWEEP: sweep}
    files: dict[str, Path] = {PROGRAM: ROOT / "ray_jobs" / "job_entry.py"}
    for package in PACKAGES:
        files |= sources(ROOT / package)
    for sent, original in job.files.items():
        files |= _corpus(sent, original) if sent.startswith("corpora/") else {sent: Path(original)}
    if prices := os.environ.get("MUON_PRICES"):
        files[PRICES] = Path(prices)
    _check_size(job, files)
    return _zip({name: text.encode() for name, text in texts.items()}, files)


def content(package: bytes) -> str:
    """What tells one package from another, in twelve digits."""
    return hashlib.sha256(package).hexdigest()[:12]


def _corpus(sent: str, original: str) -> dict[str, Path]:
    """Name in the zip -> file of the corpus at the path `original`."""
    files = corpus_files(original)
    if os.path.isfile(original):
        return {sent: Path(original)}
    return {f"{sent}/{name}": Path(path) for name, path in files.items()}


def _check_size(job: SentJob, files: Mapping[str, Path]) -> None:
    if (size := sum(path.stat().st_size for path in files.values())) > LARGEST:
        what = ", ".join(job.files.values()) or "this project"
        raise ValueError(
            f"{what}: {size / 2**20:.0f} MiB, of which {LARGEST >> 20} travel with a job; put the corpus where all "
            "nodes see it, and run `muon sweep run` on the head of the cluster"
        )


def _zip(texts: Mapping[str, bytes], files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, data: bytes) -> None:
            entry: Any = zipfile.ZipInfo(name, _WRITTEN)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)

        for name, data in texts.items():
            add(name, data)
        for name, path in files.items():
            try:
                add(name, path.read_bytes())
            except (OSError, UnicodeError) as error:
                raise ValueError(f"cannot send {path}: {error}; make it readable, with a name in UTF-8") from error
    return buffer.getvalue()
