"""The token of a cluster: where it lies on this machine, and Ray told to use it.

Ray looks at the file only where RAY_AUTH_MODE says so, and asks a cluster that wants a token in vain otherwise. Here a
token that is there is used.
"""

from __future__ import annotations

import os
from pathlib import Path

FILE = "~/.ray/auth_token"


def find_token() -> tuple[str | None, str]:
    """(token, where it is from), or (None, where it was looked for), in the order in which Ray looks."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip(), "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path, where = (named, f"RAY_AUTH_TOKEN_PATH={named}") if named else (FILE, FILE)
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip() or None, where
    except (OSError, UnicodeError):
        return None, where


def use_token() -> None:
    """Have Ray, not imported yet, send the token if there is one."""
    token, _ = find_token()
    if token:
        os.environ["RAY_AUTH_MODE"] = "token"
    elif os.environ.get("RAY_AUTH_MODE") == "token":
        os.environ["RAY_AUTH_MODE"] = "disabled"  # else Ray ends in an error of its own; the cluster may want none
