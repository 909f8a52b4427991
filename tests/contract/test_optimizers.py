"""What every optimizer of the dict promises; a new entry is covered without a line here."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from support.cpu_kinds import IDS, set_kind
from support.lion_like import lion_like
from support.ranks import run_ranks
from torch import Tensor, nn

from muon_core.config.optimizers import OPTIMIZERS, MuonConfig
from muon_core.optim.blocks import MatrixBlock, Piece
from muon_core.optim.build import build_optimizers
from muon_core.optim.contract import (
    HEAD_SIZE,
    SHAPES,
    New,
    Problem,
    differing,
    keeps_state,
    leaves_gradients,
    passes_over,
    repeats,
    resumes,
    saved,
)
from muon_core.optim.newton_schulz import newton_schulz
from muon_core.optim.sharding import ReplicasDiffer, check_replicas, choose_distribution

STRIPED = {f"blocks.{layer}.striped.weight": (64, 64) for layer in range(2)}
"""Large enough for a CPU that multiplies bf16 number by number to take them in strips."""


ENTRIES = {**dict(sorted(OPTIMIZERS.items())), "LionLike": lion_like}
"""What makes the config of each built-in optimizer, and of a class by reference."""
AVERAGED = ("adamw", "lion", "soap", "LionLike")
"""Those whose average of the gradient is called `exp_avg`."""
SHARED: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ENTRIES),
    ("muon", {"ns_dtype": "fp32"}),
    ("muon", {"profile": "exact"}),
    ("muon", {"attention_blocks": "merge_qkvo"}),
    ("nolah", {"ns_dtype": "fp32"}),
    ("orthonoise", {"attention_blocks": "per_head"}),
    *((f"{name} as_seed", {}) for name in ("orthonoise", "isotropic", "nolah")),
]
"""Entries and fields that two ranks must step like one process."""
DISTRIBUTE = ("auto", "owner", "replicated")


AS_SEED_SCALE = 0.05
"""Of the gradients under as_seed: its momentum, a sum, survives three cubic steps below sqrt 5 only."""


both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(params=[*ENTRIES, "orthonoise as_seed", "isotropic as_seed", "nolah as_seed"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def posed(
    name: str,
    dtype: torch.dtype = torch.float32,
    distribute: Any = "auto",
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    **fields: Any,
) -> Problem:
    """Of an entry, or an entry and ` as_seed`, with gates open so that noise is drawn."""
    entry, *mode = name.split()
    if mode:
        fields = {"mode": "as_seed"} | ({} if entry == "nolah" else {"rank_threshold": 1.0}) | fields
    config = ENTRIES[entry](**fields)  # type: ignore[arg-type]
    build = partial(build_optimizers, config=config, noise_seed=11, head_size=HEAD_SIZE, distribute=distribute)
    return Problem(build, dtype, shapes, AS_SEED_SCALE if mode else 1.0)


def assert_same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert differing(left, right) is None


def test_what_is_kept_of_a_parameter_is_known(name: str) -> None:
    """Its parts, and under which of them the average of the gradient stands."""
    problem = posed(name)
    problem.run(range(2))
    hidden, momenta = problem.optimizers.hidden, problem.optimizers.momenta()
    for key, parts in problem.optimizers.kept().items():
        if key.startswith("blocks."):
            assert set(parts) == hidden.state[problem.params[key]].keys()
    assert momenta
    for key, momentum in momenta.items():
        state = hidden.state[problem.params[key]]
        assert momentum is state["exp_avg" if name in AVERAGED else "momentum_buffer"]


def test_a_state_that_lost_a_part_is_refused(name: str) -> None:
    problem, other = posed(name), posed(name)
    problem.run(range(2))
    state, kept = problem.optimizers.state_dict(), problem.optimizers.kept()
    for key, parts in kept.items():
        for part in parts:
            whole = {field: value for field, value in state[key].items() if field != part}
            with pytest.raises(ValueError, match=rf"optimizer state of {key} lacks {part}; load it"):
                other.optimizers.load_state_dict(state | {key: whole}, kept)
    assert saved(other.optimizers) == {key: {} for key in SHAPES}


@pytest.mark.parametrize("name", ENTRIES)
@both_dtypes
def test_loss_falls_on_a_quadratic(name: str, dtype: torch.dtype) -> None:
    """Each parameter's own share of the loss."""
    problem = posed(name, dtype, lr=0.1 if name == "adamuon" else 0.05)  # whose entries move by a fifth of it
    before = problem.losses()
    problem.run(range(150))
    assert sum(problem.losses().values()) < 0.15 * sum(before.values())
    for key, loss in problem.losses().items():
        assert loss < 0.3 * before[key], key
    assert all(param.dtype == dtype for param in problem.params.values())


@both_dtypes
@pytest.mark.parametrize("promise", [repeats, keeps_state, resumes, leaves_gradients], ids=lambda kept: kept.__name__)
def test_promises_are_kept(promise: Callable[[New], str | None], name: str, dtype: torch.dtype) -> None:
    assert promise(partial(posed, name, dtype)) is None


@pytest.mark.parametrize("name", ["orthonoise", "isotropic", "orthonoise as_seed", "isotropic as_seed"])
def test_these_problems_draw_noise(name: str) -> None:
    """So that what is shown to be equal is not so for want of it; nor is it NaN."""
    noisy, clean = posed(name), posed(name, alpha=0.0)
    without = clean.run(range(3))
    for key, weight in noisy.run(range(3)).items():
        assert weight.isfinite().all()
        if key.startswith("blocks."):
            assert not torch.equal(weight, without[key])


def test_every_parameter_has_a_state(name: str) -> None:
    """So that there is something to lose."""
    problem = posed(name)
    problem.run(range(2))
    state = saved(problem.optimizers)
    assert state.keys() == SHAPES.keys()
    assert all(state.values())


def test_loaded_state_is_a_copy(name: str) -> None:
    first, second = posed(name), posed(name)
    first.run(range(2))
    second.optimizers.load_state_dict(first.optimizers.state_dict())
    before = saved(first.optimizers)
    second.run(range(2, 4))
    after = first.optimizers.state_dict()
    for key, values in before.items():
        assert all(torch.equal(value, after[key][field]) for field, value in values.items())


def test_state_before_the_first_step_is_empty_and_loads(name: str) -> None:
    fresh = posed(name)
    state = saved(fresh.optimizers)
    assert state == {key: {} for key in SHAPES}
    fresh.optimizers.load_state_dict(state)
    assert_same_bits(fresh.run(range(2)), posed(name).run(range(2)))


def test_parameters_without_gradient_are_skipped(name: str) -> None:
    """Nor do they change what happens to the others."""
    assert passes_over(partial(posed, name, weight_decay=0.1)) is None


def test_step_without_any_gradient_changes_nothing(name: str) -> None:
    """It counts as a step, and the run goes on as if it had not been: noise is keyed by the number handed in."""
    problem, whole = posed(name, weight_decay=0.1), posed(name, weight_decay=0.1)
    before = problem.weights()
    assert problem.optimizers.step(0, keep_updates=True).keys() == {key for key in SHAPES if key.startswith("blocks.")}
    assert_same_bits(problem.weights(), before)
    assert saved(problem.optimizers) == {key: {} for key in SHAPES}
    assert_same_bits(problem.run(range(1, 3)), whole.run(range(1, 3)))


@both_dtypes
def test_zero_gradients_change_nothing(name: str, dtype: torch.dtype) -> None:
    problem = posed(name, dtype)
    before = problem.weights()
    for param in problem.params.values():
        param.grad = torch.zeros_like(param)
    problem.optimizers.step(0)
    assert_same_bits(problem.weights(), before)


def test_keeping_updates_changes_no_bit(name: str) -> None:
    plain, kept = posed(name, weight_decay=0.1), posed(name, weight_decay=0.1)
    for step in range(3):
        for problem in (plain, kept):
            problem.backward()
        plain.optimizers.step(step)
        before = kept.weights()
        updates = kept.optimizers.step(step, keep_updates=True)
        assert updates.keys() == {key for key in SHAPES if key.startswith("blocks.")}
        decay = 1 if name == "LionLike" else 1 - kept.optimizers.hidden_lr * 0.1  # whether it is decoupled is not known
        for key, update in updates.items():
            torch.testing.assert_close(before[key] * decay + update, kept.params[key].detach(), rtol=0, atol=1e-6)
    assert_same_bits(plain.weights(), kept.weights())


def stepped(
    name: str, fields: dict[str, Any], distribute: str, resumed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Weights and state after three steps, from the start or from what another world size left."""
    problem = posed(name, distribute=distribute, shapes=SHAPES | STRIPED, **fields)
    if resumed is not None:
        problem.resume(resumed["weights"], resumed["state"])
    start = 0 if resumed is None else 3
    weights = problem.run(range(start, start + 3))
    return {"weights": weights, "state": problem.optimizers.state_dict()}


def without_a_gradient(distribute: str) -> dict[str, Tensor]:
    """Weights after three steps in which one matrix of a stack has no gradient in the second."""
    problem = posed("muon", ns_dtype="fp32", distribute=distribute)
    for step in range(3):
        problem.backward()
        if step == 1:
            problem.params["blocks.1.square.weight"].grad = None
        problem.optimizers.step(step)
    return problem.weights()


def with_a_gradient_on_one(rank: int) -> tuple[str, dict[str, Tensor]]:
    """What a step says of it, and the weights after that step and one in which all ranks have all gradients."""
    problem = posed("muon", distribute="owner", ns_dtype="fp32")
    problem.backward()
    if rank == 1:
        problem.params["blocks.1.square.weight"].grad = None
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # compared in full by the caller
        problem.optimizers.step(0)
    return str(refused.value), problem.run(range(1))


def key(name: str, fields: dict[str, Any], distribute: str) -> str:
    return f"{name} {fields} {distribute}"


def modes(name: str) -> list[str]:
    stored = name in ("orthonoise as_seed", "isotropic as_seed")  # noise in the momentum is every rank's to compute
    return [mode for mode in DISTRIBUTE if not (stored and mode == "owner")]


BAD_SHAPES = [(2, 2, 2), (3,), (0, 4)]


def refusal(shape: tuple[int, ...], distribute: Any) -> str:
    """What is said of a parameter that is no matrix."""
    named = [("a", nn.Parameter(torch.zeros(shape))), ("b", nn.Parameter(torch.zeros(2)))]
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # compared in full by the caller
        build_optimizers(
            named, MuonConfig(), noise_seed=0, distribute=distribute, patterns=[("a", "hidden"), ("b", "vectors")]
        )
    return str(refused.value)


def rank_of_two(rank: int, folder: str) -> None:
    """One of two gloo ranks, as on either kind of CPU."""
    for slow_bf16, kind in IDS.items():
        with pytest.MonkeyPatch.context() as patch:
            set_kind(patch, slow_bf16)
            torch.save(shared_problems(rank, torch.load(f"{folder}/alone-{kind}")), f"{folder}/rank{rank}-{kind}")


def shared_problems(rank: int, stepped_alone: dict[str, Any]) -> dict[str, Any]:
    """All of them on one of two ranks; both must end with the same weights, and then be made to differ."""
    ends: dict[str, Any] = {}
    for name, fields in SHARED:
        for mode in modes(name):
            ends[key(name, fields, mode)] = stepped(name, fields, mode)
    ends["absent"] = without_a_gradient("owner")
    ends["on one"] = with_a_gradient_on_one(rank)
    problem = posed("muon", ns_dtype="fp32")
    distribution = problem.optimizers.distribution
    assert distribution is not None
    assert distribution.gather_s is not None
    ends["probe"] = distribution.mode
    for shape in ((8, 2), (2, 8)):
        block = MatrixBlock("w", (Piece(nn.Parameter(torch.zeros(shape))),))
        assert choose_distribution("auto", [block], newton_schulz).compute_s is not None
    ends["refused"] = [refusal(shape, distribute) for shape in BAD_SHAPES for distribute in DISTRIBUTE]
    ends["resumed"] = {
        f"{name} {fields}": stepped(name, fields, "auto", resumed=stepped_alone[f"{name} {fields}"])["weights"]
        for name, fields in SHARED
    }
    check_replicas(problem.params.items(), step=7)
    if rank == 1:
        problem.params["blocks.0.tall.weight"].data[3, 2] += 1e-6
    try:
        check_replicas(problem.params.items(), step=8)
    except ReplicasDiffer as error:
        ends["differs"] = str(error)
    return ends


@pytest.fixture(scope="module")
def ends_of_kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[dict[str, Any]]]:
    """What each of two ranks ended with on either kind of CPU."""
    folder = tmp_path_factory.mktemp("ranks")
    for slow_bf16, kind in IDS.items():
        with pytest.MonkeyPatch.context() as patch:
            set_kind(patch, slow_bf16)
            alone = {f"{name} {fields}": stepped(name, fields, "auto") for name, fields in SHARED}
        torch.save(alone, folder / f"alone-{kind}")
    run_ranks(2, folder / "rendezvous", rank_of_two, str(folder))
    return {
        slow_bf16: [torch.load(folder / f"rank{rank}-{kind}") for rank in (0, 1)] for slow_bf16, kind in IDS.items()
    }


@pytest.fixture(params=IDS, ids=IDS.values())
def two_ranks(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    ends_of_kinds: dict[bool, list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """What each of two ranks ended with on a kind of CPU, on which the test goes on."""
    set_kind(monkeypatch, request.param)
    return ends_of_kinds[request.param]


@pytest.mark.parametrize(("entry", "fields"), SHARED)
def test_two_ranks_have_the_bits_of_one(two_ranks: list[dict[str, Any]], entry: str, fields: dict[str, Any]) -> None:
    alone = stepped(entry, fields, "auto")
    for ends in two_ranks:
        for mode in modes(entry):
            shared = ends[key(entry, fields, mode)]
            assert_same_bits(shared["weights"], alone["weights"])
            assert differing(shared["state"], alone["state"]) is None


@pytest.mark.parametrize(("entry", "fields"), SHARED)
def test_state_of_two_ranks_resumes_on_one(two_ranks: list[dict[str, Any]], entry: str, fields: dict[str, Any]) -> None:
    whole = posed(entry, shapes=SHAPES | STRIPED, **fields)
    uninterrupted = whole.run(range(6))
    for mode in modes(entry):
        resumed = stepped(entry, fields, "auto", resumed=two_ranks[0][key(entry, fields, mode)])
        assert_same_bits(resumed["weights"], uninterrupted)


@pytest.mark.parametrize(("entry", "fields"), SHARED)
def test_state_of_one_resumes_on_two_ranks(two_ranks: list[dict[str, Any]], entry: str, fields: dict[str, Any]) -> None:
    uninterrupted = posed(entry, shapes=SHAPES | STRIPED, **fields).run(range(6))
    for ends in two_ranks:
        assert_same_bits(ends["resumed"][f"{entry} {fields}"], uninterrupted)


def test_what_is_no_matrix_is_refused_by_name_on_two_ranks_too(two_ranks: list[dict[str, Any]]) -> None:
    expected = [
        f"Muon orthogonalizes non-empty matrices, but a has shape {shape}; reshape it to two dimensions or give it to "
        "AdamW"
        for shape in BAD_SHAPES
    ]
    for ends in two_ranks:
        assert ends["refused"] == [text for text in expected for _ in DISTRIBUTE]


def test_owners_pass_over_a_matrix_without_gradient(two_ranks: list[dict[str, Any]]) -> None:
    for ends in two_ranks:
        assert_same_bits(ends["absent"], without_a_gradient("auto"))


def test_owners_refuse_a_gradient_that_only_one_rank_has_before_anything_moves(two_ranks: list[dict[str, Any]]) -> None:
    for ends in two_ranks:
        message, weights = ends["on one"]
        assert message == (
            "blocks.1.square.weight has a gradient on ranks [0] of 2 only, so that its momentum would differ between "
            "them; give it one on every rank (zeros, as DDP does for what a rank did not use) or on none"
        )
        assert_same_bits(weights, posed("muon", ns_dtype="fp32").run(range(1)))


def test_probe_decides_alike_on_every_rank(two_ranks: list[dict[str, Any]]) -> None:
    assert two_ranks[0]["probe"] == two_ranks[1]["probe"]
    assert two_ranks[0]["probe"] in ("owner", "replicated")


def test_weights_that_differ_between_ranks_are_named_on_all(two_ranks: list[dict[str, Any]]) -> None:
    for ends in two_ranks:
        assert ends["differs"].startswith(
            "weights differ between ranks at step 8: blocks.0.tall.weight and 0 more; resume"
        )
