"""What the `config.json` of a Hugging Face model says of its shape, in the words of `ModelConfig`, and how large it is
by what was found when it was built, as a plan does. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

_CALLED: dict[str, tuple[str, ...]] = {
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_kv_heads": ("num_key_value_heads",),
    "d_ff": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocab_size": ("vocab_size",),
}
"""Field of a ModelConfig to its names in the files of different architectures."""
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
_ORIGIN = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")  # no part of what a model is


def canonical(content: bytes, name: str) -> str:
    """The text of a `config.json` that is the same for the same model: sorted, without where and by what it was saved.

    Raises: ValueError in one line if it is no configuration of a language model.
    """
    try:
        fields = json.loads(content)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ValueError(f"model.hf {name}: its config.json names no model_type; give a decoder-only language model")
    if fields.get("is_encoder_decoder"):
        raise ValueError(f"model.hf {name}: {fields['model_type']} has an encoder; give a decoder-only language model")
    kept = {key: value for key, value in fields.items() if key not in _ORIGIN}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    shape(text)
    return text


def shape(text: str) -> dict[str, int]:
    """Fields of a ModelConfig that the configuration `text` decides. Raises ValueError for one it does not tell."""
    fields = json.loads(text)
    found: dict[str, Any] = {}
    for field, names in _CALLED.items():
        found[field] = next((fields[name] for name in names if fields.get(name) is not None), None)
    if found["num_kv_heads"] is None:
        found["num_kv_heads"] = found["num_heads"]
    if found["d_ff"] is None and found["d_model"] is not None:
        found["d_ff"] = 4 * found["d_model"]  # what GPT-2 means by null
    for field, value in found.items():
        if not isinstance(value, int):
            said = " or ".join(_CALLED[field])
            raise ValueError(
                f"the {fields.get('model_type')} config.json has no number {said}; write it in a local copy"
            )
    return found


def max_positions(text: str) -> int | None:
    """The longest sequence, where the configuration `text` bounds it."""
    fields = json.loads(text)
    return next((fields[name] for name in _POSITIONS if isinstance(fields.get(name), int)), None)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a model is, which its configuration tells only who builds it."""

    parts: dict[str, int]
    """Weights of `embedding` (of an output layer too), `attention`, `mlp`, and the rest, `norms` (and biases)."""
    looked_up: int
    """Of the embeddings, the weights that a token looks up and none is multiplied with: positions, and tokens' where
    the output layer is another."""
    matrices: list[tuple[int, int, int]]
    """Rows, columns, and how many hidden matrices have them."""
    attention: list[tuple[int, int | None, int]]
    """Width of what attention hands on (heads x head size), tokens it sees at most, and how many layers have both."""

    def dumps(self) -> str:
        """One text for one value."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


@lru_cache
def sizes(text: str) -> Sizes:
    """What `Sizes.dumps` wrote."""
    return Sizes(**json.loads(text))
