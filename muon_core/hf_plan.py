"""What building a Hugging Face model without weights tells while a run is planned: if it can be trained, and how large.

On PyTorch's meta device tensors have shapes only, so that the largest model takes a part of a second and no memory.
Left to the start of a run is what its numbers tell: whether tokens see those behind them, and whether weights are all
there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from muon_core.config.hf import Sizes
from muon_core.config.run import ModelConfig, RunConfig
from muon_core.hf_model import MLP, HFModel, check_outputs
from muon_core.model import HiddenMatrix

_MLP_PROJECTIONS = ("up", "down", "gate", "gate_up")


def planned_sizes(run: RunConfig) -> str:
    """`hf_sizes` of the run's model.

    Raises: ValueError in one line if it cannot be trained here, or not by the run's optimizer.
    """
    model, sizes = _planned(run.model)
    attention_matrices(model, getattr(run.optimizer, "attention_blocks", "whole"))
    return sizes


@lru_cache
def _planned(config: ModelConfig) -> tuple[HFModel, str]:
    model = HFModel(config, 0, weightless=True)
    found = sizes_of(model)
    _check_head(model)
    return model, found.dumps()


def attention_matrices(model: HFModel, blocks: str) -> dict[str, str] | None:
    """Names of the matrices that `attention_blocks` of this value joins or cuts, to `q k v o`; None if it is `whole`.

    Raises: ValueError in one line if they are not there, or have no shapes for it.
    """
    if blocks == "whole":
        return None
    refused = f"attention_blocks {blocks}: model.hf {model.config.hf}"
    names: dict[str, str] = {}
    layers: dict[int, dict[str, HiddenMatrix]] = defaultdict(dict)
    for matrix in model.matrices:
        layers[matrix.layer][matrix.projection] = matrix
    for own in layers.values():
        if fused := own.get("qkv"):
            raise ValueError(f"{refused} has q, k and v in one matrix, {fused.name}, laid out its own way; use whole")
        if missing := sorted({"q", "k", "v", "o"} - own.keys()):
            raise ValueError(f"{refused} has no matrix called {missing[0]} among {', '.join(own)}; use whole")
        q, k, v, o = (own[kind].parameter for kind in "qkvo")
        if len({own[kind].name.rsplit(".", 2)[0] for kind in "qkvo"}) > 1:
            raise ValueError(f"{refused} has {own['q'].name} and {own['o'].name} in two modules; use whole")
        size, heads = model.head_size, model.config.num_heads
        if q.size(0) != heads * size or o.size(1) != heads * size or k.size(0) % size or k.size(0) != v.size(0):
            shapes = ", ".join(f"{kind} {tuple(own[kind].parameter.shape)}" for kind in "qkvo")
            raise ValueError(f"{refused} has {shapes}, which are no {heads} heads of {size}; use whole")
        names |= {own[kind].name: kind for kind in "qkvo"}
    return names


def sizes_of(model: HFModel) -> Sizes:
    """Of a model with or without weights."""
    parts = dict.fromkeys(("embedding", "attention", "mlp", "norms"), 0)
    matrices = model.matrices
    for matrix in matrices:
        in_mlp = matrix.projection in _MLP_PROJECTIONS or MLP.search(matrix.name)
        parts["mlp" if in_mlp else "attention"] += matrix.parameter.numel()
    output = model.inner.get_output_embeddings().weight
    tables = {id(part.weight): part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
    parts["embedding"] = sum(table.numel() for table in (tables | {id(output): output}).values())
    parts["norms"] = sum(weight.numel() for weight in model.parameters()) - sum(parts.values())
    shapes = Counter(tuple(matrix.parameter.shape) for matrix in matrices)
    return Sizes(
        parts=parts,
        looked_up=sum(table.numel() for table in tables.values() if table is not output),
        matrices=[(rows, cols, count) for (rows, cols), count in shapes.items()],
        attention=[(width, seen, count) for (width, seen), count in Counter(_attention(model)).items()],
    )


def _attention(model: HFModel) -> Iterator[tuple[int, int | None]]:
    """Of each layer: the width of what attention hands on, heads x head size, and how many tokens it sees at most."""
    widths = {matrix.layer: matrix.parameter.size(1) for matrix in model.matrices if matrix.projection == "o"}
    default = model.config.num_heads * model.head_size
    for layer, seen in enumerate(_windows(model.inner.config, model.config.num_layers)):
        yield widths.get(layer, default), seen


def _windows(theirs: Any, layers: int) -> list[int | None]:
    """Tokens that each layer sees at most, as configurations of `transformers` say it; None: all."""
    window = getattr(theirs, "sliding_window", None)
    if kinds := getattr(theirs, "layer_types", None):
        by_kind = {"sliding_attention": window, "chunked_attention": getattr(theirs, "attention_chunk_size", None)}
        return [by_kind.get(kind) for kind in kinds]
    if kinds := getattr(theirs, "attention_layers", None):  # GPT-Neo's
        return [theirs.window_size if kind == "local" else None for kind in kinds]
    return [window] * layers


def _check_head(model: HFModel) -> None:
    """Raise ValueError if logits are not hidden states times output weights, tried on a few numbers.

    In the place of the blocks there are hidden states drawn here, and the output layer has eight tokens: what is done
    to logits (a bias, a scale, a cap) is done to these. The model cannot be called any more. Where an architecture asks
    more of its blocks than that, only its own numbers tell, as a run starts.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Given(BaseModelOutputWithPast):
        def __getattr__(self, name: str) -> None:
            """Whatever else an architecture returns, and hands on."""

    inner, output = model.inner, model.inner.get_output_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = 10 * torch.randn(1, 4, output.weight.size(1))
        small = nn.Linear(output.weight.size(1), 8, bias=output.bias is not None)
    inner.set_output_embeddings(small)
    path = model.path_of_blocks.split(".")  # inner, and what computes hidden states in it
    for depth in range(2, len(path)):
        model.get_submodule(".".join(path[:depth])).forward = lambda *args, **kwargs: Given(last_hidden_state=hidden)
    with torch.no_grad():
        try:
            logits: Tensor = inner(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False).logits
        except Exception:
            return
        check_outputs(model.config, logits, hidden @ small.weight.mT)
