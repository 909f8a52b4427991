"""Decoder-only transformer: RMSNorm, RoPE, grouped-query attention with QK-norm, squared-ReLU MLP, tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from muon_core.config.run import ModelConfig
from muon_core.loss import Head, mean_loss
from muon_core.seeds import generator
from muon_core.tables import PROJECTIONS

NORM_EPS = 1e-6


class RMSNorm(nn.Module):
    """`weight * x / rms(x)` over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)


class Attention(nn.Module):
    """Causal self-attention; `num_heads` queries share `num_kv_heads` keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.d_model // config.num_heads
        self.grouped = config.num_kv_heads != config.num_heads
        self.dropout = config.dropout
        kv_size = config.num_kv_heads * self.head_size
        self.q = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k = nn.Linear(config.d_model, kv_size, bias=False)
        self.v = nn.Linear(config.d_model, kv_size, bias=False)
        self.o = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`(B, T, d_model)` to the same; `cos` and `sin` as in `rope_tables`."""
        q = rotate(self._norm(self._heads(self.q(x))), cos, sin)
        k = rotate(self._norm(self._heads(self.k(x))), cos, sin)
        v = self._heads(self.v(x))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=self.grouped)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """`(B, T, heads * head_size)` to `(B, heads, T, head_size)`."""
        return x.view(*x.shape[:2], -1, self.head_size).transpose(1, 2)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.head_size,), eps=NORM_EPS)


class MLP(nn.Module):
    """`down(relu(up(x))^2)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        out: Tensor = self.down(F.relu(up) * up)  # relu(up)^2, whose gradient takes fewer passes this way
        return out


class TransformerBlock(nn.Module):
    """Attention and MLP, each behind its norm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out


class Transformer(nn.Module):
    """Token ids `(B, T)` to next-token logits `(B, T, vocab_size)`, in the type of the forward pass.

    With the next tokens, `targets` `(B, T)`, to what `head` makes of hidden states, output weights and them: by default
    the mean loss, for which the logits need not all be there at once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.d_model)
        self.head_size = config.d_model // config.num_heads
        self.checkpoints = False
        """Whether of each block's activations only the input is kept, and the rest computed again for its gradients."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None, head: Head = mean_loss) -> Tensor:
        cos, sin = rope_tables(tokens.size(1), self.head_size, self.config.rope_base, tokens.device)
        x = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            if self.checkpoints and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, use_reentrant=False)
            else:
                x = block(x, cos, sin)
        hidden, weight = self.norm(x), self.embedding.weight
        return F.linear(hidden, weight) if targets is None else head(hidden, weight, targets)


def rope_tables(seq_len: int, head_size: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines `(seq_len, head_size / 2)`, float32, of position times frequency.

    Computed in every forward pass: a few microseconds against a buffer that would fix the longest sequence.
    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864
    """
    pair = torch.arange(0, head_size, 2, device=device, dtype=torch.float32)
    position = torch.arange(seq_len, device=device, dtype=torch.float32)
    angle = position[:, None] * base ** (-pair / head_size)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs `(i, i + head_size / 2)` of `x` `(..., T, head_size)` by their position's angle; same dtype."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def next_token_loss(model: nn.Module, window: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token of all tokens but the first in each row of `window`, `(B, seq_len + 1)`."""
    loss: Tensor = model(window[:, :-1], window[:, 1:])
    return loss


def init_weights(model: Transformer, seed: int) -> None:
    """Fill every parameter from its own stream: one seed gives the same weights on any device and at any world size.

    Norms are one, matrices normal with standard deviation 0.02; those that write to the residual stream are smaller by
    `(2 num_layers)^0.5`, so that its variance does not grow with depth. The first loss is about `ln(vocab_size)`.
    Source: GPT-2, Radford et al. 2019, section 2.3.
    """
    depth = 2 * model.config.num_layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            std = 0.02 / depth**0.5 if name.endswith((".o.weight", ".down.weight")) else 0.02
            drawn = torch.randn(parameter.shape, generator=generator(seed, "init", name))  # on CPU, whatever the device
            parameter.copy_(drawn.mul_(std))


@dataclass(frozen=True, slots=True)
class HiddenMatrix:
    """A weight matrix inside a block: what Muon orthogonalizes and the `layers` table describes."""

    layer: int
    projection: str
    name: str
    parameter: nn.Parameter


def hidden_matrices(model: Transformer) -> list[HiddenMatrix]:
    """All hidden matrices, by layer and within it in the order of `PROJECTIONS`; names as in `named_parameters()`."""
    parameters = dict(model.named_parameters())
    matrices: list[HiddenMatrix] = []
    for layer in range(model.config.num_layers):
        for projection in PROJECTIONS:
            part = "mlp" if projection in ("up", "down") else "attention"
            name = f"blocks.{layer}.{part}.{projection}.weight"
            matrices.append(HiddenMatrix(layer, projection, name, parameters[name]))
    return matrices
