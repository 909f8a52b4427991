"""A decoder-only Hugging Face model in the place of our own: trained, tracked and stepped alike.

Its modules are taken as they are, but for GPT-2's transposed linear layers, which become ordinary ones: a matrix is
then `(outputs, inputs)` in every architecture, as optimizers and metrics have it. What each matrix of a block does is
read from its name; fused ones have a projection of their own (`qkv`, `gate_up`), and one of a name that is not known
here has that name. What could go wrong in silence is refused when the model is built: outputs that are not hidden
states times output weights, a look ahead, experts, matrices that are no linear layer's.
"""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muon_core.config.run import ModelConfig
from muon_core.data.hf_files import weights_folder, weights_sha256
from muon_core.loss import Head, mean_loss
from muon_core.model import HiddenMatrix
from muon_core.seeds import stream_key
from muon_core.tables import projection_order

NAMES: tuple[tuple[str, str], ...] = (
    (r"q_proj|q_lin|query", "q"),
    (r"k_proj|k_lin|key", "k"),
    (r"v_proj|v_lin|value", "v"),
    (r"c_attn|qkv_proj|query_key_value|Wqkv|qkv", "qkv"),
    (r"gate_up_proj", "gate_up"),
    (r"gate_proj|w1", "gate"),
    (r"up_proj|c_fc|fc1|fc_in|dense_h_to_4h|w3", "up"),
    (r"down_proj|fc2|fc_out|dense_4h_to_h|w2", "down"),
    (r"o_proj|out_proj|dense", "o"),
)
"""Last part of a layer's name, as a regular expression, to its projection; the first that fits all of it."""
_UNFIT = (ValueError, LookupError, TypeError, OSError, ImportError, AttributeError, ArithmeticError, AssertionError)
"""What transformers and torch raise of a configuration that makes no model; not what memory that runs out raises."""
MLP = re.compile(r"mlp|ffn|feed_forward")


def projection(inside: str) -> str:
    """What the linear layer at `inside` a block is called in the tables: `self_attn.q_proj` is `q`.

    Where it is not known, its own name: `mlp.router` is `mlp_router`.
    """
    *path, last = inside.split(".")
    if last == "c_proj":  # GPT-2's, in both parts of a block
        return "down" if MLP.search(".".join(path)) else "o"
    return next((name for pattern, name in NAMES if re.fullmatch(pattern, last)), inside.replace(".", "_"))


class HFModel(nn.Module):
    """Token ids `(B, T)` to logits, or with next tokens to what `head` makes of them: as `model.Transformer`."""

    def __init__(self, config: ModelConfig, seed: int, *, weightless: bool = False) -> None:
        """Build the model and give it its weights: `pretrained`, or drawn from `seed` as its architecture draws them.

        With `weightless` it has shapes only, on the meta device, and what only numbers tell is not looked at.

        Raises: ValueError in one line if it cannot be trained here, or transformers is not installed.
        """
        super().__init__()
        self.config = config
        self.inner: Any = _made(config, seed, weightless=weightless)
        _unfuse_conv1d(self.inner)
        self._checkpoints = False
        self._check_dropout()
        self.path_of_blocks = _path_of_blocks(self, config)
        self._hidden = _hidden(self.blocks, config)
        if not weightless:
            _check_numbers(self, config)

    @property
    def head_size(self) -> int:
        """Of its attention, as its configuration says."""
        return getattr(self.inner.config, "head_dim", None) or self.config.d_model // self.config.num_heads

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's, each of attention and an MLP."""
        found = self.get_submodule(self.path_of_blocks)
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def matrices(self) -> list[HiddenMatrix]:
        """The weights of linear layers inside the blocks, as they are now: whole, or shares of them."""
        found = ((layer, kind, f"{self.path_of_blocks}.{layer}.{name}") for layer, kind, name in self._hidden)
        return [HiddenMatrix(layer, kind, name, self.get_parameter(name)) for layer, kind, name in found]

    def _check_dropout(self) -> None:
        other = [
            name
            for name, part in self.named_modules()
            if isinstance(part, nn.Dropout) and part.p != self.config.dropout
        ]
        if other:
            raise ValueError(
                f"model.hf {self.config.hf}: the dropout of {other[0]} cannot be set to {self.config.dropout}"
            )

    @property
    def checkpoints(self) -> bool:
        """Whether of each block's activations only the input is kept."""
        return self._checkpoints

    @checkpoints.setter
    def checkpoints(self, wanted: bool) -> None:
        self._checkpoints = wanted
        if wanted:
            self.inner.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.inner.activation_checkpointing_disable()

    def forward(self, tokens: Tensor, targets: Tensor | None = None, head: Head = mean_loss) -> Tensor:
        hidden = self.inner.base_model(input_ids=tokens, use_cache=False)[0]
        weight = self.inner.get_output_embeddings().weight
        return F.linear(hidden, weight) if targets is None else head(hidden, weight, targets)


def _made(config: ModelConfig, seed: int, *, weightless: bool) -> nn.Module:
    """The model of `transformers`, fp32, on the CPU; global random numbers are left as they were."""
    if config.hf_config is None:
        raise ValueError(f"model.hf {config.hf}: its config.json is not filled in; plan the run, as muon pretrain does")
    try:
        with _quiet():
            from transformers import AutoModelForCausalLM
    except ImportError:
        remedy = "install it with pip install 'muon-jobs[hf]'"
        raise ValueError(f"model.hf {config.hf} needs transformers; {remedy}") from None
    factory: Any = AutoModelForCausalLM
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(seed, "init", "hf") % 2**63)
        try:
            theirs = _configuration(config.hf_config, config.dropout)
            if config.weights == "pretrained" and not weightless:
                return _pretrained(config, factory, theirs)
            with torch.device("meta" if weightless else "cpu"):
                built: nn.Module = factory.from_config(theirs, dtype=torch.float32, trust_remote_code=False)
            return built.train()
        except _UNFIT as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"model.hf {config.hf} cannot be built: {said[:200]}") from None


def _configuration(text: str, dropout: float) -> Any:
    """What transformers reads of a config.json with the content `text`; all its dropouts are `dropout`."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for name, value in found.to_dict().items():
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(found, name, dropout if re.search("dropout|pdrop", name) else 0.0)  # of whole layers: none
    return found


def _pretrained(config: ModelConfig, factory: Any, theirs: Any) -> nn.Module:
    assert config.hf is not None
    folder = weights_folder(config.hf, config.revision)
    if weights_sha256(folder) != config.weights_sha256:
        raise ValueError("its weights are no longer those that were planned; plan the run again")
    model: nn.Module
    model, told = factory.from_pretrained(
        folder,
        config=theirs,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"its weights lack {missing[0]}; set model.weights: random, or give those of this model")
    return model.train()


def _unfuse_conv1d(model: nn.Module) -> None:
    """Ordinary linear layers for GPT-2's, whose weights are transposed; the same function."""
    from transformers.pytorch_utils import Conv1D

    for path, part in list(model.named_modules()):
        if isinstance(part, Conv1D):
            linear = nn.Linear(part.weight.size(0), part.weight.size(1), device="meta")
            linear.weight = nn.Parameter(part.weight.detach().mT.contiguous())
            linear.bias = part.bias
            model.set_submodule(path, linear)


def _path_of_blocks(model: nn.Module, config: ModelConfig) -> str:
    """Where the list of blocks is. Raises ValueError if there is none."""
    lists: list[tuple[str, nn.Module]] = [
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == config.num_layers
    ]
    if not lists:
        raise ValueError(
            f"model.hf {config.hf}: found no list of {config.num_layers} blocks in it; it is no such decoder"
        )
    path, _ = max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))
    return path


def _hidden(blocks: nn.ModuleList, config: ModelConfig) -> list[tuple[int, str, str]]:
    """Layer, projection and name in its block of the weights of linear layers, as the tables order them.

    Raises: ValueError if a block has other weights of two dimensions.
    """
    found: list[tuple[int, str, str]] = []
    for layer, block in enumerate(blocks):
        linear = {f"{name}.weight" for name, part in block.named_modules() if isinstance(part, nn.Linear)}
        own: dict[str, str] = {}
        for name, parameter in block.named_parameters():
            if parameter.ndim < 2:
                continue
            if name not in linear:
                raise ValueError(
                    f"model.hf {config.hf}: {name} of shape {tuple(parameter.shape)} is no linear layer's (experts, "
                    "recurrence); only plain decoders are trained here"
                )
            kind = projection(name.removesuffix(".weight"))
            if kind in own:
                raise ValueError(
                    f"model.hf {config.hf}: {name} and {own[kind]} are both {kind}; "
                    "only plain decoders are trained here"
                )
            own[kind] = name
        found += [(layer, kind, own[kind]) for kind in sorted(own, key=projection_order)]
    if not found:
        raise ValueError(f"model.hf {config.hf}: its blocks have no linear layers; it is no such decoder")
    return found


@torch.no_grad()
def _check_numbers(model: HFModel, config: ModelConfig) -> None:
    """Raise ValueError unless logits are hidden states times output weights, and no token sees those behind it."""
    was_training = model.training
    tokens = torch.arange(8).view(1, 8) % config.vocab_size
    model.eval()
    theirs, ours = model.inner(input_ids=tokens, use_cache=False).logits, model(tokens)
    other = model(torch.cat((tokens[:, :-1], tokens[:, -1:] + 1), dim=1))
    model.train(was_training)
    check_outputs(config, theirs, ours)
    if not torch.allclose(ours[:, :-1], other[:, :-1], rtol=1e-4, atol=1e-5):
        raise ValueError(f"model.hf {config.hf}: its tokens see those behind them; give a decoder-only language model")


def check_outputs(config: ModelConfig, logits: Tensor, product: Tensor) -> None:
    """Raise ValueError unless the model's logits are this product of hidden states and output weights."""
    if logits.shape != product.shape or not torch.allclose(logits, product, rtol=1e-4, atol=1e-5):
        raise ValueError(
            f"model.hf {config.hf}: its logits are not hidden states times output weights (a bias, a scale or a cap), "
            "which the loss here takes them for; choose another model"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers tells of loading: what matters of it is checked here."""
    from transformers.utils import logging as of_transformers

    told: Any = of_transformers  # of which a part has no types
    logger, has_bar = logging.getLogger("transformers"), told.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    told.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if has_bar:
            told.enable_progress_bar()
