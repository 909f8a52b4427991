"""A model larger than one GPU: every rank holds a share of its weights, gradients and optimizer state (FSDP2).

PyTorch gathers the weights of a part of the model right before it is computed, drops them right after, and reduces the
gradients of every micro-batch to shares: a rank's rows of each parameter. Muon needs a matrix whole. So layers are
dealt to owners: for the step an owner gathers its matrices and their gradients, lets its optimizer step them as in one
process, orthogonalizing each once, and scatters the new weights. What the optimizer keeps of a matrix stays with its
owner. Embedding and norms are AdamW's, which works entry by entry, and so on shares.

    rank 0 of 2 holds rows 0.. of every weight and gradient, and the momenta of layers 0, 2, 4, ...

Gathering a model's matrices once a step is little beside FSDP's own gathers, twice a micro-batch. Saved state is whole
and by name, as any other run's: it is loaded at any number of ranks, with or without shares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muon_core import distributed
from muon_core.config.run import RunConfig
from muon_core.hf_model import HFModel
from muon_core.layout import Layout
from muon_core.model import HiddenMatrix, Transformer
from muon_core.optim.optimizers import Optimizers
from muon_core.optim.own_state import OWN

T = TypeVar("T")


def owner(layer: int) -> int:
    """The rank that steps the matrices of a layer."""
    return layer % distributed.world_size()


def rows_of(rank: int, rows: int) -> slice:
    """The rows of a parameter that `rank` holds, as `torch.chunk` deals them."""
    size = -(-rows // distributed.world_size())
    return slice(min(rank * size, rows), min((rank + 1) * size, rows))


class Shares(Layout):
    """A share of everything on every rank. All ranks make it alike, and all of them call its methods.

    Between steps the `matrices` of an owner are NaN without storage: whoever reads them outside `whole` sees it.
    """

    shared = True

    def __init__(self, model: Transformer | HFModel, device: torch.device, precision: str) -> None:
        """`model` is whole, and on the CPU if it does not fit onto the device; afterwards it holds shares only."""
        super().__init__(model)
        self.parts = [part for block in model.blocks for part in _parts(block)]
        _shard(model, self.parts, device, precision)
        self._shares: dict[str, Any] = dict(model.named_parameters())  # DTensors
        self.all_matrices = [replace(matrix, parameter=self._shares[matrix.name]) for matrix in self.all_matrices]
        self.matrices = [_hollow(matrix) for matrix in self.all_matrices if owner(matrix.layer) == distributed.rank()]
        hidden = {matrix.name for matrix in self.all_matrices}
        self._rest = {name: nn.Parameter(_local(p)) for name, p in self._shares.items() if name not in hidden}

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(matrix.name, matrix.parameter) for matrix in self.matrices] + list(self._rest.items())

    @contextmanager
    def whole(self, *, step: bool = False) -> Iterator[None]:
        shares = [_local(matrix.parameter) for matrix in self.all_matrices]
        for matrix, weight in zip(self.matrices, self._to_owners(shares), strict=True):
            matrix.parameter.data = weight
        if step:
            self._hand_gradients()
        yield
        if step:
            scattered = self._from_owners([matrix.parameter.detach() for matrix in self.matrices])
            torch._foreach_copy_(shares, scattered)
        for matrix in self.matrices:
            matrix.parameter.data = _nothing(matrix.parameter)

    def _hand_gradients(self) -> None:
        """To the parameters the optimizers step."""
        gradients = [_local_gradient(matrix.parameter) for matrix in self.all_matrices]
        for matrix, gradient in zip(self.matrices, self._to_owners(gradients), strict=True):
            matrix.parameter.grad = gradient
        for name, share in self._rest.items():
            share.data = _local(self._shares[name])
            share.grad = _local_gradient(self._shares[name])

    def gradient_norm(self) -> Tensor:
        norms = torch._foreach_norm([_local_gradient(share) for share in self._shares.values()])
        return distributed.norm_over_ranks(torch.stack(norms).norm())

    def of_all(self, of_mine: dict[str, T]) -> dict[str, T]:
        found: list[dict[str, T]] = [{}] * distributed.world_size()
        dist.all_gather_object(found, of_mine)
        return {name: value for part in found for name, value in part.items()}

    def saved(self, optimizers: Optimizers) -> dict[str, Any]:
        state, kept = optimizers.state_dict(), self.of_all(optimizers.kept())
        whole: dict[str, dict[str, Any]] = {OWN: state[OWN]} if OWN in state else {}
        for matrix in self.all_matrices:  # one at a time: a device has no room for all
            whole[matrix.name] = _to_main(_on_cpu(state.get(matrix.name)), owner(matrix.layer))
        for name, share in self._rest.items():
            full = self._shares[name]
            whole[name] = {
                key: _full(full, value) if _is_share(value, share) else _on_cpu(value)
                for key, value in state[name].items()
            }
        return {"model": self.weights(), "optimizers": whole, "kept": kept}

    def weights(self) -> dict[str, Tensor]:
        whole = {id(share): _full(share, _local(share)) for share in self._shares.values()}
        state = self.model.state_dict(keep_vars=True)  # by every name of a tied weight, and with buffers
        return {name: whole[id(value)] if id(value) in whole else _on_cpu(value) for name, value in state.items()}

    def load(
        self,
        optimizers: Optimizers,
        weights: Mapping[str, Tensor],
        state: dict[str, dict[str, Any]],
        kept: Mapping[str, Collection[str]] | None,
    ) -> None:
        held = self.model.state_dict(keep_vars=True)
        shapes = {name: value.shape for name, value in held.items()}
        if (found := {name: weight.shape for name, weight in weights.items()}) != shapes:
            name = next(name for name in shapes | found if shapes.get(name) != found.get(name))
            raise ValueError(f"{name} has shape {found.get(name)}, not {shapes.get(name)}")
        if differing := sorted(self._shares.keys() ^ (state.keys() - {OWN})):
            side = "lacks" if differing[0] in self._shares else "has unknown"
            raise ValueError(f"optimizer state {side} parameter {differing[0]}; load it into the model it comes from")
        for name, weight in weights.items():
            if isinstance(share := held[name], nn.Parameter):
                _local(share).copy_(weight[rows_of(distributed.rank(), len(weight))])
            else:
                share.copy_(weight)
        known = {name: state[name] for name, _ in self.named_parameters()} | {
            name: {key: _my_rows(value, shapes[name]) for key, value in state[name].items()} for name in self._rest
        }
        optimizers.load_state_dict(known | ({OWN: state[OWN]} if OWN in state else {}), kept)

    def _to_owners(self, shares: Sequence[Tensor]) -> list[Tensor]:
        """This rank's matrices whole, from every rank's shares `(rows, cols)` of all of them."""
        ranks = range(distributed.world_size())
        sent = [[s for s, m in zip(shares, self.all_matrices, strict=True) if owner(m.layer) == to] for to in ranks]
        received = _swap(sent, [[_share_shape(matrix, source) for matrix in self.matrices] for source in ranks])
        return [torch.cat(parts) for parts in zip(*received, strict=True)]

    def _from_owners(self, whole: Sequence[Tensor]) -> list[Tensor]:
        """This rank's shares of all matrices, from every owner's whole ones."""
        rank, ranks = distributed.rank(), range(distributed.world_size())
        sent = [[weight[rows_of(to, len(weight))] for weight in whole] for to in ranks]
        dealt = [[matrix for matrix in self.all_matrices if owner(matrix.layer) == source] for source in ranks]
        received = _swap(sent, [[_share_shape(matrix, rank) for matrix in part] for part in dealt])
        shares = {m.name: s for of, got in zip(dealt, received, strict=True) for m, s in zip(of, got, strict=True)}
        return [shares[matrix.name] for matrix in self.all_matrices]


def make_layout(model: Transformer | HFModel, config: RunConfig, device: torch.device) -> Layout:
    """The layout of a run; the model is on `device` afterwards. One worker holds everything in either mode."""
    if config.parallel == "fsdp" and distributed.world_size() > 1:
        return Shares(model, device, config.precision)
    return Layout(model.to(device))


def _shard(model: Transformer | HFModel, parts: Sequence[nn.Module], device: torch.device, precision: str) -> None:
    """Leave shares of the model's parameters in it, on `device`.

    The parts, attention and MLPs, are gathered as they are computed, under bf16 in bf16: the type in which autocast
    would multiply them, and keep copies until the backward pass. The rest, embedding and norms, is what autocast reads
    in fp32. Buffers, such as the frequencies of RoPE, stay whole and as they are.
    """
    from torch.distributed.device_mesh import init_device_mesh  # with torch's compiler, which takes seconds to load
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    dtype = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in parts:
        part.register_forward_hook(_no_view)  # before FSDP's own, which it puts on what a module returns
        fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _parts(block: nn.Module) -> Iterator[nn.Module]:
    """What of a block is gathered at a time: its largest modules that have weights of linear layers and no others.

    That is attention and MLP; of an attention with norms of its own, which autocast reads in fp32, each linear layer.
    """
    for part in block.children():
        weights = {id(weight) for weight in part.parameters()}
        linear = (own for own in part.modules() if isinstance(own, nn.Linear))
        is_list = isinstance(part, nn.ModuleList | nn.ModuleDict)  # which is never called
        if weights and not is_list and weights == {id(weight) for own in linear for weight in own.parameters()}:
            yield part
        else:
            yield from _parts(part)


def _no_view(part: nn.Module, given: Any, output: Any) -> Any:
    """What a part returns, none of it a view: added to in place, that would lose FSDP's hook, and its gradients."""
    if isinstance(output, tuple):
        return tuple(_no_view(part, given, item) for item in output)
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _hollow(matrix: HiddenMatrix) -> HiddenMatrix:
    """The matrix an owner steps, with its shape, and nothing in it."""
    return replace(matrix, parameter=nn.Parameter(_nothing(_local(matrix.parameter), matrix.parameter.shape)))


def _nothing(like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(shape or like.shape)


def _local(share: Any) -> Tensor:
    """A DTensor's rows on this rank, the very storage."""
    with torch.no_grad():
        local: Tensor = share.to_local()
    return local


def _local_gradient(share: Any) -> Tensor:
    assert share.grad is not None
    return _local(share.grad)


def _full(share: Any, local: Tensor) -> Tensor:
    """All ranks' `local`, laid out as the DTensor `share` is, on rank 0 and its CPU; elsewhere nothing."""
    from torch.distributed.tensor import DTensor

    placed = DTensor.from_local(
        local, share.device_mesh, share.placements, run_check=False, shape=share.shape, stride=share.stride()
    )
    full = placed.full_tensor()  # all ranks
    return _on_cpu(full) if distributed.rank() == 0 else torch.empty(0)


def _is_share(value: Any, share: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == share.shape


def _my_rows(value: Any, shape: torch.Size) -> Any:
    is_whole = isinstance(value, Tensor) and value.ndim > 0 and value.shape == shape
    return value[rows_of(distributed.rank(), len(value))] if is_whole else value


def _share_shape(matrix: HiddenMatrix, rank: int) -> tuple[int, int]:
    rows, cols = matrix.parameter.shape
    held = rows_of(rank, rows)
    return held.stop - held.start, cols


def _swap(sent: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[tuple[int, int]]]) -> list[list[Tensor]]:
    """Tensors for each rank to those from each rank, whose shapes are known: one collective."""
    like = next(tensor for tensors in sent for tensor in tensors)
    flat = torch.cat([tensor.reshape(-1) for tensors in sent for tensor in tensors])
    sizes = [[rows * cols for rows, cols in part] for part in shapes]
    received = torch.empty(sum(map(sum, sizes)), dtype=like.dtype, device=like.device)
    dist.all_to_all_single(received, flat, list(map(sum, sizes)), [sum(map(Tensor.numel, part)) for part in sent])
    parts = iter(torch.split(received, [size for part in sizes for size in part]))
    return [[next(parts).view(shape) for shape in part] for part in shapes]


def _to_main(value: T, source: int) -> T:
    """`value` of rank `source`, on rank 0; other ranks have their own back."""
    box = [value]
    if source == 0:
        return value
    if distributed.rank() == source:
        dist.send_object_list(box, dst=0)
    elif distributed.rank() == 0:
        dist.recv_object_list(box, src=source)
    return box[0]


def _on_cpu(value: Any) -> Any:
    """A copy without a device, of whatever a state holds."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, list | tuple) else value
