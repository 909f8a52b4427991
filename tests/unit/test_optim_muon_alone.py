"""Muon in a training script of one's own: what it takes, its state to and from torch.optim.Muon, and its copies."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from muon_core.config.optimizers import IsotropicConfig, MuonConfig
from muon_core.optim import Muon
from muon_core.optim.adamw import AdamW
from muon_core.optim.blocks import per_head
from muon_core.optim.build import Setting, hidden_optimizer
from muon_core.optim.momentum import SUM
from muon_core.optim.muon import match_rms_adamw, original
from muon_core.optim.newton_schulz import POLAR_EXPRESS_1, newton_schulz
from muon_core.optim.second_moment import per_neuron

SHAPES = [(16, 16), (16, 16), (48, 16), (5, 7)]
Parameters = list[nn.Parameter]
NORMALIZED = partial(per_neuron, beta2=0.9)
SCALES = {"original": original, "match_rms_adamw": match_rms_adamw}


def parameters(dtype: torch.dtype = torch.float32) -> Parameters:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def named(params: Parameters) -> list[tuple[str, nn.Parameter]]:
    return [(f"w{index}", param) for index, param in enumerate(params)]


def run(optimizer: torch.optim.Optimizer, params: Parameters, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(1 + step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def assert_same_bits(mine: Parameters, others: Parameters) -> None:
    for param, other in zip(mine, others, strict=True):
        assert torch.equal(param, other)


Make = Callable[[Parameters], torch.optim.Optimizer]


def handed_over(first: Make, second: Make, whole: Make, dtype: torch.dtype = torch.float32) -> None:
    """Three steps of `first` and three of `second`, which takes up its state, have the bits of six of `whole`."""
    params, uninterrupted = parameters(dtype), parameters(dtype)
    begun, gone_on = first(params), second(params)
    run(begun, params, range(3))
    gone_on.load_state_dict(through_a_file(begun.state_dict()))
    run(gone_on, params, range(3, 6))
    run(whole(uninterrupted), uninterrupted, range(6))
    assert_same_bits(params, uninterrupted)


def ours(adjust: str = "original", **options: Any) -> Make:
    return lambda params: Muon(named(params), 0.03, scale=SCALES[adjust], **options)


def theirs(adjust: str = "original", **options: Any) -> Make:
    return lambda params: torch.optim.Muon(params, 0.03, adjust_lr_fn=adjust, **options)


@pytest.mark.parametrize("adjust", SCALES)
def test_state_of_torchs_muon_goes_on_in_ours_with_its_bits(adjust: str) -> None:
    handed_over(theirs(adjust, weight_decay=0.2), ours(adjust), theirs(adjust, weight_decay=0.2))


@pytest.mark.parametrize("adjust", SCALES)
def test_state_of_ours_goes_on_in_torchs_muon_with_its_bits(adjust: str) -> None:
    handed_over(ours(adjust, momentum=0.9), theirs(adjust), ours(adjust, momentum=0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"rule": SUM}, {"orthogonalize": partial(newton_schulz, dtype=torch.float32)}, {"adapt": NORMALIZED}],
)
def test_state_goes_on_in_ours_with_its_bits_whatever_the_dtype(dtype: torch.dtype, options: dict[str, Any]) -> None:
    handed_over(ours(**options), ours(**options), ours(**options), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_momentum_stays_fp32_through_a_state_and_is_a_copy(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    first, second = ours()(params), ours()(params)
    run(first, params, range(2))
    second.load_state_dict(first.state_dict())
    for param in params:
        assert second.state[param]["momentum_buffer"].dtype == torch.float32
        assert torch.equal(second.state[param]["momentum_buffer"], first.state[param]["momentum_buffer"])
        assert second.state[param]["momentum_buffer"] is not first.state[param]["momentum_buffer"]


def test_state_of_torchs_muon_in_bf16_becomes_fp32() -> None:
    params = parameters(torch.bfloat16)
    first, second = theirs()(params), ours()(params)
    run(first, params, range(2))
    second.load_state_dict(first.state_dict())
    for param in params:
        assert first.state[param]["momentum_buffer"].dtype == torch.bfloat16
        assert torch.equal(second.state[param]["momentum_buffer"], first.state[param]["momentum_buffer"].float())
    run(second, params, range(2, 3))


def test_rates_of_a_schedule_come_with_the_state() -> None:
    params = parameters()
    first, second = theirs()(params), ours()(params)
    schedule = torch.optim.lr_scheduler.LinearLR(first, 1.0, 0.1, 10)
    run(first, params, range(1))
    schedule.step()
    second.load_state_dict(first.state_dict())
    (group,) = second.param_groups
    assert (group["lr"], group["initial_lr"]) == (first.param_groups[0]["lr"], 0.03)
    assert "ns_steps" not in group
    assert group["param_names"] == ["w0", "w1", "w2", "w3"]


def other_names(state: dict[str, Any]) -> None:
    state["param_groups"][0]["param_names"][1] = "embedding"


def other_shape(state: dict[str, Any]) -> None:
    state["state"][3]["momentum_buffer"] = torch.zeros(7, 5)


def no_number(state: dict[str, Any]) -> None:
    state["param_groups"][0]["lr"] = float("nan")


def as_of_sgd(state: dict[str, Any]) -> None:
    """Its groups also have momentum and nesterov, its state is called alike and is a sum."""
    for key in ("step", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"):
        del state["param_groups"][0][key]


def other_state(state: dict[str, Any]) -> None:
    state["state"][2] = {"exp_avg": torch.zeros(48, 16)}


def no_groups(state: dict[str, Any]) -> None:
    del state["param_groups"]


def unlisted(state: dict[str, Any]) -> None:
    state["state"][9] = state["state"][0]


REFUSED: dict[str, tuple[Make, Make, Callable[[dict[str, Any]], None], str]] = {
    "AdamW": (AdamW, ours(), lambda state: None, "neither of this Muon nor of torch.optim.Muon; load it"),
    "SGD": (ours(), ours(), as_of_sgd, "neither of this Muon nor of torch.optim.Muon; load it"),
    "steps": (theirs(ns_steps=4), ours(), lambda state: None, "with ns_steps=4, and this one steps with 5; build it"),
    "scale": (
        theirs(), ours("match_rms_adamw"), lambda state: None, "adjust_lr_fn='original', and this one steps with 'match"
    ),
    "rule": (theirs(), ours(rule=SUM), lambda state: None, "steps as torch.optim.Muon, and this one has other"),
    "express": (
        ours(), ours(orthogonalize=partial(newton_schulz, coefficients=POLAR_EXPRESS_1)), lambda state: None,
        "and this one has other functions; build it without",
    ),
    "fewer": (
        lambda params: Muon(named(params)[:2]), ours(), lambda state: None, "groups of [2] parameters, this Muon of [4]"
    ),
    "names": (ours(), ours(), other_names, "state has embedding in the place of w1; load it into an optimizer of the"),
    "shape": (ours(), ours(), other_shape, "state of w3 has shape (7, 5), its parameter (5, 7); load it into an"),
    "state": (ours(), ours(), other_state, "state of w2 is exp_avg, and not momentum_buffer; load a state of"),
    "adapted": (ours(adapt=NORMALIZED), ours(), lambda state: None, "is momentum_buffer, second_moment, and not"),
    "not adapted": (
        ours(rule=SUM), ours(adapt=NORMALIZED), lambda state: None, "and not momentum_buffer and what updates are"
    ),
    "file": (ours(), ours(), no_groups, "state has no state and param_groups; load what state_dict() of an optimizer"),
    "lr": (ours(), ours(), no_number, "lr nan is negative or not finite"),
    "unlisted": (ours(), ours(), unlisted, "state has a parameter 9 that none of its groups lists"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_state_that_does_not_fit_is_refused_in_a_line_and_nothing_changes(case: str) -> None:
    saved_by, loaded_by, change, message = REFUSED[case]
    params, others = parameters(), parameters()
    source, optimizer, undisturbed = saved_by(params), loaded_by(others), loaded_by(parameters())
    run(source, params, range(1))
    run(optimizer, others, range(2))
    run(undisturbed, undisturbed.param_groups[0]["params"], range(2))
    state = source.state_dict()
    change(state)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        optimizer.load_state_dict(state)
    assert message in str(refused.value)
    for each in (optimizer, undisturbed):
        run(each, each.param_groups[0]["params"], range(2, 4))
    assert_same_bits(others, undisturbed.param_groups[0]["params"])


def built(config: MuonConfig) -> Make:
    return lambda params: hidden_optimizer(named(params), config, Setting(7))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize(
    "make",
    [
        ours("match_rms_adamw"),
        ours(adapt=NORMALIZED),
        ours(rule=SUM),
        *(built(MuonConfig(profile=profile)) for profile in ("keller", "polar_express", "exact")),
        built(IsotropicConfig()),
    ],
)
def test_copies_step_as_the_original_and_leave_it_alone(duplicate: Callable[[Any], Any], make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    run(optimizer, params, range(2))
    before = [param.detach().clone() for param in params]
    copied, its = duplicate((optimizer, params))
    run(copied, its, range(2, 4))
    for param, weight, other in zip(params, before, its, strict=True):
        assert torch.equal(param, weight)
        assert not torch.equal(param, other)
    run(optimizer, params, range(2, 4))
    assert_same_bits(params, its)


def test_an_added_group_steps_as_if_it_had_been_there() -> None:
    """With its own options, and names of its own."""
    params, others = parameters(), parameters()
    grown = Muon(named(params)[:2], lr=0.03)
    grown.add_param_group({"params": named(params)[2:], "lr": 0.01, "weight_decay": 0.5})
    whole = Muon(
        [{"params": named(others)[:2]}, {"params": named(others)[2:], "lr": 0.01, "weight_decay": 0.5}], lr=0.03
    )
    for optimizer, its in ((grown, params), (whole, others)):
        run(optimizer, its, range(3))
    assert_same_bits(params, others)
    assert [block.name for block in grown.all_blocks] == ["w0", "w1", "w2", "w3"]


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("group", "kind", "message"),
    [
        ({"params": [("bias", zeros(4))]}, ValueError, r"bias has shape \(4,\); reshape it"),
        ({"params": [("w", zeros(2, 2, dtype=torch.complex64))]}, ValueError, r"w is torch\.complex64; give it to Ad"),
        (
            {"params": [("w", zeros(2, 2))], "lr": -1.0},
            ValueError,
            r"lr -1\.0 is negative or not finite; give a number",
        ),
        ({"params": [("w", zeros(2, 2)), zeros(2, 2)]}, ValueError, "1 of 2 parameters have no name; pass"),
        ({"params": {zeros(2, 2)}}, TypeError, "a set of parameters, whose order changes"),
        ({"params": [("w", "weight")]}, TypeError, "Muon steps parameters, but w is of type str"),
    ],
)
def test_a_group_that_cannot_be_stepped_is_refused_and_not_taken_up(
    group: dict[str, Any], kind: type[Exception], message: str
) -> None:
    params, others = parameters(), parameters()
    optimizer, undisturbed = ours()(params), ours()(others)
    with pytest.raises(kind, match=message):
        optimizer.add_param_group(group)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": named(params)[:1]})
    assert len(optimizer.param_groups) == 1
    run(optimizer, params, range(2))
    run(undisturbed, others, range(2))
    assert_same_bits(params, others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr -1\.0 is negative or not finite"),
        ({"lr": float("nan")}, "lr nan is negative or not finite"),
        ({"lr": float("inf")}, "lr inf is negative or not finite"),
        ({"lr": torch.zeros(2)}, "lr is a tensor of 2 numbers; give one"),
        ({"weight_decay": -1.0}, r"weight_decay -1\.0 is negative or not finite"),
        ({"weight_decay": float("nan")}, "weight_decay nan is negative or not finite"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon(named(parameters()), **options)


def test_defaults_and_their_order_are_those_of_torch() -> None:
    """So that the same call steps alike; what is by keyword only is ours."""
    params, others = parameters(), parameters()
    mine, reference = Muon(params), torch.optim.Muon(others)
    run(mine, params, range(2))
    run(reference, others, range(2))
    assert_same_bits(params, others)
    mine, reference = Muon(params, 0.02, 0.3, 0.8, False), torch.optim.Muon(others, 0.02, 0.3, 0.8, False)
    run(mine, params, range(2))
    run(reference, others, range(2))
    assert_same_bits(params, others)


def test_parameters_without_names_are_counted_over_all_groups() -> None:
    params = parameters()
    optimizer = Muon(iter(params[:2]))
    optimizer.add_param_group({"params": params[2]})
    optimizer.add_param_group({"params": params[3:]})
    assert [group["param_names"] for group in optimizer.param_groups] == [["param0", "param1"], ["param2"], ["param3"]]
    with pytest.raises(ValueError, match=r"per_head finds no matrix named like attention\.q\.weight in param0"):
        Muon(params, partition=partial(per_head, head_size=4))


def test_a_rate_may_be_a_tensor_that_a_schedule_fills() -> None:
    params, others = parameters(), parameters()
    optimizer, plain = Muon(params, lr=torch.tensor(0.5)), Muon(others, lr=0.5)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    run(optimizer, params, range(1))
    run(plain, others, range(1))
    schedule.step()
    plain.param_groups[0]["lr"] = 0.25
    run(optimizer, params, range(1, 2))
    run(plain, others, range(1, 2))
    assert_same_bits(params, others)


def test_a_sparse_gradient_is_refused_before_anything_moves() -> None:
    table = nn.Embedding(6, 4, sparse=True)
    dense, before = zeros(4, 4), table.weight.detach().clone()
    optimizer = Muon([{"params": [("dense", dense)]}, {"params": [("table.weight", table.weight)]}])
    dense.grad = torch.eye(4)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"^table\.weight has a sparse gradient, .* \(sparse=False\), or [^\n]*$"):
        optimizer.step()
    assert not dense.any()
    assert torch.equal(table.weight, before)
    assert not optimizer.state


def test_what_needs_no_muon_pays_for_no_torch() -> None:
    code = "import sys, muon_core.optim; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(ImportError, match="cannot import name 'Lion'"):
        from muon_core.optim import Lion  # type: ignore[attr-defined]  # noqa: F401
