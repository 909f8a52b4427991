"""Small Hugging Face models made here, and runs of them."""

from pathlib import Path
from typing import Any

import torch

from muon_core.config.run import RunConfig
from search_spaces.parameters import locate_model

SMALL = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
LLAMA = SMALL | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = SMALL | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def save(folder: Path, name: str, fields: dict[str, Any]) -> Path:
    """A folder with a model's configuration alone."""
    import transformers

    transformers.AutoConfig.for_model(name, **fields).save_pretrained(folder)
    return folder


def save_pretrained(folder: Path, name: str, fields: dict[str, Any]) -> Path:
    """A folder with a model's configuration and weights, of which no two biases or norms are alike."""
    import transformers
    from safetensors.torch import save_model

    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(name, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    config.save_pretrained(folder)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def planned(small: dict[str, Any], folder: Path | str, **fields: Any) -> RunConfig:
    """A run of the model in `folder`."""
    of_model = {"hf": str(folder), **fields.pop("model", {})}
    return locate_model(RunConfig.model_validate(small | fields | {"model": of_model}), Path.cwd())
