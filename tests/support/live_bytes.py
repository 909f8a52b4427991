"""How much a process holds in tensors, of which some may be empty."""

import gc

import torch


def live_bytes() -> int:
    """Of all float tensors there are; of weights that FSDP has dropped the storage is empty."""
    from torch.distributed.tensor import DTensor

    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor) and not isinstance(found, DTensor) and found.is_floating_point():
            storage = found.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())
