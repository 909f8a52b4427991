"""Random streams that are pure functions of their names, and hashes that prove what they produced.

Nothing of a stream needs saving: who knows the seed and the keys draws the same numbers, on any rank, after any resume.
A seed that never reaches the weights makes several runs one draw, and averages look better than they are; so the hash
of the initial weights and of the first batch go into the run's record, and runs that should differ and do not are an
error.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor, nn


def stream_key(seed: int, *keys: int | str) -> int:
    """256-bit integer that names one stream; `("a", "b")` and `("ab",)`, or `1` and `"1"`, are different streams."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *keys]).encode()).digest(), "big")


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator at the start of the stream `(seed, *keys)`.

    Streams agree between processes of one device type; CPU and CUDA generators are different algorithms. PyTorch's CPU
    generator keeps 32 bits of its seed, so one pair of streams in 4e9 coincides.
    """
    return torch.Generator(device).manual_seed(_torch_seed(seed, *keys))


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Start the global generators of every device at the dropout stream of one forward pass.

    Args:
        micro_batch: index within the step's global batch, so that the masks do not depend on the world size.
    """
    torch.manual_seed(_torch_seed(seed, "dropout", step, micro_batch))


def _torch_seed(seed: int, *keys: int | str) -> int:
    return stream_key(seed, *keys) % 2**63  # manual_seed takes 64 bits, signed or not


def hash_parameters(module: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters: one value for equal weights on any device."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        _update(digest, name, parameter.detach())
    return digest.hexdigest()


def hash_tokens(tokens: Tensor) -> str:
    """sha256 over shape and values of integer token ids of any integer dtype."""
    digest = hashlib.sha256()
    _update(digest, "tokens", tokens.long())
    return digest.hexdigest()


def _update(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
    digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
