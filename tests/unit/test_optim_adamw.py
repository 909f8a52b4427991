"""AdamW is torch's, and no optimizer imports torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from muon_core.config.optimizers import AdamWConfig
from muon_core.optim import build
from muon_core.optim.adamw import AdamW, fused
from muon_core.optim.build import build_optimizers

ALONE = """
import sys
import torch
from muon_core.optim.build import build_optimizers
from muon_core.config.optimizers import AdamWConfig, MuonConfig

for config in (MuonConfig(), AdamWConfig()):
    weights = [("embedding.weight", torch.nn.Parameter(torch.ones(5, 3))),
               ("blocks.0.mlp_norm.weight", torch.nn.Parameter(torch.ones(3))),
               ("blocks.0.mlp.up.weight", torch.nn.Parameter(torch.ones(6, 3)))]
    both = build_optimizers(weights, config, noise_seed=0)
    for step in range(2):
        for _, weight in weights:
            weight.grad = torch.ones_like(weight)
        both.step(step)
    both.load_state_dict(both.state_dict())
    print(config.name, "torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("fused", [None, True])
def test_steps_have_the_bits_of_torch(fused: bool | None) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(5, 3), torch.randn(7)]
    ours, theirs = ([nn.Parameter(weight.clone()) for weight in weights] for _ in range(2))
    settings = {"lr": 0.03, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": fused}
    optimizers = [AdamW(ours, **settings), torch.optim.AdamW(theirs, **settings)]
    for _ in range(5):
        gradients = [torch.randn_like(weight) for weight in weights]
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient.clone()
            optimizer.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    mine, other = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert all(torch.equal(mine[i][key], other[i][key]) for i in other for key in other[i])


def test_a_step_builds_no_graph_and_hooks_are_called() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight])
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.grad_fn is None
    assert called == ["before", "after"]


def test_the_compiler_is_not_imported() -> None:
    """In a process of its own; made, stepped, saved and loaded."""
    found = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert (found.stdout, found.returncode) == ("muon False\nadamw False\n", 0), found.stderr


def test_the_fused_kernel_steps_as_the_loop_and_goes_on_from_a_saved_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which is left to torch on a CPU; there it has such a kernel, too."""
    assert fused([("w", nn.Parameter(torch.ones(2, 2)))]) is None
    torch.manual_seed(0)
    weights = {
        "blocks.0.mlp.up.weight": torch.randn(6, 4),
        "embedding.weight": torch.randn(5, 4),
        "norm.weight": torch.ones(4),
    }
    gradients = [{name: torch.randn_like(weight) for name, weight in weights.items()} for _ in range(4)]

    def stepped(saved_after: int | None = None) -> dict[str, nn.Parameter]:
        params = {name: nn.Parameter(weight.clone()) for name, weight in weights.items()}
        optimizers = build_optimizers(params.items(), AdamWConfig(), noise_seed=0)
        for number, step in enumerate(gradients):
            if number == saved_after:
                state = optimizers.state_dict()
                optimizers = build_optimizers(params.items(), AdamWConfig(), noise_seed=0)
                optimizers.load_state_dict(state)
            for name, gradient in step.items():
                params[name].grad = gradient.clone()
            optimizers.step(number)
        return params

    looped = stepped()
    monkeypatch.setattr(build, "fused", lambda params: True)
    whole, resumed = stepped(), stepped(saved_after=2)
    for name, weight in whole.items():
        torch.testing.assert_close(weight, looped[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(weight, resumed[name])
