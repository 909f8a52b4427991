"""The program of a job that `muon sweep submit` sends: sees that the code which came along runs, then is `muon`.

It stands alone, for it is what decides which of two installed versions would be imported: a copy of it lies at the top
of what is sent, beside the packages, and hashes them before it imports any.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

CODE, JOB = "code.json", "job.json"  # what was sent, and what to do with it
SOURCES = (".py", ".yaml", ".html", ".css", ".ttf", ".md")  # a font, and its licence
EXIT_UNREACHABLE = 7


def sources(package: Path) -> dict[str, Path]:
    """Name, as `ray_jobs/cli/main.py` -> file of each source of the package at `package`."""
    files = [path for path in package.rglob("*") if path.suffix in SOURCES and not path.name.startswith(".")]
    return {f"{package.name}/{path.relative_to(package).as_posix()}": path for path in sorted(files)}


def sources_sha256(packages: Iterable[str]) -> str:
    """sha256 over names and contents of the sources of `packages` that this process imports, or has imported."""
    digest = hashlib.sha256()
    for name in packages:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue  # another hash, then
        for source, path in sources(Path(spec.submodule_search_locations[0])).items():
            data = path.read_bytes()
            digest.update(f"{source} {len(data)}\n".encode())
            digest.update(data)
    return digest.hexdigest()


def main() -> None:
    """Do what `job.json` says, as the command would from where it was submitted."""
    folder = Path(__file__).resolve().parent
    sys.path.insert(0, str(folder))
    job, code = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (JOB, CODE))
    if (found := sources_sha256(code["packages"])) != code["sha256"]:
        _refuse(f"the job would run other code ({found[:12]}) than was sent ({code['sha256'][:12]}); submit it again")
    os.environ.update(job["environment"])
    sys.argv = ["muon", *job["arguments"]]
    try:
        from ray_jobs.cli.commands import call  # noqa: F401  as a first test of what is installed here
        from ray_jobs.cli.main import main as muon
    except ModuleNotFoundError as error:
        _refuse(
            f"{sys.executable} on the head of the cluster has no {error.name}; start Ray there with the environment "
            "that has muon's dependencies first in PATH"
        )
    muon()


def _refuse(reason: str) -> NoReturn:
    print(f"muon: {reason}", file=sys.stderr)
    sys.exit(EXIT_UNREACHABLE)


if __name__ == "__main__":
    main()
