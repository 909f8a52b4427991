"""Where a user's computed files are kept between calls: prepared tokens, copies of what a remote store holds."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """`$XDG_CACHE_HOME`, by default `~/.cache`; without a home that can be written to, below the temporary files.

    Containers give users numbers that no list of users knows, and homes that are read only.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        home = Path.home()
    except RuntimeError:  # no such user
        home = Path("/nonexistent")
    cache = home / ".cache"
    if home.is_dir() and os.access(cache if cache.exists() else home, os.W_OK):
        return cache
    return Path(tempfile.gettempdir()) / f"muon-{os.getuid()}"
