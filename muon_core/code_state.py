"""Which code runs: its commit and what was changed since, from the checkout it lies in or from whoever sent it here."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
ROOT = PACKAGE.parent
PACKAGES = (PACKAGE.name, "search_spaces", "ray_jobs", "analysis")
SENT = "code.json"  # in ROOT, where a job brought the packages to another machine, without their repository


@cache
def code_state() -> tuple[str | None, str | None]:
    """(commit, hash of uncommitted changes) of the checkout this package runs from, or was sent from by a job.

    None where there is none.
    """
    if commit := _commit():
        changes = uncommitted_changes()
        return commit, hashlib.sha256(changes.encode()).hexdigest()[:16] if changes else None
    try:
        sent = json.loads((ROOT / SENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, None
    return sent.get("commit"), sent.get("diff_hash")


@cache
def uncommitted_changes() -> str:
    """What `git diff` shows of the checkout, then the sources of this project that git does not know yet."""
    if not _commit():
        return ""
    diff = _git("diff", "HEAD") or ""
    new = _git("ls-files", "--others", "--exclude-standard", "--", *(f"../{name}" for name in PACKAGES)) or ""
    added = [f"new file {name}\n{(PACKAGE / name).read_text(errors='replace')}" for name in new.splitlines()]
    return "\n".join(filter(None, [diff, *added]))


@cache
def _commit() -> str | None:
    tracked = _git("ls-files", "--error-unmatch", __file__)  # a virtual environment may lie inside another project
    return _git("rev-parse", "HEAD") if tracked else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or an installed package: the record says null
    return done.stdout.strip()
