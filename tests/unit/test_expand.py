"""From blocks to runs: axes, precedence, order, shared runs, and the one line each fault gives."""

from hashlib import sha256
from pathlib import Path

import pytest

from muon_core.config.optimizers import IsotropicConfig, OrthoNoiseConfig
from search_spaces.cells import MAX_RUNS
from search_spaces.errors import SpecError
from search_spaces.expand import PlannedRun, expand
from search_spaces.spec import load_spec, parse_spec

SWEEPS = Path(__file__).parents[2] / "search_spaces"
HEAD = """\
version: 1
name: hunt
seeds: [1, 2]
constants: {steps: 50}
blocks:
  - {name: base, role: baseline, optimizer: muon}
  - name: noisy
    optimizer: orthonoise
"""


def runs(*block: str, head: str = HEAD, folder: Path = Path()) -> list[PlannedRun]:
    return expand(parse_spec(head + "".join(f"    {line}\n" for line in block), folder=folder))


def cells(*block: str, head: str = HEAD) -> list[tuple[float, str, float]]:
    """(alpha, anneal, lr) of the cells of the block `noisy`, at its first seed."""
    noisy = [run.config for run in runs(*block, head=head) if run.block == "noisy" and run.config.seed == 1]
    return [(c.optimizer.alpha, c.optimizer.anneal, c.optimizer.lr) for c in noisy]  # type: ignore[union-attr]


def problems(*block: str, head: str = HEAD) -> list[str]:
    with pytest.raises(SpecError) as caught:
        runs(*block, head=head)
    return list(caught.value.lines)


def test_expand_crosses_the_axes_of_a_grid() -> None:
    assert cells("grid: {alpha: [1e-3, 1e-2], anneal: [none, linear]}") == [
        (0.001, "none", 0.02),
        (0.001, "linear", 0.02),
        (0.01, "none", 0.02),
        (0.01, "linear", 0.02),
    ]


def test_expand_walks_zipped_axes_side_by_side_within_the_grid() -> None:
    assert cells("grid: {anneal: [none, linear]}", "zip: {alpha: [0.1, 0.2], lr: [1, 2]}") == [
        (0.1, "none", 1.0),
        (0.2, "none", 2.0),
        (0.1, "linear", 1.0),
        (0.2, "linear", 2.0),
    ]


def test_expand_leaves_skipped_cells_out() -> None:
    left = cells("grid: {alpha: [1e-3, 1e-2], anneal: [none, linear]}", "skip: [{alpha: 0.01, anneal: none}]")
    assert [cell[:2] for cell in left] == [(0.001, "none"), (0.001, "linear"), (0.01, "linear")]
    left = cells("grid: {alpha: [1e-3, 1e-2], anneal: [none, linear]}", "skip: [{optimizer.alpha: 1e-2}]")
    assert [cell[:2] for cell in left] == [(0.001, "none"), (0.001, "linear")]


def test_expand_never_takes_a_list_value_for_an_axis() -> None:
    (_, noisy) = runs("set: {adam_betas: [0.8, 0.9]}", head=HEAD.replace("[1, 2]", "[1]"))
    assert noisy.config.optimizer.adam_betas == (0.8, 0.9)


def test_axes_win_over_set_over_constants_over_preset_over_defaults() -> None:
    head = HEAD.replace("{steps: 50}", "{steps: 50, lr: 0.1, alpha: 0.2, batch_size: 32}")
    head = head.replace("name: hunt", "name: hunt\npreset: 88m")
    base, noisy = runs("set: {lr: 0.3, alpha: 0.4}", "grid: {alpha: [0.5]}", head=head)[:2]
    assert base.config.optimizer.lr == 0.1  # a constant
    assert noisy.config.optimizer == OrthoNoiseConfig(lr=0.3, alpha=0.5)  # set, axis
    assert (noisy.config.batch_size, noisy.config.steps) == (32, 50)  # constants over the preset's 8
    assert (noisy.config.model.num_layers, noisy.config.data.seq_len) == (22, 2048)  # the preset
    assert noisy.config.micro_batches == 1  # the default


def test_expand_finishes_all_arms_of_a_seed_before_the_next() -> None:
    order = [(run.config.seed, run.block, run.role) for run in runs("role: control")]
    assert order == [
        (1, "base", "baseline"),
        (1, "noisy", "control"),
        (2, "base", "baseline"),
        (2, "noisy", "control"),
    ]


def test_blocks_share_a_run_and_both_list_it() -> None:
    shared = runs(
        "set: {alpha: 0.05}",
        "grid: {anneal: [none, linear]}",
        head=HEAD + "    # a second block whose only cell is the first of the first\n",
    )
    more = HEAD + "    grid: {anneal: [none, linear]}\n  - {name: again, role: control, optimizer: orthonoise}\n"
    again = expand(parse_spec(more))
    assert [run.run_id for run in again] == [run.run_id for run in shared]
    assert [run.members for run in again[:3]] == [
        (("base", "baseline"),),
        (("noisy", "candidate"), ("again", "control")),
        (("noisy", "candidate"),),
    ]


def test_expand_gives_the_identity_of_the_config() -> None:
    for run in runs("grid: {alpha: [1e-3, 1]}"):
        assert run.run_id == run.config.run_id
    assert runs("set: {alpha: 1}")[1].run_id == runs("set: {alpha: 1.0}")[1].run_id


@pytest.mark.parametrize(
    ("block", "line", "text"),
    [
        ("grid: {rank_treshold: [0.5]}", 9, "unknown parameter 'rank_treshold'. Did you mean 'rank_threshold'?"),
        ("set:\n      lr: 0.1\n      stepz: 9", 11, "unknown parameter 'stepz'. Did you mean 'steps'?"),
        ("set: {seed: 3}", 9, "'seed' cannot be set here; list seeds under `seeds`"),
        (
            "set: {model: {num_layers: 2}}",
            9,
            "'model' is a group of parameters; write each with a dot: model.num_layers: 2",
        ),
        ("set: {lr: 0.1, optimizer.lr: 0.2}", 9, "'optimizer.lr' and 'lr' are the same parameter; keep one of them"),
        (
            "grid: {alpha: [1]}\n    zip: {alpha: [2], lr: [3]}",
            10,
            "'alpha' is an axis of `grid` already; keep one of them",
        ),
        ("grid:\n      alpha:\n      - 0.1\n      - -0.1", 12, "alpha must be at least 0, got -0.1"),
        ("grid: {nesterov: [off]}", 9, "nesterov must be true or false, got 'off'; write false"),
        (
            "set: {anneal: exponental}",
            9,
            "anneal must be 'none', 'exponential' or 'linear', got 'exponental'. Did you mean 'exponential'?",
        ),
        (
            "set: {data.seq_len: [64, 128]}",
            9,
            "data.seq_len must be a whole number, got [64, 128]; a list is one value here: to try each, put it under"
            " `grid`",
        ),
        ("set: {optimizer: adamw}", 9, "a block has one optimizer, given beside its name; write a block for each"),
        ("set: {learning_rate: 0.1}", 9, "unknown parameter 'learning_rate'. Did you mean 'lr'?"),
        ("set: {ALPHA: 0.1}", 9, "unknown parameter 'ALPHA'. Did you mean 'alpha'?"),
        (
            "set:\n      batch_size: 10\n      micro_batches: 4",
            11,
            "batch_size 10 must be a multiple of micro_batches 4",
        ),
        ("set:\n      model.num_kv_heads: 3", 10, "num_kv_heads 3 must divide num_heads 4"),
        (
            "grid: {alpha: [1]}\n    skip: [{alpha: 2}]",
            10,
            "skip {alpha: 2} matches no cell; give values as they stand on the axes",
        ),
        (
            "grid: {nesterov: [true]}\n    skip: [{nesterov: 1}]",
            10,
            "skip {nesterov: 1} matches no cell; give values as they stand on the axes",
        ),
        ("skip: [{lr: 0.03}]", 9, "'lr' is no axis of this block; it has none: remove the skip"),
        ("grid: {alpha: [1]}\n    skip: [{lr: 0.03}]", 10, "'lr' is no axis of this block; its axes are alpha"),
        ("grid: {alpha: [1]}\n    skip: [{alfa: 2}]", 10, "unknown parameter 'alfa'. Did you mean 'alpha'?"),
        ("grid: {alpha: [1]}\n    skip: [{alpha: 1}]", 10, "skip leaves no cell; remove the block instead"),
        (
            "grid: {tracking.eval_every: [5, 10]}",
            7,
            "two cells are one run, orthonoise-a0.05: they differ in nothing that changes it",
        ),
        (
            f"grid: {{alpha: {list(range(MAX_RUNS // 2 + 1))}}}",
            9,
            "spans 10,002 runs, more than the 10,000 a sweep may have; split it, or thin the axes out",
        ),
    ],
)
def test_expand_tells_a_fault_of_a_block_in_one_line(block: str, line: int, text: str) -> None:
    assert problems(block) == [f"sweep.yaml:{line}: blocks[noisy]: {text}"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{steps: 50}", "{stepz: 50}", "4: constants: unknown parameter 'stepz'. Did you mean 'steps'?"),
        ("{steps: 50}", "{seed: 5}", "4: constants: 'seed' cannot be set here; list seeds under `seeds`"),
        ("{steps: 50}", "{steps: 1.5}", "4: constants: steps must be a whole number, got 1.5; round it"),
        (
            "optimizer: muon}",
            "optimizer: muon, set: {alpha: 1}}",
            "6: blocks[base]: 'alpha' is no parameter of muon, only of orthonoise, isotropic, damped;"
            " remove it or change the optimizer",
        ),
        (
            "optimizer: muon}",
            "optimizer: muon, grid: {lr: [1, 2]}}",
            "6: blocks[base]: the baseline must be one cell, got 2; move its axes to a candidate block",
        ),
        (
            "orthonoise\n",
            "adamw\n  - {name: b, optimizer: adamw, set: {tracking.eval_every: 5}}\n",
            "9: blocks[b]: shares a run with blocks[noisy] but sets another tracking; set it alike",
        ),
        (
            "{steps: 50}",
            "{steps: 50}\nresources: {workers: 3}",
            "5: resources: batch_size 16 in 1 micro-batches does not divide over 3 workers;"
            " choose numbers of which each divides the next",
        ),
    ],
)
def test_expand_tells_a_fault_around_the_blocks_in_one_line(old: str, new: str, message: str) -> None:
    assert old in HEAD
    assert problems(head=HEAD.replace(old, new)) == [f"sweep.yaml:{message}"]


def test_expand_refuses_blocks_that_together_span_too_many_runs() -> None:
    half = list(range(MAX_RUNS // 4 + 1))  # at two seeds
    other = f"  - {{name: other, optimizer: orthonoise, grid: {{start_step: {half}}}}}\n"
    head = HEAD.replace("  - name: noisy", f"{other}  - name: noisy")
    assert problems(f"grid: {{start_step: {half}}}", head=head) == [
        "sweep.yaml:5: blocks: span 10,006 runs together, more than the 10,000 a sweep may have; split it,"
        " or thin the axes out"
    ]


def test_a_constant_of_an_optimizer_needs_a_block_that_has_it() -> None:
    head = HEAD.replace("{steps: 50}", "{alpha: 0.2}")
    assert [run.config.optimizer.name for run in runs(head=head)[:2]] == ["muon", "orthonoise"]
    assert problems(head=head.replace("orthonoise", "adamw")) == [
        "sweep.yaml:4: constants: 'alpha' is no parameter of muon or adamw, only of orthonoise, isotropic, damped;"
        " remove it or change the optimizer"
    ]


def test_expand_tells_every_fault_in_the_order_of_the_file() -> None:
    found = problems("set: {lrr: 1}", "grid: {alfa: [1]}", head=HEAD.replace("{steps: 50}", "{stepz: 5}"))
    assert [line.split(": ")[0] for line in found] == ["sweep.yaml:4", "sweep.yaml:9", "sweep.yaml:10"]


def test_expand_takes_a_corpus_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Some words of my own.\n" * 50)
    path = tmp_path / "hunt.yaml"
    path.write_text(HEAD.replace("{steps: 50}", "{data.corpus: words.txt}"))
    (data,) = {run.config.data for run in expand(load_spec(path))}
    assert data.corpus == str(tmp_path / "words.txt")
    assert data.corpus_sha256 is not None


def test_expand_refuses_a_corpus_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "hunt.yaml"
    path.write_text(HEAD.replace("{steps: 50}", "{data.corpus: nowhere}"))
    with pytest.raises(SpecError) as caught:
        expand(load_spec(path))
    (line,) = caught.value.lines
    assert line.startswith(f"{path}:4: constants: ")
    assert str(tmp_path / "nowhere") in line


def test_demo_compares_four_optimizers_on_three_seeds() -> None:
    demo = expand(load_spec(Path(__file__).parents[2] / "search_spaces" / "demo.yaml"))
    assert [run.config.optimizer.name for run in demo] == ["muon", "adamw", "orthonoise", "isotropic"] * 3
    assert [run.role for run in demo[:4]] == ["baseline", "candidate", "candidate", "control"]
    assert all(run.config.steps >= 150 for run in demo)
    (ortho, control) = (run.config.optimizer for run in demo[2:4])
    assert isinstance(ortho, OrthoNoiseConfig)
    assert isinstance(control, IsotropicConfig)
    differing = {name for name, value in dict(ortho).items() if value != getattr(control, name)}
    assert differing <= {"name", "rank_threshold"}  # the control differs in the kind of noise alone


def test_a_pinned_init_seed_is_refused_where_seeds_should_vary_the_weights() -> None:
    pinned = HEAD.replace("{steps: 50}", "{seeds.init: 7}")
    assert problems(head=pinned) == [
        "sweep.yaml:4: constants: seeds.init pins the initial weights to 7 for all 2 seeds, which would then not vary "
        "them; remove it, or list one seed"
    ]
    assert runs(head=pinned.replace("[1, 2]", "[1]"))[0].config.seeds.init == 7


MANY = """\
version: 1
name: ids
seeds: [0, 42, 9223372036854775807]
constants: {steps: 50, tracking.eval_every: 7, model.dropout: 0.1, micro_batches: 2, spike.action: end}
blocks:
  - {name: base, role: baseline, optimizer: muon, set: {profile: keller}}
  - name: noise
    optimizer: orthonoise
    grid: {alpha: [1e-4, 0.05, 1e+3], anneal: [none, linear], seeds.data: [null, 3]}
  - {name: same, optimizer: orthonoise, set: {alpha: 0.05}}
  - {name: nolah, optimizer: nolah, zip: {lr: [1, 0.5], gate: [relu, tanh]}}
  - name: adamw
    role: control
    optimizer: adamw
    grid: {adam_betas: [[0.9, 0.95], [0.8, 0.99]], precision: [bf16, fp32]}
"""


@pytest.mark.parametrize(
    ("text", "number", "digests"),
    [
        ((SWEEPS / "demo.yaml").read_text(), 12, ("f29922bd4199c237", "80b4a4238f922ed7")),
        ((SWEEPS / "tuning.yaml").read_text(), 40, ("b9185d2eb9e0bc9c", "21f9a034aba91c4c")),
        (MANY, 57, ("df6c3e16bdcc7985", "9c1f64006ed90a5d")),
    ],
    ids=["demo", "tuning", "many"],
)
def test_runs_keep_the_ids_they_had(text: str, number: int, digests: tuple[str, str]) -> None:
    """Another id would train again what the stores of users hold."""
    planned = expand(parse_spec(text))
    ids, arms = [run.run_id for run in planned], [run.config.arm_id for run in planned]
    assert len(ids) == number
    assert tuple(sha256(" ".join(names).encode()).hexdigest()[:16] for names in (ids, arms)) == digests
    assert ids == [run.config.run_id for run in planned]
