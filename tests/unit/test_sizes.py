"""How large runs are before they are run: by hand, as the model has it, and as autograd keeps it."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from muon_core.config.memory import DoesNotFit, block_activations, check_fits, cut_to_fit, memory
from muon_core.config.presets import PRESETS
from muon_core.config.run import ModelConfig, RunConfig
from muon_core.config.sizes import (
    ITERATIONS,
    flops_per_token,
    matrices,
    num_hidden,
    num_parameters,
    orthogonalizer_flops,
    orthogonalizer_share,
    parameters,
)
from muon_core.failures import classify
from muon_core.gpus import GPUS, find, of_node
from muon_core.model import Transformer, hidden_matrices
from muon_core.optim.newton_schulz import COEFFICIENTS
from muon_core.optim.sharding import flops as flops_of_matrix

SIZES = {"88m": 88e6, "350m": 350e6, "1b": 1e9}


def preset(name: str, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(PRESETS[name] | changes)


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_presets_have_as_many_weights_as_their_names_say(name: str, size: float) -> None:
    assert num_parameters(preset(name).model) == pytest.approx(size, rel=0.03)


def test_the_88m_preset_is_the_published_model() -> None:
    """github.com/vukrosic/muon-llm-research: 88.6M weights, 16,384 tokens a step."""
    run = preset("88m")
    assert run.model == ModelConfig(
        d_model=512, num_layers=22, num_heads=8, num_kv_heads=4, d_ff=2048, vocab_size=49_152
    )
    assert num_parameters(run.model) == 88_627_712
    assert (run.data.seq_len, run.tokens_per_step) == (2048, 16_384)
    assert parameters(run.model) == {
        "embedding": 25_165_824, "attention": 17_301_504, "mlp": 46_137_344, "norms": 23_040
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 4}, {"d_model": 96, "num_heads": 2, "num_kv_heads": 1}])
def test_weights_are_counted_as_the_model_has_them(changes: dict[str, Any]) -> None:
    config = ModelConfig(**changes)
    model = Transformer(config)
    found = hidden_matrices(model)
    assert num_parameters(config) == sum(weight.numel() for weight in model.parameters())
    assert num_hidden(config) == sum(matrix.parameter.numel() for matrix in found)
    assert matrices(config) == {matrix.projection: tuple(matrix.parameter.shape) for matrix in found[:6]}


def test_flops_by_hand_and_as_the_optimizer_counts_them() -> None:
    run = preset("88m")
    assert flops_per_token(run) == 6 * 88_627_712 + 12 * 22 * 512 * 2048
    shapes = matrices(run.model).values()
    assert orthogonalizer_flops(run) == 22 * sum(flops_of_matrix(*shape) for shape in shapes)
    assert orthogonalizer_flops(run) == pytest.approx(0.75e12, rel=0.01)
    own = 0.75e12 / (0.75e12 + 16_384 * flops_per_token(run))
    assert orthogonalizer_share(run) == pytest.approx(own, rel=0.01)
    assert orthogonalizer_share(preset("88m", optimizer={"name": "adamw"})) == 0


def test_iterations_are_those_of_the_coefficients() -> None:
    assert {name: len(steps) for name, steps in COEFFICIENTS.items()} == ITERATIONS


def kept_bytes(model: ModelConfig, *, bf16: bool, checkpoints: bool = False) -> int:
    """Bytes that autograd keeps of a forward pass of 2 x 32 tokens, beside weights and their copies."""
    built, seen = Transformer(model), dict[int, int]()
    own = {weight.untyped_storage().data_ptr() for weight in built.parameters()}
    shapes = {tuple(weight.shape) for weight in built.parameters() if weight.ndim > 1}
    copies = shapes | {shape[::-1] for shape in shapes}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tuple(tensor.shape) not in copies:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    precision = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    built.checkpoints = checkpoints
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision:
        built(torch.zeros(2, 32, dtype=torch.long))
    return sum(seen.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_activations_of_a_block_are_those_that_autograd_keeps(bf16: bool, kv_heads: int) -> None:
    shape = {"d_model": 40, "num_heads": 4, "num_kv_heads": kv_heads, "d_ff": 112, "vocab_size": 300}
    two, one = (kept_bytes(ModelConfig(**shape, num_layers=layers), bf16=bf16) for layers in (2, 1))
    assert two - one == 64 * block_activations(ModelConfig(**shape), bf16=bf16)


@pytest.mark.parametrize("bf16", [False, True])
def test_with_checkpoints_autograd_keeps_the_input_of_a_block(bf16: bool) -> None:
    shape = {"d_model": 40, "num_heads": 4, "num_kv_heads": 2, "d_ff": 112, "vocab_size": 300}
    two, one = (kept_bytes(ModelConfig(**shape, num_layers=n), bf16=bf16, checkpoints=True) for n in (2, 1))
    assert two - one == 64 * 4 * 40


def test_memory_counts_weights_gradients_and_state() -> None:
    model = preset("88m").model
    muon, adamw = preset("88m", precision="fp32"), preset("88m", precision="fp32", optimizer={"name": "adamw"})
    total, hidden = num_parameters(model), num_hidden(model)
    assert memory(muon).weights == memory(muon).gradients == 4 * total
    assert memory(muon).optimizer == 4 * (hidden + 2 * (total - hidden))
    assert memory(adamw).optimizer == 8 * total
    assert memory(preset("88m")).weights == 6 * total  # with copies in bf16


def test_shares_divide_weights_gradients_and_state() -> None:
    run, shared = preset("1b", precision="fp32"), preset("1b", precision="fp32", parallel="fsdp")
    assert memory(shared) == memory(run)  # of one worker
    rest = num_parameters(run.model) - num_hidden(run.model)
    whole, share = memory(run, workers=8), memory(shared, workers=8)
    owned = num_hidden(run.model) * 3 // 20  # of 20 layers some of 8 workers own three
    assert share.gradients == whole.gradients // 8
    assert share.optimizer == 4 * (owned + 2 * rest // 8)
    assert share.weights == whole.weights // 8 + 4 * (rest + 2 * run.model.d_model * run.model.d_ff)
    assert (share.gathered, whole.gathered) == (8 * owned, 0)  # an owner's matrices and their gradients
    assert (share.activations, share.loss) == (whole.activations, whole.loss)
    assert memory(preset("1b", parallel="fsdp"), workers=8).peak < memory(preset("1b"), workers=8).peak


def test_an_optimizer_step_of_owners_can_be_the_largest_moment() -> None:
    run = preset("1b", parallel="fsdp", micro_batches=128, activation_checkpointing=True, data={"seq_len": 16})
    held = memory(run, workers=8)
    assert held.peak == held.weights + held.optimizer + held.gradients + held.gathered
    assert f"gathered {held.gathered / 2**30:.2g})" in held.describe()


def test_what_does_not_fit_is_cut_into_the_fewest_micro_batches_that_do() -> None:
    run = preset("88m")
    assert cut_to_fit(run, memory(run).peak) == run
    cut = cut_to_fit(run, 6 * 2**30)
    assert cut is not None
    assert (cut.micro_batches, cut.activation_checkpointing) == (4, False)
    smaller = cut_to_fit(run, 2 * 2**30)
    assert smaller is not None
    assert (smaller.micro_batches, smaller.activation_checkpointing) == (4, True)
    assert cut_to_fit(run, 2**30) is None


def test_what_a_gpu_measures_beside_training_is_counted() -> None:
    """Weights, updates, momenta, gradients, what Muon orthogonalized; and 256 MiB in fp64 with three times as much."""
    muon, adamw = preset("88m"), preset("88m", optimizer={"name": "adamw"})
    total, hidden = num_parameters(muon.model), num_hidden(muon.model)
    assert memory(muon).tracking == 5 * 4 * hidden + 4 * 2**28
    assert memory(adamw).tracking == 4 * 4 * hidden + 4 * 2**28
    tree = preset("88m", reduction="tree", micro_batches=8)
    assert memory(tree).tracking == 4 * (4 * hidden + total) + 4 * 2**28
    shared = memory(preset("88m", parallel="fsdp"), workers=2)
    assert shared.tracking == 5 * 4 * hidden // 2 + 4 * 2**28
    large = preset("1b")  # a single matrix of 2048 x 8192, with update and momentum, is more than that
    assert memory(large).tracking == 5 * 4 * num_hidden(large.model) + 4 * 24 * 2048 * 8192
    tiny = preset("tiny")
    assert memory(tiny).tracking == (5 * 4 + 4 * 24) * num_hidden(tiny.model)
    check_fits(muon, memory(muon).peak, "cuda:0")  # without it: where it has no room, training waits


def test_several_workers_that_lack_memory_are_told_of_shares() -> None:
    with pytest.raises(DoesNotFit, match=r"or parallel: fsdp \(.* and parallel: fsdp \("):
        check_fits(preset("1b"), 2**30, "cuda:0", workers=8)
    with pytest.raises(DoesNotFit, match=r"^((?!fsdp).)*$"):
        check_fits(preset("1b", distribute="replicated"), 2**30, "cuda:0", workers=8)


def test_micro_batches_workers_and_checkpointing_divide_activations() -> None:
    whole = memory(preset("88m"))
    assert memory(preset("88m", micro_batches=4)).activations == whole.activations / 4
    assert memory(preset("88m"), workers=8).activations == whole.activations / 8
    assert memory(preset("88m", activation_checkpointing=True)).activations < whole.activations / 8
    assert memory(preset("88m")).peak - whole.weights - whole.optimizer == whole.activations + whole.loss
    assert memory(preset("88m", micro_batches=8)).accumulates


def test_a_run_that_does_not_fit_is_refused_with_what_would_help() -> None:
    run = preset("88m")
    check_fits(run, memory(run).peak, "this machine")
    with pytest.raises(DoesNotFit) as refused:
        check_fits(run, 4 * 2**30, "this machine")
    assert str(refused.value) == (
        "this run needs about 12.0 GiB (weights 0.5, gradients 0.33, optimizer 0.42, activations 10.8, loss 0.31) and "
        "this machine has 4.0 GiB free; set micro_batches: 8 (2.9 GiB), or activation_checkpointing: true (2.5 GiB), "
        "or micro_batches: 8 and activation_checkpointing: true (1.7 GiB)"
    )
    assert classify(refused.value) == "out_of_memory"


def test_of_a_hugging_face_model_activations_are_a_guess() -> None:
    run = RunConfig.model_validate({"model": {"hf": "some/model", "d_model": 512, "num_layers": 12}})
    needed = memory(run)
    check_fits(run, needed.peak - needed.activations // 2, "cuda:0")
    with pytest.raises(DoesNotFit, match="and cuda:0 has"):
        check_fits(run, needed.peak - needed.activations // 2 - 1, "cuda:0")


def test_a_run_that_fits_nowhere_is_told_so() -> None:
    run = preset("1b", micro_batches=128, activation_checkpointing=True)
    with pytest.raises(DoesNotFit, match=r"smallest micro-batches already; that is not enough: shorten data\.seq_len"):
        check_fits(run, 2**30, "cuda:0")


def test_what_goes_by_the_device_is_refused_where_the_smallest_micro_batches_do_not_fit() -> None:
    auto = preset("88m", micro_batches="auto")
    smallest = memory(preset("88m", micro_batches=8))
    assert memory(auto) == smallest
    check_fits(auto, smallest.peak, "this machine")
    with pytest.raises(DoesNotFit, match=r"has 1\.0 GiB free; set activation_checkpointing: true \("):
        check_fits(auto, 2**30, "this machine")


@pytest.mark.parametrize("change", [{"batch_size": 12, "micro_batches": 2, "reduction": "tree"}, {"batch_size": 6}])
def test_what_would_help_is_valid(change: dict[str, Any]) -> None:
    with pytest.raises(DoesNotFit, match=f"micro_batches: {4 if change['batch_size'] == 12 else 6} "):
        check_fits(preset("88m", **change), 2**30, "this machine", workers=2)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"), ("NVIDIA GH200 480GB", "gh200"), ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-40GB", "a100"), ("A100-PCIE-40GB", "a100"), ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"), ("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"), ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"), ("NVIDIA A40", "a40"), ("NVIDIA RTX A6000", "a6000"), ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"), ("GeForce RTX 3090", "rtx3090"), ("Tesla V100-SXM2-16GB", "v100"),
    ],
)  # fmt: skip
def test_gpus_are_known_by_what_devices_call_themselves(device: str, name: str) -> None:
    assert find(device) is GPUS[name]


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H200 NVL", "NVIDIA H800", "NVIDIA H100 64GB HBM3", "GRID A100-10C",
        "NVIDIA A100-SXM-64GB", "NVIDIA L40", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti", "NVIDIA RTX 6000 Ada Generation", "AMD Instinct MI300X", "cpu x86_64 AVX512", "",
    ],
)  # fmt: skip
def test_of_slices_and_cards_that_are_alike_by_name_only_nothing_is_said(device: str) -> None:
    assert find(device) is None


def test_peaks_are_dense_and_there_is_none_of_a_precision_that_is_emulated() -> None:
    assert [GPUS[name].peak("bf16") for name in ("h100", "h100-nvl", "h100-pcie")] == [989e12, 835e12, 756e12]
    assert GPUS["rtx4090"].bf16 == 2 * GPUS["rtx4090"].fp32  # summed in fp32: half of what is advertised
    assert GPUS["t4"].peak("bf16") is GPUS["v100"].peak("bf16") is None
    assert all(gpu.fp32 and gpu.source and gpu.fp32 <= (gpu.bf16 or gpu.fp32) for gpu in GPUS.values())


def test_machines_of_a_family_have_its_gpu() -> None:
    nodes = ("g5.12xlarge", "p5.4xlarge", "p5en.48xlarge", "p4d.24xlarge", "p4de.24xlarge", "g6e.xlarge", "g6.xlarge")
    assert [of_node(node) for node in nodes] == ["a10g", "h100", "h200", "a100", "a100-80gb", "l40s", "l4"]
    assert of_node("m5.xlarge") is of_node("g5g.xlarge") is of_node("local") is of_node("") is None
