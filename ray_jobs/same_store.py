"""Workers of a cluster write where the sweep reads: they are told how to open its store, and prove that it is the same.

The URL of a store leaves open which server it is on: endpoint and region come from each machine's own settings. So the
settings of whoever starts a sweep travel with it, and it leaves a mark in its store, for which every worker looks
before its first run. Credentials stay where they are.

A sweep that came as a job with its own code has workers prove that, too: they are told the hash of it with the name of
the mark, in a form that code without this check does not find a mark by.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from muon_core.store.storage import Storage, StoreClosed, StoreError, StoreUnavailable, StoreUnwritable
from ray_jobs.sent_job import code_here, sent_code


def store_environment(storage: Storage) -> dict[str, str]:
    """Environment by which another machine finds the server of `storage`; no secrets."""
    if storage.is_local:
        return {}
    from muon_core.store.s3.connection import connect

    connection = connect()
    endpoint = {} if connection.is_aws else {"AWS_ENDPOINT_URL_S3": connection.endpoint}
    return endpoint | {"AWS_DEFAULT_REGION": str(connection.client.meta.region_name)}


@contextlib.contextmanager
def marked(storage: Storage, name: str) -> Iterator[str]:
    """Leave a mark in `storage` while the block is entered; yields what `check_mark` knows it by."""
    key = f"marks/{name}"
    storage.put(key, socket.gethostname().encode())
    try:
        yield f"{key}@{code}" if (code := sent_code()) else key
    finally:
        with contextlib.suppress(StoreError):
            storage.delete([key])


def check_mark(storage: Storage, mark: str) -> None:
    """Raises StoreUnwritable if `storage` has no such mark: it is another one than that of who left it.

    StoreUnavailable, which ends a sweep as a store out of reach does, if this process runs other code than was sent;
    StoreClosed with the name of this node if it may not look, as where credentials lie on other nodes only.
    """
    key, _, code = mark.partition("@")
    if code and code != code_here():
        raise StoreUnavailable(
            f"{socket.gethostname()} runs other code ({code_here()[:12]}) than the job was sent with ({code[:12]}); "
            "unset PYTHONPATH on the nodes of the cluster and submit the sweep again"
        )
    try:
        storage.get(key)
    except StoreClosed as error:
        raise StoreClosed(f"{socket.gethostname()}: {error}") from None
    except FileNotFoundError:
        raise StoreUnwritable(
            f"{socket.gethostname()} finds another store at {storage.place} than the process that started the sweep; "
            "give all nodes the same folder, or the same S3 endpoint in AWS_ENDPOINT_URL_S3"
        ) from None
