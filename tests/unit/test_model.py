import math

import pytest
import torch
from torch import Tensor

from muon_core.config.run import ModelConfig
from muon_core.model import Transformer, hidden_matrices, init_weights, next_token_loss, rope_tables, rotate
from muon_core.seeds import generator, hash_parameters

CONFIG = ModelConfig(d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=24, vocab_size=300)


def build(config: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    model = Transformer(config)
    init_weights(model, seed)
    return model


def tokens(rows: int = 3, length: int = 10) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def sharpened(model: Transformer) -> Transformer:
    """Large random weights and norms, so that attention is far from uniform and no factor hides in a rounding error."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(1, name)) * 0.5)
    return model


def reference_logits(model: Transformer, row: Tensor) -> Tensor:
    """The architecture written out in fp64 for one sequence `(T,)`, head by head, with RoPE as complex rotation."""
    config, weights = model.config, {name: p.detach().double() for name, p in model.named_parameters()}
    size = config.d_model // config.num_heads

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(x: Tensor) -> Tensor:
        position = torch.arange(len(x), dtype=torch.float64)[:, None]
        frequency = config.rope_base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        z = torch.complex(x[:, : size // 2], x[:, size // 2 :]) * torch.exp(1j * position * frequency)
        return torch.cat((z.real, z.imag), dim=1)

    x = weights["embedding.weight"][row]
    future = torch.ones(len(row), len(row)).triu(1).bool()
    for layer in range(config.num_layers):
        part = f"blocks.{layer}."
        y = norm(x) * weights[part + "attention_norm.weight"]
        q, k, v = (y @ weights[f"{part}attention.{name}.weight"].T for name in "qkv")
        heads: list[Tensor] = []
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            one, group = slice(head * size, head * size + size), slice(shared * size, shared * size + size)
            scores = turned(norm(q[:, one])) @ turned(norm(k[:, group])).T / math.sqrt(size)
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, group])
        x = x + torch.cat(heads, dim=1) @ weights[part + "attention.o.weight"].T
        y = norm(x) * weights[part + "mlp_norm.weight"]
        x = x + (y @ weights[part + "mlp.up.weight"].T).relu() ** 2 @ weights[part + "mlp.down.weight"].T
    return norm(x) * weights["norm.weight"] @ weights["embedding.weight"].T


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_transformer_computes_the_architecture_written_out(kv_heads: int) -> None:
    model = sharpened(build(CONFIG.replace(num_kv_heads=kv_heads)))
    batch = tokens()
    expected = torch.stack([reference_logits(model, row) for row in batch])
    assert expected.std() > 0.5
    torch.testing.assert_close(model(batch).double(), expected, rtol=1e-4, atol=1e-4)


def test_transformer_does_not_look_ahead() -> None:
    model, batch = sharpened(build()), tokens()
    changed = batch.clone()
    changed[:, 6] = (changed[:, 6] + 1) % CONFIG.vocab_size
    before, after = model(batch), model(changed)
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=0, atol=0)
    assert (after[:, 6:] != before[:, 6:]).any(dim=-1).all()


def test_transformer_has_the_documented_parameters() -> None:
    model = Transformer(ModelConfig())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    block = {
        "attention_norm.weight": (64,), "attention.q.weight": (64, 64), "attention.k.weight": (32, 64),
        "attention.v.weight": (32, 64), "attention.o.weight": (64, 64),
        "mlp_norm.weight": (64,), "mlp.up.weight": (256, 64), "mlp.down.weight": (64, 256),
    }  # fmt: skip
    assert shapes == {"embedding.weight": (1024, 64), "norm.weight": (64,)} | {
        f"blocks.{layer}.{name}": shape for layer in range(4) for name, shape in block.items()
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == 246_336
    assert set(model.state_dict()) == set(shapes)  # tied head, no buffers


def test_hidden_matrices_are_ordered_by_layer_and_projection() -> None:
    model = build()
    matrices = hidden_matrices(model)
    assert [(matrix.layer, matrix.projection) for matrix in matrices] == [
        (layer, projection) for layer in (0, 1) for projection in ("q", "k", "v", "o", "up", "down")
    ]
    assert [matrix.name for matrix in matrices[:6]] == [
        "blocks.0.attention.q.weight", "blocks.0.attention.k.weight", "blocks.0.attention.v.weight",
        "blocks.0.attention.o.weight", "blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight",
    ]  # fmt: skip
    assert all(matrix.parameter is model.get_parameter(matrix.name) for matrix in matrices)
    rest = {id(p) for p in model.parameters()} - {id(matrix.parameter) for matrix in matrices}
    assert rest == {id(p) for name, p in model.named_parameters() if p.ndim == 1 or name == "embedding.weight"}


def test_every_parameter_gets_a_gradient() -> None:
    model = build()
    next_token_loss(model, tokens()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_next_token_loss_is_the_mean_negative_log_likelihood_of_the_next_token() -> None:
    model, window = sharpened(build()), tokens(2, 5)
    probabilities = model(window[:, :4]).softmax(-1).detach()
    nats = [-math.log(probabilities[b, t, window[b, t + 1]]) for b in range(2) for t in range(4)]
    assert next_token_loss(model, window).item() == pytest.approx(sum(nats) / 8, rel=1e-5)


def test_first_loss_is_that_of_guessing() -> None:
    window = torch.randint(0, 1024, (8, 65), generator=torch.Generator().manual_seed(0))
    assert next_token_loss(build(ModelConfig()), window).item() == pytest.approx(math.log(1024), abs=0.05)


def test_init_weights_is_a_function_of_seed_and_name() -> None:
    first = build(seed=3)
    torch.randn(7)  # the global stream plays no part
    assert hash_parameters(build(seed=3)) == hash_parameters(first)
    assert hash_parameters(build(seed=4)) != hash_parameters(first)
    deeper = build(CONFIG.replace(num_layers=3), seed=3)
    name = "blocks.1.attention.q.weight"
    assert torch.equal(deeper.get_parameter(name), first.get_parameter(name))
    assert not torch.equal(first.get_parameter("blocks.0.attention.q.weight"), first.get_parameter(name))


def test_init_weights_has_the_documented_scales() -> None:
    model = build(ModelConfig())
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            std = 0.02 / math.sqrt(8) if name.endswith(("o.weight", "down.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.1)


def test_rotate_turns_each_pair_by_its_angle() -> None:
    cos, sin = rope_tables(3, 4, 100.0, torch.device("cpu"))
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(3, 4)
    # pairs (0, 2) and (1, 3) turn by position and position / 10
    expected = [[math.cos(t), math.cos(t / 10), math.sin(t), math.sin(t / 10)] for t in range(3)]
    torch.testing.assert_close(rotate(x, cos, sin), torch.tensor(expected))


def test_scores_after_rotation_depend_on_the_distance_only() -> None:
    cos, sin = rope_tables(9, 8, 10_000.0, torch.device("cpu"))
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    scores = rotate(q.expand(9, 8), cos, sin) @ rotate(k.expand(9, 8), cos, sin).T
    for distance in range(-4, 5):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_dropout_acts_in_training_only() -> None:
    model, plain, batch = sharpened(build(CONFIG.replace(dropout=0.5))), sharpened(build()), tokens()
    assert torch.equal(model.eval()(batch), plain(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))


def test_bfloat16_autocast_stays_close_and_keeps_gradients_in_float32() -> None:
    model, window = build(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(model, window)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(next_token_loss(model, window).item(), rel=2e-3)
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


@pytest.mark.parametrize(("dropout", "bf16"), [(0.0, False), (0.3, False), (0.0, True)])
def test_activation_checkpointing_changes_no_bit(dropout: float, bf16: bool) -> None:
    def gradients(checkpoints: bool) -> list[Tensor]:
        model = sharpened(build(CONFIG.replace(dropout=dropout)))
        model.checkpoints = checkpoints
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = next_token_loss(model, tokens())
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]

    plain, saving = gradients(False), gradients(True)
    assert len(plain) == 1 + len(list(build().parameters()))
    assert all(map(torch.equal, plain, saving))


def test_transformer_compiles_into_one_graph() -> None:
    model, window = build(), tokens()
    compiled = torch.compile(
        model, backend="eager", fullgraph=True
    )  # traced as for any backend, without code generation
    assert next_token_loss(compiled, window).item() == next_token_loss(model, window).item()
