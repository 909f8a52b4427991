"""The files of a Hugging Face model, in a folder or on the Hub: its configuration and weights. Imports no torch.

A name on the Hub is pinned when a run is planned: its revision is from then on the commit, so that the run's workers
fetch that one, whatever became of the branch. Weights are read from safetensors only: pickles can run code.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from muon_core.config import hf
from muon_core.config.run import ModelConfig
from muon_core.data.hub import TIMEOUT_S, explained, repository_file

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
NO_WEIGHTS = "no model.safetensors there; set model.weights: random, or save its weights so (pickles are not read)"


def describe(model: ModelConfig, folder: Path) -> dict[str, Any]:
    """Fields of the ModelConfig that `model.hf`, a path as seen from `folder` or a name on the Hub, decides.

    Raises: ValueError in one line if there is no such model, or it is none of ours to train.
    """
    assert model.hf is not None
    name = model.hf.removeprefix("hf:")
    local = (folder / Path(name).expanduser()).resolve()
    revision = model.revision
    if local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        name = str(local)
        if revision is not None:
            raise ValueError(f"model.revision {revision}: {name} is a folder, which has none; remove it")
        config = _local(name)
    else:
        config, revision = repository_file("model", name, CONFIG, revision)
    fields: dict[str, Any] = {"hf": name, "revision": revision}
    text = hf.canonical(config.read_bytes(), name)
    if model.weights == "pretrained":
        fields["weights_sha256"] = weights_sha256(weights_folder(name, revision))
    return fields | hf.shape(text) | {"hf_config": text}


def _local(path: str) -> Path:
    found = Path(path) / CONFIG
    if not found.is_file():
        raise ValueError(
            f"model.hf {path}: no config.json there; give a folder that save_pretrained wrote, or OWNER/NAME"
        )
    return found


def weights_folder(name: str, revision: str | None) -> Path:
    """Where on this machine configuration and weights of a model lie, fetched if need be. Raises: as `describe`."""
    if name.startswith("/"):
        return Path(name)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with explained(f"model {name}", name, revision):
        for file in (WEIGHTS, INDEX):  # as transformers looks for them
            try:
                found = Path(hf_hub_download(name, file, revision=revision, etag_timeout=TIMEOUT_S))
            except LocalEntryNotFoundError:
                if file == INDEX:
                    raise
            except EntryNotFoundError:
                continue
            else:
                break
        else:
            raise ValueError(f"model {name}: {NO_WEIGHTS}")
    for part in _parts(found.parent):
        repository_file("model", name, part, revision)
    return found.parent


def _parts(folder: Path) -> list[str]:
    """Names of the files that hold a folder's weights. Raises: ValueError in one line if there are none."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    index = folder / INDEX
    try:
        parts = sorted(set(json.loads(index.read_bytes())["weight_map"].values())) if index.is_file() else []
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"model.hf {folder}: its {INDEX} cannot be read; fetch it again") from None
    if not parts or not all(part.endswith(".safetensors") for part in parts):
        raise ValueError(f"model.hf {folder}: {NO_WEIGHTS}")
    return parts


def weights_sha256(folder: Path) -> str:
    """Of the names and bytes of a folder's weights. Raises: ValueError in one line if it has none, or not all."""
    digest = hashlib.sha256()
    for path in (folder / name for name in _parts(folder)):
        if not path.is_file():
            raise ValueError(f"model.hf {folder}: its {INDEX} names {path.name}, which is not there; fetch it again")
        status = path.stat()
        digest.update(f"{path.name} {_sha256(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache
def _sha256(path: Path, size: int, modified_ns: int) -> str:
    """Of a file, read once for all runs of a sweep; with size and time, by which a change is told."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
