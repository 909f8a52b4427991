"""What the texts say holds: links, commands, snippets, the map, the table of columns, the help of every command."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import polars as pl
import pytest
from support.analysis_fixtures import demo_runs, write_store
from support.analysis_fixtures import write_sweep as list_runs
from support.prepared import small_set

from muon_core import tables
from muon_core.config.base import Config
from muon_core.config.optimizers import OPTIMIZERS
from muon_core.config.run import RunConfig
from muon_core.store.folder import Folder
from muon_core.store.keys import LogPart, next_start
from muon_core.store.sweeps import SweepRecord, SweepRun, write_sweep
from muon_core.train import train
from ray_jobs.cli.commands import cli
from ray_jobs.cli.main import main
from search_spaces import reference
from search_spaces.expand import expand
from search_spaces.parameters import GROUPS
from search_spaces.spec import parse_spec

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXTS = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("muon_core", "search_spaces", "ray_jobs", "analysis")


def blocks(path: Path, language: str) -> list[str]:
    """Fenced blocks of a language (empty: of none)."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """The text of a README section."""
    return README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def shell_lines(path: Path) -> list[list[str]]:
    """The words of each command in the `sh` blocks of a text."""
    lines = "".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def examples(command: click.Command, name: str) -> list[list[str]]:
    """The words of each example in the help of a command that is called `name`."""
    lines = [line.strip() for line in (command.help or "").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(name)]


def cheap_commands() -> list[tuple[str, ...]]:
    """Commands of texts and helps that train nothing, or that `--dry-run` keeps from it; without redirections.

    `import`, `compact` and `runs rm` want stores of their own, and `data` text, in their tests; what `doctor` says
    hangs on the machine; `optimizers check` trains; a model of the Hub wants the Hub.
    """
    shown = [words for path in TEXTS for words in shell_lines(path) if words[0] == "muon"]
    shown += [words for name, command in commands(cli) for words in examples(command, name)]
    found = {tuple(words[1 : words.index(">")] if ">" in words else words[1:]) for words in shown}
    found = {(*words, "--dry-run") if words[0] == "pretrain" else words for words in found}
    elsewhere = ("import", "compact", "doctor", "sweep", "optimizers", "data")
    cheap = (("sweep", "plan"), ("optimizers",))
    at_home = {words for words in found if not any(word.startswith("hf:") for word in words)}
    asked = {words for words in at_home if words[:2] != ("runs", "rm")}
    return sorted(words for words in asked if words[0] not in elsewhere or words[:2] in cheap)


def commands(group: click.Group, path: tuple[str, ...] = ("muon",)) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group`, groups too, with the words that call it."""
    context = click.Context(group, info_name=path[-1])
    yield " ".join(path), group
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def check_command(words: list[str]) -> None:
    """Parse a `muon` command without running it. Raises click.UsageError for what does not exist."""
    words = words[1 : words.index(">")] if ">" in words else words[1:]
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None, name
        command = found
    if not isinstance(command, click.Group) and not {"-h", "--help"} & set(words):
        command.make_context(command.name, words)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link) and not link.startswith("#")]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_muon_commands_of_the_texts_parse(path: Path) -> None:
    for words in shell_lines(path):
        if words[0] == "muon":
            check_command(words)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_with_arguments_stand_in_fenced_blocks(path: Path) -> None:
    """There they are checked; inline are names of commands only."""
    text = path.read_text()
    names = {name for name, _ in commands(cli)}
    assert [span for span in re.findall(r"`(muon [^`]+)`", text) if " ".join(span.split()) not in names] == []
    assert re.findall(r"^ {4}.*\bmuon [a-z].*$", text, re.MULTILINE) == []


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands of the texts speak of: sweeps in a store, sweep files, a run, text, tokens."""
    folder = tmp_path_factory.mktemp("workplace")
    gate = {"name": "sane", "kind": "non_inferior", "of": "block:noise", "margin": "5%"}
    storage = write_store(folder / "results", demo_runs(), spec={"version": 1, "name": "demo", "gates": [gate]})
    (key,) = [key for key, _ in storage.list("sweeps/demo/")]
    for name in ("alpha-scan", "rivals", "muon_vs_adamw"):
        storage.put(key.replace("demo", name), storage.get(key))
    muon = [
        {"run_id": f"muon-s{seed}-0badcafe", "block": "a", "role": "baseline", "arm": "muon"} for seed in (42, 137, 256)
    ]
    list_runs(storage, "golden", muon[:2])
    list_runs(storage, "nightly", muon[2:])
    storage.put(LogPart("muon-s42-0badcafe", next_start(), 0, 0, 8).key, b"printed\n")
    (folder / "sweep.yaml").write_text("".join(blocks(README, "yaml")))
    (folder / "search_spaces").symlink_to(ROOT / "search_spaces")
    (folder / "run.yaml").write_text("steps: 5\n")
    small_set(folder / "sets" / "books")
    (folder / "books").mkdir()
    (folder / "books" / "one.txt").write_text("Some words of my own.\n" * 50)
    return folder


@pytest.mark.parametrize("words", cheap_commands(), ids=" ".join)
def test_cheap_commands_of_texts_and_helps_run(
    words: tuple[str, ...], workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    for name in ("MUON_STORE", "MUON_LOG_LEVEL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as stop:
        main([word.replace("-3f9a1c07", "-0badcafe") for word in words])  # a hash that stands for any
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    assert out


def test_cheap_commands_are_most_of_those_shown() -> None:
    kinds = {words[0] for words in cheap_commands()}
    assert {"query", "runs", "status", "report", "pretrain", "sweep", "version", "schema"} <= kinds


def test_the_check_of_commands_notices_what_does_not_exist() -> None:
    with pytest.raises(AssertionError):
        check_command(["muon", "sweep", "plam"])
    for wrong in (
        ["muon", "pretrain", "--stepz", "5"],
        ["muon", "sweep", "plan"],
        ["muon", "pretrain", "--steps", "x"],
    ):
        with pytest.raises(click.UsageError):
            check_command(wrong)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_of_the_texts_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in shell_lines(path) if words[0] == "make"}
    named |= set(re.findall(r"`make ([\w-]+)`", path.read_text()))
    assert named <= targets
    assert path != README or {"demo", "test"} <= named


@pytest.mark.parametrize(
    ("name", "command"), list(commands(cli)), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_is_explained_with_an_example_and_named_in_the_texts(name: str, command: click.Command) -> None:
    assert examples(command, name), f"{name} --help shows no example"
    for words in examples(command, name):
        check_command(words)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"
    assert any(re.search(rf"{name}\b", path.read_text()) for path in TEXTS), f"no text mentions {name}"


def test_the_readme_sweep_expands_to_its_runs() -> None:
    (text,) = blocks(README, "yaml")
    runs = expand(parse_spec(text))
    assert len(runs) == 3 * (1 + 2 + 2)
    assert {run.config.steps for run in runs} == {200}
    name = parse_spec(text).name
    assert f"muon report {name} " in section("Write a sweep")
    assert f"muon status {name} " in section("Write a sweep")


def test_readme_snippets_answer_from_a_real_store(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two short runs under the name of the demo; every expression of the README gives rows."""
    storage = Folder(tmp_path / "results")
    configs = [RunConfig.model_validate(small | {"optimizer": {"name": name}}) for name in ("muon", "adamw")]
    for config in configs:
        assert train(config, storage).status == "done"
    runs = tuple(
        SweepRun(run_id=c.run_id, block=c.optimizer.name, role="candidate", arm=c.arm_label, seed=c.seed)
        for c in configs
    )
    write_sweep(storage, SweepRecord(sweep="demo", runs=runs))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    answers: list[pl.DataFrame] = []
    for snippet in blocks(README, "python"):
        for statement in ast.parse(snippet).body:
            if isinstance(statement, ast.Expr):
                answers.append(eval(compile(ast.Expression(statement.value), "README.md", "eval"), names))
            else:
                exec(compile(ast.Module([statement], []), "README.md", "exec"), names)
    plain, losses, ranks = answers
    assert sorted(plain["step"]) == [0, 0, 4, 4, 8, 8]
    assert {"table", "run"} <= set(plain.columns)  # as docs/tables.md says of its files
    final = plain.filter(step=8)
    assert dict(losses.iter_rows()) == {
        c.optimizer.name: final.filter(run_id=c.run_id)["val_loss"].item() for c in configs
    }
    assert ranks.columns == ["run_id", "step", "layer", "effective_rank"]
    assert ranks.height == 2 * 2 * 3  # two runs, two layers, at steps 0, 4 and 8


def on_the_map() -> set[Path]:
    """Files and folders that the README's map names; a name is looked for where its line stands, then further out."""
    (drawn,) = re.findall(r"```\n(.*?)```", section("Map"), re.DOTALL)
    places, found = [ROOT], set()
    for line in drawn.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2  # 0: the root, 1: a package, more: a text that goes on
        places = places[: depth + 1] if depth < 2 else places
        for name in re.findall(r"[\w./-]+(?:\.py|\.yaml|/)(?=[\s,:;()]|$)", line):
            path = next((place / name for place in reversed(places) if (place / name).exists()), None)
            assert path, f"{name} is in the README's map and nowhere else"
            found.add(path)
            if name.endswith("/"):
                places.append(path)
    return found


def test_the_map_names_files_that_exist_every_package_and_every_module() -> None:
    shown = on_the_map()
    written = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    modules = {path for path in written if path.name != "__init__.py" and path.parent.name != "cli"}
    packages = {path.parent for path in written if path.name == "__init__.py"}
    tests = {path.parent for path in ROOT.glob("tests/*/test_*.py")}
    assert sorted(path.relative_to(ROOT).as_posix() for path in (modules | packages | tests) - shown) == []


def test_every_optimizer_is_built_where_the_readme_says() -> None:
    """The steps themselves are followed in tests/integration/test_contributing.py."""
    text = section("Add an optimizer")
    for name, config in OPTIMIZERS.items():
        module, _, function = config.builder.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name
        for place in (config.__module__, module):
            assert f"({place.replace('.', '/')}.py)" in text, name


def test_docs_tables_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "tables.md").read_text() == tables.describe(), (
        "docs/tables.md is old: python -m muon_core.tables > docs/tables.md"
    )


def test_docs_parameters_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "parameters.md").read_text() == reference.describe(), (
        "docs/parameters.md is old: python -m search_spaces.reference > docs/parameters.md"
    )


def subclasses(kind: type[Config]) -> Iterator[type[Config]]:
    for found in kind.__subclasses__():
        yield found
        yield from subclasses(found)


def test_docs_parameters_names_and_explains_every_field_of_every_config() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|", reference.describe(), re.MULTILINE)
    named = {name.rpartition(".")[2] for name in rows}
    for model in (model for model in subclasses(Config) if model.__module__.startswith(("muon_core", "search_spaces"))):
        kind = {"name"} if "adam_eps" in model.model_fields else set()  # of an optimizer: a block's `optimizer`
        inner = GROUPS.keys() | {"optimizer"} if model is RunConfig else set()  # whose own fields are named
        fields = model.model_fields.keys() - kind - inner
        assert fields - named == set(), model.__name__
        meanings = model.meanings()
        assert [name for name in fields if not meanings.get(name)] == [], model.__name__


def test_every_column_has_a_unit_or_meaning() -> None:
    for table in tables.TABLES.values():
        assert [name for name, (_, unit) in table.columns.items() if not unit] == []
