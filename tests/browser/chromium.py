"""Where a Chromium is that the tests of the page can drive; as a program, exit code 1 where there is none."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Path of one that is installed here, of Debian's first, or that `playwright install chromium` brought."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    brought = sorted((Path.home() / ".cache/ms-playwright").glob("chromium-*/chrome-linux*/chrome"))
    return str(brought[-1]) if brought else None


if __name__ == "__main__":
    sys.exit(find_chromium() is None)
