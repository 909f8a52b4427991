"""Asks a cluster before it is joined: `ray.init` takes a minute and lines of C++ for what one question tells at once.

The head is asked over gRPC, as Ray's own processes do, but with a limit, and first without a token: so it is known
whether the cluster wants one, which Ray leaves to RAY_AUTH_MODE of each process.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import ray_jobs.ray_settings  # noqa: F401  before ray

# isort: split
import grpc
from ray._common.tls_utils import load_certs_from_env
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private import services, utils
from ray._private.authentication import authentication_token_setup
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS, KV_NAMESPACE_CLUSTER
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from ray_jobs.address import probe
from ray_jobs.ray_token import FILE, find_token

ANSWER_S = 5.0
COPY_TOKEN = f"copy {FILE} of its head to the same place here and `chmod 600` it, or set RAY_AUTH_TOKEN"


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster, as its head knows it."""

    id: str
    address: str
    is_head: bool


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that can be joined."""

    head: str
    """host:port."""
    versions: dict[str, str]
    """Of `ray` and `python` on its head; Ray lets no node join that has others."""
    wants_token: bool
    nodes: tuple[Node, ...]
    """Those that are up."""


def check_cluster(address: str) -> Cluster:
    """The cluster at `address`, with the token mode of this process set as it wants it.

    Raises: ConnectionError, in one line with the remedy, if this process cannot join it.
    """
    head = _resolve(address)
    try:
        cluster = _ask(head)
    except PermissionError:
        cluster = _ask_with_token(head)
    else:
        if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
            raise ConnectionError(
                f"the cluster at {head} wants no token, and RAY_AUTH_MODE is token here; start its Ray with "
                "RAY_AUTH_MODE=token on every node, or unset it here"
            )
    _check_versions(cluster)
    if not {node.id for node in cluster.nodes}.intersection(services.find_node_ids()):
        raise ConnectionError(
            f"this machine is no node of the cluster at {head}; run `muon` on one that is, its head for one "
            "(`ray exec` and `ray attach` lead there)"
        )
    return cluster


def _resolve(address: str) -> str:
    """host:port as Ray will use it. Raises ConnectionError if nobody listens there, or `auto` finds no Ray."""
    probe(address)
    try:
        head = str(services.canonicalize_bootstrap_address(address))
    except ConnectionError:
        raise ConnectionError("auto finds no Ray on this machine; start one, or give the head's host:port") from None
    probe(head)
    return head


def _ask_with_token(head: str) -> Cluster:
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        raise ConnectionError(f"the cluster at {head} wants its token; unset RAY_AUTH_MODE here, or set it to token")
    token, place = find_token()
    if not token:
        raise ConnectionError(f"the cluster at {head} wants its token, and {place} has none; {COPY_TOKEN}")
    try:
        cluster = _ask(head, token)
    except PermissionError:
        is_wrong = f"the token in {place} is not that of the cluster at {head}"
        raise ConnectionError(f"{is_wrong}; {COPY_TOKEN}") from None
    if "RAY_AUTH_MODE" not in os.environ:  # Ray by itself uses the token only of a cluster it finds on this machine
        authentication_token_setup._enable_token_auth()
    return cluster


def _ask(head: str, token: str = "") -> Cluster:
    """Raises PermissionError if it wants a token, or another one; ConnectionError if there is no head at `head`."""
    limits: dict[str, Any] = {"timeout": ANSWER_S}
    if token:
        limits["metadata"] = [("authorization", f"Bearer {token}")]
    key = gcs_service_pb2.InternalKVGetRequest(key=CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    try:
        with _channel(head) as channel:
            metadata = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVGet(key, **limits)
            known = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(
                gcs_service_pb2.GetAllNodeInfoRequest(), **limits
            )
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise PermissionError from None
        raise ConnectionError(
            f"what listens at {head} is no head of a Ray cluster ({error.code().name}); give the address of its head, "
            "with port 6379 unless `ray start --port` says another"
        ) from None
    if not metadata.value:
        raise ConnectionError(f"the Ray at {head} is starting; try again in a moment")
    versions = json.loads(metadata.value)
    return Cluster(
        head,
        {"ray": versions["ray_version"], "python": versions["python_version"]},
        wants_token=bool(token),
        nodes=tuple(
            Node(node.node_id.hex(), node.node_manager_address, node.is_head_node)
            for node in known.node_info_list
            if node.state == node.ALIVE
        ),
    )


def _channel(head: str) -> Any:
    """Under TLS where Ray itself would be."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(head, GLOBAL_GRPC_OPTIONS)
    certificate, key, authority = load_certs_from_env()
    return grpc.secure_channel(head, grpc.ssl_channel_credentials(authority, key, certificate), GLOBAL_GRPC_OPTIONS)


def _check_versions(cluster: Cluster) -> None:
    """Raises ConnectionError if Ray would find that those of this process differ."""
    there = {f"{name}_version": version for name, version in cluster.versions.items()}
    try:
        utils.check_version_info(there, "this machine")
    except RuntimeError:
        ray_version, python_version = utils.compute_version_info()[:2]
        raise ConnectionError(
            f"the cluster at {cluster.head} has Ray {cluster.versions['ray']} and Python {cluster.versions['python']}, "
            f"this process Ray {ray_version} and Python {python_version}; install the same here and on every node"
        ) from None
