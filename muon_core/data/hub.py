"""What comes from the Hugging Face Hub: the Parquet files of a dataset, and tokenizers, each of one commit.

A dataset is read by byte ranges of the row groups that are next, so nothing of it is kept on the disk. With
`HF_HUB_OFFLINE=1` the snapshots in the hub's own cache serve instead. Imports no torch.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from muon_core.data.sources import InputFile, local_file
from muon_core.store.range_file import buffered

TIMEOUT_S = 20.0
TRIES = 5
_NAME = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<pattern>.+))?")


def dataset_files(given: str) -> tuple[list[InputFile], str]:
    """The files of `hf:NAME[@REVISION][:GLOB]`, and `NAME@commit`.

    Without a pattern: its Parquet files, of which those with `train` in their path if there are any.

    Raises ValueError, in one line, if the hub does not answer, or has no such dataset, or only for some.
    """
    match = _NAME.fullmatch(given)
    if not match:
        raise ValueError(
            f"input {given!r}: a dataset is hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME:*.parquet"
        )
    name, revision, pattern = match["name"], match["revision"], match["pattern"]
    with explained(f"dataset {name}", f"datasets/{name}", revision):
        files, commit = (_snapshot if _is_offline() else _listed)(name, revision)
    chosen = _chosen(list(files), pattern)
    if not chosen:
        wanted = f"no file that fits {pattern!r}" if pattern else "no Parquet file"
        raise ValueError(f"dataset {name}: {wanted}; it has {', '.join(sorted(files)[:8]) or 'none at all'}")
    return [files[path] for path in chosen], f"{name}@{commit}"


def tokenizer_file(name: str, revision: str | None) -> tuple[bytes, str]:
    """`tokenizer.json` of the repository `name`, and the commit it is of. Raises ValueError as `dataset_files` does."""
    path, commit = repository_file("tokenizer", name, "tokenizer.json", revision)
    return path.read_bytes(), commit


def repository_file(kind: str, name: str, file: str, revision: str | None) -> tuple[Path, str]:
    """A file at the root of the repository `name`, in the hub's cache on this machine, and the commit it is of.

    Args:
        kind: what messages call the repository.
    Raises: ValueError as `dataset_files` does.
    """
    from huggingface_hub import hf_hub_download

    with explained(f"{kind} {name}", name, revision):
        path = Path(hf_hub_download(name, file, revision=revision, etag_timeout=TIMEOUT_S))
    return path, path.parent.name  # .../snapshots/<commit>/<file>


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _listed(name: str, revision: str | None) -> tuple[dict[str, InputFile], str]:
    """What the hub has of a dataset."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    commit = str(info.sha)
    files = {
        file.rfilename: InputFile(
            f"hf:{name}/{file.rfilename}",
            int(file.size or 0),
            partial(_opened, name, file.rfilename, commit, int(file.size or 0)),
            commit,
        )
        for file in info.siblings or ()
    }
    return files, commit


def _opened(name: str, path: str, commit: str, size: int) -> BinaryIO:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, http_backoff  # type: ignore[attr-defined]  # its public names

    url, headers = hf_hub_url(name, path, repo_type="dataset", revision=commit), build_hf_headers()

    def read(start: int, length: int) -> bytes:
        with explained(f"dataset {name}", f"datasets/{name}", commit):
            answer: Any = http_backoff(
                "GET", url, headers=headers | {"Range": f"bytes={start}-{start + length - 1}"}, max_retries=TRIES,
                timeout=TIMEOUT_S, follow_redirects=True,
            )  # fmt: skip
            answer.raise_for_status()
            content = bytes(answer.content)
        return content if answer.status_code == 206 else content[start : start + length]

    return buffered(read, size)


def _snapshot(name: str, revision: str | None) -> tuple[dict[str, InputFile], str]:
    """What the hub's cache on this machine has of a dataset."""
    from huggingface_hub import snapshot_download

    root = Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    paths = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
    files = {inside: local_file(f"hf:{name}/{inside}", str(path)) for inside, path in paths.items()}
    return files, root.name


def _chosen(paths: list[str], pattern: str | None) -> list[str]:
    if pattern:
        return sorted(fnmatch.filter(paths, pattern))
    parquet = sorted(path for path in paths if path.endswith(".parquet"))
    return [path for path in parquet if "train" in path] or parquet


@contextlib.contextmanager
def explained(what: str, place: str, revision: str | None) -> Iterator[None]:
    """Raise the hub's errors as ValueError: one line, with the remedy."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        raise ValueError(
            f"{what} is gated: accept its terms at {endpoint}/{place}, and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{what} has no revision {revision!r}; see {endpoint}/{place}/commits/main") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{what}: {endpoint} knows no such repository, or it is private; correct the name, or set HF_TOKEN"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        if _is_offline():
            raise ValueError(
                f"{what} is not in the hub's cache on this machine ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is "
                "set; unset it, or give a local path"
            ) from None
        raise _no_answer(what, endpoint, error) from None
    except errors.EntryNotFoundError as error:
        raise ValueError(f"{what}: {endpoint}/{place} has no such file ({_first_line(error)})") from None
    except OSError as error:  # those of its HTTP client, too
        raise _no_answer(what, endpoint, error) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise _no_answer(what, endpoint, error) from None
        raise


def _no_answer(what: str, endpoint: str, error: Exception) -> ValueError:
    response: Any = getattr(error, "response", None)
    told = f"HTTP {response.status_code}" if response is not None else type(error).__name__
    offline = "" if os.environ.get("HF_HUB_OFFLINE") else "; HF_HUB_OFFLINE=1 uses what is on this machine"
    return ValueError(f"{what}: {endpoint} does not answer ({told}); check the network and HF_ENDPOINT{offline}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
