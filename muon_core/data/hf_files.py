"""The files of a Hugging Face model, in a folder or on the Hub: its configuration and weights. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from muon_core.config import hf
from muon_core.config.run import ModelConfig
from muon_core.data.hub import TIMEOUT_S, explained


def describe(model: ModelConfig, folder: Path) -> dict[str, Any]:
    """Fields of the ModelConfig that `model.hf`, a path as seen from `folder` or a name on the Hub, decides.

    Raises: ValueError in one line if there is no such model, or it is none of ours to train.
    """
    assert model.hf is not None
    name = model.hf.removeprefix("hf:")
    local = (folder / Path(name).expanduser()).resolve()
    if local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        name = str(local)
    fields: dict[str, Any] = {"hf": name}
    text = hf.canonical((_local(name) if name.startswith("/") else _fetched(name, model.revision)).read_bytes(), name)
    if model.weights == "pretrained":
        fields["weights_sha256"] = weights_sha256(weights_folder(name, model.revision))
    return fields | hf.shape(text) | {"hf_config": text}


def _local(path: str) -> Path:
    found = Path(path) / "config.json"
    if not found.is_file():
        raise ValueError(
            f"model.hf {path}: no config.json there; give a folder that save_pretrained wrote, or OWNER/NAME"
        )
    return found


def _fetched(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    with explained(f"model {name}", name, revision):
        return Path(hf_hub_download(name, "config.json", revision=revision, etag_timeout=TIMEOUT_S))


def weights_folder(name: str, revision: str | None) -> Path:
    """Where on this machine configuration and weights of a model lie, fetched if need be. Raises: as `describe`."""
    if name.startswith("/"):
        return Path(name)
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    with explained(f"model {name}", name, revision):
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, etag_timeout=TIMEOUT_S))


def weights_sha256(folder: Path) -> str:
    """Of the names and bytes of a folder's weights. Raises: ValueError in one line if it has none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"model.hf {folder}: no *.safetensors there; set model.weights: random, or save the weights so"
        )
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
