"""How large a run is, from its config alone: weights by part, and FLOPs of the model and of Muon. No torch.

Of a Hugging Face model the config has what was counted when it was built (`hf.Sizes`), once the run is planned; before
that, and in records of older releases, its shape is taken for that of our model.
"""

from __future__ import annotations

from collections import Counter

from muon_core.config import hf
from muon_core.config.optimizers import MuonConfig
from muon_core.config.run import ModelConfig, RunConfig

ITERATIONS: dict[str, int] = {"quintic": 5, "polar_express_1": 5, "polar_express_2": 5, "simple12": 12}
"""Newton-Schulz iterations of an orthogonalizer, each of three matrix products."""


def matrices(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Projection to the shape `(rows, cols)` of a block's matrix, of our model."""
    width, kv = model.d_model, model.d_model // model.num_heads * model.num_kv_heads
    return {
        "q": (width, width), "k": (kv, width), "v": (kv, width), "o": (width, width),
        "up": (model.d_ff, width), "down": (width, model.d_ff),
    }  # fmt: skip


def parameters(model: ModelConfig) -> dict[str, int]:
    """Weights by part; of our model the embedding is the output layer too."""
    if model.hf_sizes:
        return hf.sizes(model.hf_sizes).parts
    shapes = matrices(model)
    attention, mlp = (sum(shapes[name][0] * shapes[name][1] for name in names) for names in ("qkvo", ("up", "down")))
    return {
        "embedding": model.vocab_size * model.d_model,
        "attention": model.num_layers * attention,
        "mlp": model.num_layers * mlp,
        "norms": (2 * model.num_layers + 1) * model.d_model,
    }


def num_parameters(model: ModelConfig) -> int:
    """All weights."""
    return sum(parameters(model).values())


def num_hidden(model: ModelConfig) -> int:
    """Weights of the hidden matrices, which Muon steps."""
    parts = parameters(model)
    return parts["attention"] + parts["mlp"]


def num_multiplied(model: ModelConfig) -> int:
    """Weights but those that a token only looks up: positions, and an embedding that is not the output layer too."""
    return num_parameters(model) - (hf.sizes(model.hf_sizes).looked_up if model.hf_sizes else 0)


def flops_per_token(config: RunConfig) -> float:
    """FLOPs of the forward and backward pass of a token: 6 a weight, and 12 x width x sequence a layer of attention.

    Weights that are only looked up count for none. Width is that of what attention hands on; a layer that sees a window
    only has the window for the sequence. What activation checkpointing computes again is not counted, nor that
    attention looks back only.

    Source: Chowdhery et al. 2022 (PaLM), appendix B, https://arxiv.org/abs/2204.02311
    """
    model, seq_len = config.model, config.data.seq_len
    looks = model.num_layers * model.d_model * seq_len
    if model.hf_sizes:
        attention = hf.sizes(model.hf_sizes).attention
        looks = sum(width * min(seen or seq_len, seq_len) * layers for width, seen, layers in attention)
    return float(6 * num_multiplied(model) + 12 * looks)


def orthogonalizer_flops(config: RunConfig) -> float:
    """FLOPs of Newton-Schulz in an optimizer step, whole matrices; 0 for optimizers and orthogonalizers without it.

    An iteration on rows x cols, m the smaller and n the larger: X X' and its product with X, 2 m^2 n each, and the
    square of X X', 2 m^3.
    """
    optimizer = config.optimizer
    if not isinstance(optimizer, MuonConfig):
        return 0.0
    counted = ((min(shape), max(shape), count) for shape, count in _shapes(config.model).items())
    iteration = sum(count * (4 * small**2 * large + 2 * small**3) for small, large, count in counted)
    return float(ITERATIONS.get(optimizer.orthogonalizer, 0) * iteration)


def _shapes(model: ModelConfig) -> Counter[tuple[int, int]]:
    """How many hidden matrices have each shape `(rows, cols)`."""
    if model.hf_sizes:
        return Counter({(rows, cols): count for rows, cols, count in hf.sizes(model.hf_sizes).matrices})
    return Counter(shape for shape in matrices(model).values() for _ in range(model.num_layers))


def largest_matrix(model: ModelConfig) -> int:
    """Weights of the largest hidden matrix."""
    return max(rows * cols for rows, cols in _shapes(model))


def orthogonalizer_share(config: RunConfig) -> float:
    """Of all FLOPs of a step, those of Newton-Schulz."""
    own = orthogonalizer_flops(config)
    return own / (own + flops_per_token(config) * config.tokens_per_step)
