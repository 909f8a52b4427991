"""A run names a prepared data set: its content is the identity, and what does not suit it is said at once."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from support.prepared import small_set

from muon_core.config.run import DataConfig, ModelConfig, RunConfig
from muon_core.data import soundness
from muon_core.data.batches import load_data
from muon_core.data.manifest import Manifest
from muon_core.data.prepared import check_run, is_prepared, read_manifest
from muon_core.data.shards import prepare
from muon_core.data.sharing import fetch, publish
from muon_core.data.windows import num_windows
from muon_core.store.folder import Folder
from muon_core.store.storage import StoreError
from muon_core.train import train
from search_spaces.expand import expand
from search_spaces.parameters import locate_corpus
from search_spaces.run_file import resolve_run
from search_spaces.spec import load_spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_set(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return read_manifest(str(folder))


@pytest.fixture
def data(folder: Path) -> DataConfig:
    return DataConfig(corpus=str(folder), seq_len=16, validation_tokens=128)


def run(data: DataConfig, **fields: object) -> RunConfig:
    model = {"d_model": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "d_ff": 64, "vocab_size": 300}
    return RunConfig.model_validate({"model": model, "data": data, "steps": 6, "batch_size": 4} | fields)


def test_batches_are_windows_of_the_shards_as_one_sequence(data: DataConfig, manifest: Manifest, folder: Path) -> None:
    whole = np.concatenate([np.load(folder / shard.name) for shard in manifest.shards["train"]])
    loaded, size = load_data(data, 300), num_windows(len(whole), 16)
    assert len(manifest.shards["train"]) > 2
    rows = loaded.batch(5, 0, size)
    starts = sorted((row[0], row.tolist()) for row in rows)
    assert starts == sorted((whole[i * 16], whole[i * 16 : i * 16 + 17].tolist()) for i in range(size))
    assert loaded.validation().shape == (8, 17)
    assert loaded.data_hash == manifest.content_hash


def test_the_content_is_the_identity_not_the_place(data: DataConfig, folder: Path, tmp_path: Path) -> None:
    small_set(tmp_path / "copy")
    here, there = locate_corpus(data, tmp_path), locate_corpus(data.replace(corpus="copy"), tmp_path)
    assert here.corpus != there.corpus
    assert run(here).run_id == run(there).run_id
    small_set(tmp_path / "other", 61)
    assert run(locate_corpus(data.replace(corpus="other"), tmp_path)).run_id != run(here).run_id


def test_allowed_epochs_are_no_part_of_the_identity(data: DataConfig) -> None:
    assert run(data).run_id == run(data, allow_epochs=50.0).run_id


def test_a_run_on_a_prepared_set_trains_and_repeats(data: DataConfig, tmp_path: Path, manifest: Manifest) -> None:
    outcomes = [train(run(data), Folder(tmp_path / name)) for name in "ab"]
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    assert outcomes[0].final == outcomes[1].final


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model": ModelConfig(vocab_size=299)},
            "its tokenizer has 300 tokens, model.vocab_size is 299; set model.vocab_",
        ),
        (
            {"seq_len": 100_000},
            r"\d+ train tokens, data.seq_len 100000 needs 100001; lower data.seq_len, or prepare more",
        ),
        ({"validation_tokens": 10**6}, r"\d+ validation tokens, data.validation_tokens 1000000 needs 1000001; lower"),
        ({"validation_share": 0.3}, "it was prepared with validation_share 0.2, not 0.3; remove data.validation_share"),
        (
            {"steps": 10**4},
            r"640,000 tokens are \d+ epochs of its [\d,]+ training tokens, allow_epochs is 4; lower steps",
        ),
        ({"steps": 10**6}, r"64,000,000 tokens are \d+,\d{3} epochs of its"),
        ({"steps": 10**4, "allow_epochs": 10.0}, r"allow_epochs is 10; .* or set allow_epochs: \d+"),
    ],
)
def test_what_does_not_suit_a_run_is_one_line(data: DataConfig, fields: dict[str, object], message: str) -> None:
    of_data = {name: value for name, value in fields.items() if name in DataConfig.model_fields}
    of_run = {name: value for name, value in fields.items() if name not in of_data}
    with pytest.raises(ValueError, match=message) as error:
        check_run(run(data.replace(**of_data), **of_run))
    assert "\n" not in str(error.value)
    check_run(run(data, model=ModelConfig(vocab_size=384)))  # more than the tokenizer has is room, not an error


def test_epochs_are_allowed_up_to_the_number_given(data: DataConfig, manifest: Manifest) -> None:
    per_epoch = num_windows(manifest.tokens("train"), 16)
    check_run(run(data, steps=4 * per_epoch, batch_size=1))
    with pytest.raises(ValueError, match="4 epochs of its"):
        check_run(run(data, steps=4 * per_epoch + 1, batch_size=1))
    check_run(run(data, steps=4 * per_epoch + 1, batch_size=1, allow_epochs=5.0))


def test_plans_say_it_with_the_line(data: DataConfig, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "version: 1\nname: s\nquestion: q?\nseeds: [1]\nconstants:\n  data.corpus: set\n  steps: 50000\n"
        "  data.validation_tokens: 512\nblocks:\n  - {name: b, role: baseline, optimizer: muon}\n"
    )
    with pytest.raises(ValueError, match=r"sweep.yaml:6: .*corpus .*epochs of its .* allow_epochs"):
        expand(load_spec(sweep))
    with pytest.raises(ValueError, match="epochs of its"):
        resolve_run("tiny", None, {"data.corpus": data.corpus, "data.validation_tokens": 128, "steps": 50_000})


def test_a_damaged_shard_is_named(data: DataConfig, manifest: Manifest, folder: Path) -> None:
    load_data(data, 300)
    name = manifest.shards["train"][1].name
    whole = bytearray((folder / name).read_bytes())
    whole[-1] ^= 1
    (folder / name).write_bytes(whole)
    with pytest.raises(ValueError, match=rf"{name} is damaged or missing \(sha256 differs\); restore it"):
        load_data(data, 300)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is damaged or missing"):
        load_data(data, 300)


def test_a_tokenizer_that_is_another_is_refused(data: DataConfig, folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())
    model["version"] = "1.1"
    (folder / "tokenizer.json").write_text(json.dumps(model))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the tokenizer that manifest\.json names"):
        load_data(data, 300)


def test_what_was_found_sound_is_not_read_again(
    data: DataConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = time.time() - 100
    monkeypatch.setattr(soundness, "_TRUSTED_AFTER_S", -1.0)  # as if the files were older than they are
    prepare(data, 300)
    monkeypatch.setattr(soundness, "file_sha256", lambda file: pytest.fail(f"{file} was read again"))
    prepare(data, 300)
    os.utime(folder / "tokenizer.json", (past, past))
    with pytest.raises(pytest.fail.Exception, match="was read again"):
        prepare(data, 300)


def test_a_set_that_changed_since_the_plan_is_refused(data: DataConfig, folder: Path) -> None:
    planned = locate_corpus(data, folder)
    with pytest.raises(ValueError, match=r"has changed: sha256 .*, planned 000000000000; plan the runs again"):
        load_data(planned.replace(corpus_sha256="0" * 64), 300)
    load_data(planned, 300)


def test_a_set_that_is_not_finished_is_none(tmp_path: Path, folder: Path) -> None:
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    assert not is_prepared(str(folder))
    (folder / ".preparing").mkdir()
    with pytest.raises(ValueError, match=r"holds no prepared data set \(manifest.json is missing\)"):
        check_run(run(DataConfig(corpus=str(folder))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "uint8"}, "is no manifest that this release reads"),
        ({"format": 2}, "is no manifest that this release reads"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_said_to_be(folder: Path, change: dict[str, object], message: str) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        read_manifest(str(folder))
    assert "\n" not in str(error.value)


def test_a_vocabulary_above_the_dtype_is_no_data_set(folder: Path) -> None:
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    content["tokenizer"]["vocab_size"] = 70_000
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a vocabulary of 70000 does not fit into uint16, which holds 65536"):
        read_manifest(str(folder))


def test_a_shard_leads_to_no_other_place(folder: Path) -> None:
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    content["shards"]["train"][0]["name"] = "../../train-00000.npy"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no manifest that this release reads"):
        read_manifest(str(folder))


def test_it_travels_through_a_store_to_nodes_that_do_not_see_it(
    data: DataConfig, folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    storage = Folder(tmp_path / "store")
    assert publish(folder, storage) == manifest.content_hash
    there = fetch(manifest.content_hash, storage, tmp_path / "node")
    assert fetch(manifest.content_hash, storage, tmp_path / "node") == there
    assert load_data(data, 300, there).batch(1, 0, 4).equal(load_data(data, 300).batch(1, 0, 4))
    key = next(key for key, _ in storage.list("data/") if "train-00001" in key)
    storage.put(key, storage.get(key)[:-1] + b"\xff")
    with pytest.raises(StoreError, match="are damaged; remove data/"):
        fetch(manifest.content_hash, storage, tmp_path / "other")
