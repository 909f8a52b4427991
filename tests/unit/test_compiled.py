"""What `compile: true` compiles: all of it, in one graph for each shape, with the numbers it has otherwise."""

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from muon_core import compiled
from muon_core.compiled import Compiled, check_compiler, compile_model
from muon_core.config.optimizers import DampedConfig, MuonConfig, OptimizerConfig, OrthoNoiseConfig
from muon_core.config.presets import PRESETS
from muon_core.config.profiles import PROFILES
from muon_core.config.run import ModelConfig
from muon_core.model import Transformer, init_weights, next_token_loss
from muon_core.optim.build import Setting, build_optimizers, hidden_optimizer, orthogonalizer
from muon_core.optim.muon import Muon
from muon_core.optim.newton_schulz import iterations
from muon_core.optim.param_groups import assign
from muon_core.optim.sharding import deal, stacks
from ray_jobs.cli.main import main

Graphs = list[tuple[int, ...]]
ALL = [("torch", "fp32"), *((name, own.ns_dtype) for name, own in PROFILES.items())]
SHAPES = [(64, 64)] * 3 + [(64, 128)] * 2 + [(128, 64)]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """The shape of the first input tensor of each graph that is made; they run as they are."""
    made: Graphs = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        made.append(tuple(next(each for each in inputs if isinstance(each, Tensor)).shape))
        return graph.forward  # type: ignore[no-any-return]

    monkeypatch.setattr(compiled, "BACKEND", backend)
    return made


def stepped(config: OptimizerConfig, *, compile: bool, steps: int = 2) -> list[Tensor]:
    """Weights after some steps on gradients that are the same in each call."""
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    optimizer = hidden_optimizer([(f"w{i}", p) for i, p in enumerate(params)], config, Setting(0, compile=compile))
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=draw)
        optimizer.step()
    return [param.detach() for param in params]


@pytest.mark.parametrize(("profile", "dtype"), ALL)
def test_a_step_of_every_profile_is_whole_graphs_that_compute_the_same(
    graphs: Graphs, profile: str, dtype: Any
) -> None:
    """Square ones, of which a CPU stacks those in fp32, wide ones, and the tall one as it is transposed."""
    config = MuonConfig.model_validate({"profile": profile, "ns_dtype": dtype})
    expected = 0 if config.orthogonalizer == "svd" else 3
    for ours, eager in zip(stepped(config, compile=True), stepped(config, compile=False), strict=True):
        assert torch.equal(ours, eager)
    assert (len(graphs), sum(counters["graph_break"].values())) == (expected, 0)


CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_kernels_are_as_near_to_fp64_as_what_is_not_compiled(device: str) -> None:
    """In fp32 a whole run shows it, in tests/integration/test_train.py. A GPU has one graph for three and five."""
    config = MuonConfig(ns_dtype="bf16")
    compute = orthogonalizer(config, compiled=True)
    for k in (3, 5):
        stack = torch.randn(k, 64, 96, generator=torch.Generator().manual_seed(k)).to(device)
        exact = orthogonalizer(config)
        exact = exact.func(stack.double(), **exact.keywords | {"dtype": torch.float64})  # type: ignore[attr-defined]
        ours, eager = compute(stack), orthogonalizer(config)(stack)
        assert (ours - exact).norm() <= 1.2 * (eager - exact).norm()
    assert counters["stats"]["unique_graphs"] == 1


def test_noise_stays_outside_and_its_orthogonalizer_is_compiled(graphs: Graphs) -> None:
    config = OrthoNoiseConfig(alpha=0.1, ns_dtype="fp32")
    for ours, eager in zip(stepped(config, compile=True), stepped(config, compile=False), strict=True):
        assert torch.equal(ours, eager)
    assert len(graphs) == 3


def test_a_stack_of_any_size_has_the_graph_of_two(graphs: Graphs) -> None:
    """What is generated for it does not hang on how many came first; a single matrix has its own."""
    function = Compiled(iterations)
    plain = {k: orthogonalizer(MuonConfig(ns_dtype="fp32"))(torch.ones(k, 8, 16)) for k in (7, 1, 2, 5)}
    options = {**orthogonalizer(MuonConfig(ns_dtype="fp32")).keywords}  # type: ignore[attr-defined]
    options.pop("iterate")
    for k, expected in plain.items():
        assert torch.equal(function(torch.ones(k, 8, 16), **options), expected)
    assert graphs == [(2, 8, 16), (1, 8, 16)]
    wider = torch.ones(3, 8, 20)[..., :16]  # as `damped` cuts it
    assert torch.equal(function(wider, **options), plain[7][:3])
    assert len(graphs) == 2


def test_matrices_that_a_gate_chooses_need_no_more_graphs(graphs: Graphs) -> None:
    """Of three, one has a spectrum below the threshold, then two; those with and without noise differ in size."""
    config = DampedConfig(alpha=0.1, rank_threshold=0.5, ns_dtype="fp32")
    damp: Any = hidden_optimizer([("w", nn.Parameter(torch.ones(8, 16)))], config, Setting(0, compile=True))
    low, high = torch.ones(1, 16, 32), torch.eye(16, 32)[None]
    for parts in ([low, high, high], [low, low, high], [high, high, high], [low, low, low]):
        damp.direct(torch.cat(parts), ["a", "b", "c"], 0, parts)
    assert sorted(graphs) == [(1, 16, 32), (1, 16, 48), (2, 16, 32), (2, 16, 48)]


def test_the_88m_model_needs_eight_graphs_at_most_on_any_rank(graphs: Graphs) -> None:
    """On a device that is none, with the stacks of a GPU: all 132 matrices, and what owners are dealt."""
    with torch.device("meta"):
        model = Transformer(ModelConfig.model_validate(PRESETS["88m"]["model"]))
    named = assign(model.named_parameters())["hidden"]
    optimizer = hidden_optimizer(named, MuonConfig(), Setting(0, compile=True))
    assert isinstance(optimizer, Muon)
    for _, param in named:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert graphs == [(2, 512, 512), (2, 256, 512), (2, 512, 2048), (2, 512, 2048)]
    sizes = set()
    for world_size in (2, 3, 4, 8, 16):
        for dealt in deal(optimizer.all_blocks, world_size):
            for stack in (stack for mine in dealt for stack in stacks(mine)):
                sizes.add((len(stack), *stack[0].shape))
    for size in sizes:
        optimizer.orthogonalize(torch.empty(size, device="meta"))
    assert len(sizes) > 16
    assert len(graphs) <= 8


def test_where_torch_would_go_on_without_compiling_it_raises(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MOST_GRAPHS", 2)
    compute = orthogonalizer(MuonConfig(ns_dtype="fp32"), compiled=True)
    for size in (8, 9):
        compute(torch.ones(3, size, 16))
    with pytest.raises(FailOnRecompileLimitHit):
        compute(torch.ones(3, 10, 16))


def test_a_compiled_muon_is_copied_pickled_and_saved_as_another(graphs: Graphs) -> None:
    param = nn.Parameter(torch.ones(8, 16))
    muon: Any = hidden_optimizer([("w", param)], MuonConfig(ns_dtype="fp32"), Setting(0, compile=True))
    param.grad = torch.randn(8, 16, generator=torch.Generator().manual_seed(3))
    muon.step()
    plain: Any = hidden_optimizer([("w", nn.Parameter(torch.ones(8, 16)))], MuonConfig(), Setting(0))
    plain.load_state_dict(muon.state_dict())
    ends = []
    for other in (copy.deepcopy(muon), pickle.loads(pickle.dumps(muon)), muon):
        assert isinstance(other.orthogonalize.keywords["iterate"], Compiled)
        (theirs,) = other.param_groups[0]["params"]
        theirs.grad = torch.ones(8, 16)
        other.step()
        ends.append(theirs.detach())
    assert torch.equal(ends[0], ends[2])
    assert torch.equal(ends[1], ends[2])


def test_cpus_step_as_they_are_and_what_pays_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bits of torch.optim.Muon, which a CPU would lose for nothing."""

    def computes(*, compile: bool) -> Any:
        named = [("blocks.0.mlp.up.weight", nn.Parameter(torch.ones(8, 4)))]
        patterns = [("*", "hidden")]
        built = build_optimizers(named, MuonConfig(), noise_seed=0, patterns=patterns, compile=compile)  # type: ignore[arg-type]
        return built.hidden.orthogonalize.keywords["iterate"]  # type: ignore[attr-defined]

    assert computes(compile=True) is iterations
    monkeypatch.setattr(compiled, "PAYS", {"cpu"})
    assert isinstance(computes(compile=True), Compiled)
    assert computes(compile=False) is iterations


def test_runs_of_other_shapes_in_one_process_are_all_compiled(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a warm worker: torch would count them all as one function, and give up in silence."""
    monkeypatch.setattr(compiled, "MOST_GRAPHS", 1)
    for rows in (2, 3, 4):
        model = Transformer(ModelConfig(d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=8, vocab_size=257))
        init_weights(model, 0)
        compile_model([model], torch.device("cpu"), whole=True)
        next_token_loss(model, torch.zeros(rows, 5, dtype=torch.long))
    assert len(graphs) == 3
    with pytest.raises(FailOnRecompileLimitHit):
        next_token_loss(model, torch.zeros(5, 5, dtype=torch.long))


@pytest.mark.parametrize(
    ("device", "variable", "words"),
    [("cpu", "CXX", r"a C\+\+ compiler, .*apt-get install g\+\+\)"), ("cuda", "CC", r"a C compiler, .*install gcc\)")],
)
def test_without_a_compiler_there_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, variable: str, words: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        ValueError, match=rf"^compile: true needs {words}.* variable {variable}, or set compile: false$"
    ):
        check_compiler(torch.device(device))
    there = tmp_path / ("g++" if device == "cpu" else "gcc")
    there.write_text("#!/bin/sh\n")
    there.chmod(0o755)
    check_compiler(torch.device(device))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python's headers may be in other places")
def test_without_the_headers_of_python_there_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(ValueError, match=rf"^compile: true needs Python's headers, and {tmp_path}/Python\.h is "):
        check_compiler(torch.device("cuda"))
    (tmp_path / "Python.h").touch()
    check_compiler(torch.device("cuda"))


def test_without_a_compiler_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        main(["pretrain", "--set", "compile=true", "--steps", "1", "--store", str(tmp_path / "store")])
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (2, 1)
    assert "compile: true needs a C++ compiler, and none is found here; install one" in said
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
