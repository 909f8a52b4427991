"""The uncommitted changes that a job is sent with, kept in the store: a hash alone brings nothing back."""

from __future__ import annotations

import os
import re

from muon_core.code_state import code_state, uncommitted_changes
from muon_core.store.keys import changes_key
from muon_core.store.storage import Storage
from ray_jobs.ray_token import find_token

LARGEST = 1 << 20  # bytes
HIDDEN = "***"
# Access keys of AWS, private keys, and what stands in quotes after a word that names a secret.
_SECRET = re.compile(
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"""|(?i:\w*(?:secret|token|passw|api_?key)\w*)["']?\s*[:=]\s*(["'])[^"'\n]{8,}\1""",
    re.DOTALL,
)
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|API_?KEY|ACCESS_KEY")


def keep_changes(storage: Storage) -> None:
    """Write what `git diff` shows of the code that is sent, once, without what looks like a secret."""
    _, diff_hash = code_state()
    if diff_hash:
        storage.put(changes_key(diff_hash), bounded(without_secrets(uncommitted_changes())))


def without_secrets(text: str) -> str:
    """`text` without the secrets that this process knows, and what looks like one."""
    token, _ = find_token()
    known = {value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper()) and len(value) >= 8}
    for value in sorted(known | ({token} if token else set()), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _SECRET.sub(HIDDEN, text)


def bounded(text: str) -> bytes:
    """`text` as bytes, cut where it is too long."""
    data = text.encode(errors="replace")
    if len(data) <= LARGEST:
        return data
    return data[:LARGEST] + f"\n[... {len(data) - LARGEST} bytes left out ...]\n".encode()
