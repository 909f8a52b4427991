import hashlib

import pytest
import torch
from torch import nn

from muon_core.seeds import generator, hash_parameters, hash_tokens, seed_dropout, stream_key


def draw(*keys: int | str) -> list[float]:
    return torch.randn(4, generator=generator(*keys)).tolist()


def test_stream_key_is_sha256_of_the_json_list() -> None:
    expected = hashlib.sha256(b'[7, "noise", "blocks.0.mlp.up.weight", 3]').hexdigest()
    assert f"{stream_key(7, 'noise', 'blocks.0.mlp.up.weight', 3):064x}" == expected


def test_generator_repeats_a_stream_whatever_was_drawn_before() -> None:
    first = draw(1, "init", "q")
    draw(1, "init", "k")
    torch.randn(100)
    assert draw(1, "init", "q") == first


@pytest.mark.parametrize("keys", [(2, "init", "q"), (1, "data", "q"), (1, "init", "k"), (1, "q", "init"), (1, "initq")])
def test_generator_gives_other_keys_another_stream(keys: tuple[int, *tuple[str, ...]]) -> None:
    assert draw(*keys) != draw(1, "init", "q")


def test_stream_key_tells_numbers_from_texts() -> None:
    assert stream_key(1, 2) != stream_key(1, "2")


def test_generator_takes_seeds_of_any_size() -> None:
    assert draw(2**70) != draw(0)


def test_seed_dropout_makes_masks_a_function_of_step_and_micro_batch() -> None:
    def mask(step: int, micro_batch: int) -> torch.Tensor:
        seed_dropout(5, step, micro_batch)
        return nn.functional.dropout(torch.ones(64), 0.5)

    first = mask(3, 1)
    assert not torch.equal(mask(3, 0), first)
    assert not torch.equal(mask(4, 1), first)
    assert torch.equal(mask(3, 1), first)


def test_hash_parameters_covers_name_shape_dtype_and_bytes() -> None:
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
    # float32 1.0 and -2.0, little endian
    expected = hashlib.sha256(b'["weight", [1, 2], "torch.float32"]' + bytes.fromhex("0000803f000000c0")).hexdigest()
    assert hash_parameters(module) == expected


def test_hash_parameters_sees_the_last_bit() -> None:
    module = nn.Linear(3, 3)
    before = hash_parameters(module)
    with torch.no_grad():
        module.bias[2] = torch.nextafter(module.bias[2], torch.tensor(9.0))
    assert hash_parameters(module) != before


def test_hash_parameters_reads_any_float_type_and_memory_order() -> None:
    module = nn.Linear(4, 3).bfloat16()
    before = hash_parameters(module)
    module.weight = nn.Parameter(module.weight.detach().t().contiguous().t())
    assert hash_parameters(module) == before


def test_hash_tokens_is_of_values_and_shape() -> None:
    tokens = torch.arange(6)
    assert hash_tokens(tokens.int()) == hash_tokens(tokens)
    assert hash_tokens(tokens.view(2, 3)) != hash_tokens(tokens.view(3, 2))
    assert hash_tokens(tokens.flip(0)) != hash_tokens(tokens)
