"""Models of the Hugging Face Hub: of one commit, fetched once, without it where asked for, or refused in a line."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hf_models import LLAMA, planned, save, save_pretrained
from support.hub import COMMIT, Hub, point_at, running_hub

from muon_core.hf_model import HFModel
from ray_jobs.cli.main import main
from search_spaces.expand import expand
from search_spaces.spec import load_spec

transformers: Any = pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[hf]'")
pytestmark = pytest.mark.slow
PRETRAINED = {"weights": "pretrained"}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose weights are one file, several, or pickled."""
    owner = tmp_path_factory.mktemp("hub") / "owner"
    owner.mkdir()
    save_pretrained(owner / "llama", "llama", LLAMA)
    model = transformers.AutoModelForCausalLM.from_pretrained(owner / "llama")
    model.save_pretrained(owner / "sharded", max_shard_size="30KB")
    assert len(list((owner / "sharded").glob("*.safetensors"))) > 1
    (owner / "sharded" / "consolidated.safetensors").write_bytes(b"the same once more, in another layout")
    save(owner / "pickled", "llama", LLAMA)
    torch.save(model.state_dict(), owner / "pickled" / "pytorch_model.bin")
    return owner.parent


@pytest.fixture
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, asked by a client that keeps nothing of other tests."""
    with running_hub(repositories) as running:
        point_at(running.endpoint, tmp_path / "cache", monkeypatch)
        yield running


def fetched(hub: Hub) -> list[str]:
    """Files whose content was asked for."""
    return [path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "resolve" in path]


@pytest.mark.parametrize("name", ["llama", "sharded"])
def test_a_model_is_of_one_commit_and_fetched_once(
    hub: Hub, repositories: Path, small: dict[str, Any], name: str
) -> None:
    run = planned(small, f"hf:owner/{name}", model=PRETRAINED | {"revision": "main"})
    assert (run.model.hf, run.model.revision) == (f"owner/{name}", COMMIT)
    at_plan = len(hub.requests)
    model = HFModel(run.model, 0)
    assert not any("main" in path for _, path, _ in hub.requests[at_plan:])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(repositories / "owner" / "llama").state_dict()
    ours = model.inner.state_dict()
    assert all(torch.equal(weight, ours[key]) for key, weight in theirs.items())
    again = planned(small, f"owner/{name}", model=PRETRAINED)
    assert again == run
    files = fetched(hub)
    parts = {path.name for path in (repositories / "owner" / name).glob("model*")}
    assert (set(files), len(files)) == ({"config.json"} | parts, 1 + len(parts))
    assert planned(small, repositories / "owner" / name, model=PRETRAINED).run_id == run.run_id


def test_all_cells_of_a_sweep_have_the_commit_that_was_asked_for_once(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "version: 1\nname: which\nquestion: which\nseeds: [1, 2]\n"
        "constants: {model: 'hf:owner/llama', data.seq_len: 32}\n"
        "blocks: [{name: base, role: baseline, optimizer: muon}, {name: lr, optimizer: muon, grid: {lr: [0.1, 0.2]}}]\n"
    )
    runs = expand(load_spec(tmp_path / "sweep.yaml"))
    assert {run.config.model.revision for run in runs} == {COMMIT}
    assert [method for method, path, _ in hub.requests if "/main/" in path] == ["HEAD", "GET"]


def test_without_weights_only_the_configuration_is_fetched(hub: Hub, small: dict[str, Any]) -> None:
    run = planned(small, "owner/pickled")
    assert (run.model.num_layers, run.model.revision, fetched(hub)) == (2, COMMIT, ["config.json"])


@pytest.mark.parametrize("name", ["llama", "sharded"])
def test_offline_what_is_on_this_machine_serves(
    hub: Hub, repositories: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    run = planned(small, f"owner/{name}", model=PRETRAINED)
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert planned(small, f"owner/{name}", model=PRETRAINED) == run
    HFModel(run.model, 0)
    with pytest.raises(ValueError, match="model owner/pickled is not in the hub's cache on this machine"):
        planned(small, "owner/pickled")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ValueError, match=rf"model owner/{name} is not in the hub's cache on this machine .*; unset it"):
        HFModel(run.model, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["model=hf:gated/data"], "model gated/data is gated: accept its terms at {hub}/gated/data, and set HF_TOKEN"),
        (["model=hf:owner/nothing"], "model owner/nothing: {hub} knows no such repository, or it is private"),
        (
            ["model=hf:owner/llama", "model.revision=v9"],
            "model owner/llama has no revision 'v9'; see {hub}/owner/llama",
        ),
        (["model=hf:owner/sharded/x"], "/owner/sharded/x: no config.json there"),
        (
            ["model=hf:owner/pickled", "model.weights=pretrained"],
            "model owner/pickled: no model.safetensors there; set model.weights: random, or save its weights so (pickl",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub: Hub, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", "--dry-run", *(part for one in (*given, "data.seq_len=32") for part in ("--set", one))])
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(hub=hub.endpoint) in line


def test_a_hub_that_does_not_answer_is_named(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    point_at("http://127.0.0.1:9", tmp_path, monkeypatch)  # the port to throw things away at: nobody listens
    with pytest.raises(
        ValueError, match=r"model owner/llama: http://127\.0\.0\.1:9 does not answer \(.*\); check the n"
    ):
        planned(small, "owner/llama")


def test_weights_that_are_not_all_there_are_named(repositories: Path, small: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(repositories / "owner" / "sharded", tmp_path / "sharded")
    first, *_ = sorted(folder.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(ValueError, match=rf"index\.json names {first.name}, which is not there"):
        planned(small, folder, model=PRETRAINED)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')
    with pytest.raises(ValueError, match=r"its model\.safetensors\.index\.json cannot be read; fetch it again"):
        planned(small, folder, model=PRETRAINED)
