"""A prepared data set is a function of text and settings: not of files, processes, or what interrupted the work."""

import hashlib
import itertools
import os
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.prepared import SMALL, contents, documents, write_jsonl
from tokenizers import Tokenizer

from muon_core.data import prepare, records, work_folder
from muon_core.data.corpus import is_validation
from muon_core.data.manifest import Manifest
from muon_core.data.prepare import Progress, Settings, prepare_set
from muon_core.data.worker_pool import WorkerPool
from muon_core.store.folder import Folder

TEXTS = documents(80)


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, and a state after each."""
    monkeypatch.setattr(prepare, "BLOCK", 1500)
    monkeypatch.setattr(prepare, "SAVE_EVERY_S", 0.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    prepare_set([str(write_jsonl(folder / "t.jsonl", TEXTS))], str(folder / "set"), SMALL)
    return str(folder / "set" / "tokenizer.json")


@pytest.fixture
def settings(tokenizer: str) -> Settings:
    return replace(SMALL, train_bpe=None, tokenizer=tokenizer)


def tokens(folder: Path, manifest: Manifest, side: str) -> list[int]:
    shards = [np.load(folder / shard.name) for name, shards in manifest.shards.items() if name == side
              for shard in shards]  # fmt: skip
    found: list[int] = np.concatenate(shards).tolist()
    return found


def test_shards_hold_every_document_once_on_its_side(tmp_path: Path, settings: Settings) -> None:
    texts = [*TEXTS, *TEXTS[:7], "", "  \n", "ends with <|endoftext|> as text"]
    text = write_jsonl(tmp_path / "a.jsonl", [*texts, None])
    done = prepare_set([str(text)], str(tmp_path / "set"), settings)

    def side(document: str) -> str:
        digest = hashlib.sha256(document.encode()).hexdigest()[:32]
        return "validation" if is_validation(digest, 0.2) else "train"

    model = Tokenizer.from_file(str(tmp_path / "set" / "tokenizer.json"))
    end = model.token_to_id("<|endoftext|>")
    model.encode_special_tokens = True
    for name in ("train", "validation"):
        ids = tokens(tmp_path / "set", done, name)
        parts = [list(part) for is_end, part in itertools.groupby(ids, lambda token: token == end) if not is_end]
        assert ids.count(end) == len(parts)
        wanted = [text for text in dict.fromkeys(texts) if text.strip() and side(text) == name]
        assert parts == [model.encode(text, add_special_tokens=False).ids for text in wanted]
    counts = done.documents
    assert (counts.train + counts.validation, counts.duplicates, counts.empty, counts.cut) == (81, 7, 3, 0)
    assert counts.text_bytes == sum(len(text.encode()) for text in texts if text.strip())


def test_shards_are_bounded_and_named_by_their_sha256(tmp_path: Path, settings: Settings) -> None:
    done = prepare_set([str(write_jsonl(tmp_path / "a.jsonl", TEXTS))], str(tmp_path / "set"), settings)
    assert [shard.tokens for shard in done.shards["train"][:-1]] == [1500] * (len(done.shards["train"]) - 1)
    for shard in done.all_shards:
        assert hashlib.sha256((tmp_path / "set" / shard.name).read_bytes()).hexdigest() == shard.sha256
        assert np.load(tmp_path / "set" / shard.name, mmap_mode="r").dtype == np.uint16
    assert sorted(contents(tmp_path / "set")) == sorted(
        ["manifest.json", "tokenizer.json", *(shard.name for shard in done.all_shards)]
    )


def test_the_form_of_the_text_does_not_matter(tmp_path: Path, settings: Settings) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl", TEXTS).read_bytes()
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(plain))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "c.parquet", row_group_size=9)
    (tmp_path / "d.txt").write_text("<|endoftext|>".join(TEXTS))
    (tmp_path / "many").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "many" / f"{i:03d}.md").write_text(text)
    inputs = ["a.jsonl", "b.jsonl.zst", "c.parquet", "d.txt", "many", "many/*.md"]
    sets = [prepare_set([str(tmp_path / name)], str(tmp_path / f"{i}"), settings) for i, name in enumerate(inputs)]
    assert len({done.content_hash for done in sets}) == 1
    assert {done.source.files for done in sets} == {1, 80}


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    text = str(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    one = prepare_set([text], str(tmp_path / "one"), SMALL, workers=1)
    two = prepare_set([text], str(tmp_path / "two"), SMALL, workers=2)
    assert one == two
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.fixture
def input_text(tmp_path: Path) -> str:
    """Duplicates far apart, several files, one of them packed."""
    folder = tmp_path / "texts"
    write_jsonl(folder / "a.jsonl", [*TEXTS[:50], TEXTS[3]])
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(write_jsonl(folder / "b", TEXTS[40:]).read_bytes()))
    (folder / "b").unlink()
    (folder / "c.txt").write_text("<|endoftext|>".join(documents(20, seed=2)))
    return str(folder)


def test_a_call_killed_after_any_block_goes_on_to_the_same_bytes(
    tmp_path: Path, settings: Settings, input_text: str
) -> None:
    blocks: list[Progress] = []
    prepare_set([input_text], str(tmp_path / "whole"), settings, report=blocks.append)
    killed = 0

    def kill(progress: Progress) -> None:
        nonlocal killed
        if progress.documents > killed:  # one block further at each call
            killed = progress.documents
            raise Killed

    for _ in blocks:
        with pytest.raises(Killed):
            prepare_set([input_text], str(tmp_path / "set"), settings, report=kill)
    prepare_set([input_text], str(tmp_path / "set"), settings, report=kill)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    assert len(blocks) > 10


def test_a_call_killed_at_any_write_goes_on_to_the_same_bytes(
    tmp_path: Path, settings: Settings, input_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after the object is there: a shard, the state, the tokenizer, the manifest."""
    prepare_set([input_text], str(tmp_path / "whole"), settings)
    put, number = Folder.put, 0

    def dying(self: Folder, key: str, data: bytes | memoryview) -> None:
        nonlocal number
        number += 1
        if number == last and not late:
            raise Killed
        put(self, key, data)
        if number == last:
            raise Killed

    monkeypatch.setattr(Folder, "put", dying)
    deaths = [(n, late) for n in (1, 2, 3, 5, 9, 14, 20) for late in (False, True)]
    for death in deaths:
        (last, late), number = death, 0
        try:
            prepare_set([input_text], str(tmp_path / "set"), settings)
        except Killed:
            continue
        break
    last = -1
    prepare_set([input_text], str(tmp_path / "set"), settings)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_a_killed_call_reads_on_and_not_from_the_start(
    tmp_path: Path, settings: Settings, input_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[records.Position] = []
    read = prepare.read_records

    def watched(files: object, column: str, start: records.Position) -> object:
        starts.append(start)
        return read(files, column, start)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "read_records", watched)
    with pytest.raises(Killed):
        prepare_set([input_text], str(tmp_path / "set"), settings, report=lambda p: kill_beyond(p, 60))
    done = prepare_set([input_text], str(tmp_path / "set"), settings)
    assert starts[0] == records.BEGIN
    assert starts[1].file == 1
    assert done.documents.duplicates == 11


def kill_beyond(progress: Progress, number: int) -> None:
    if progress.documents > number:
        raise Killed


def test_a_finished_set_is_not_made_again(tmp_path: Path, settings: Settings, input_text: str) -> None:
    first = prepare_set([input_text], str(tmp_path / "set"), settings)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    assert prepare_set([input_text], str(tmp_path / "set"), settings) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == times
    with pytest.raises(
        ValueError, match=r"holds a data set of other text or settings \(--validation-share: 0\.2, not 0\.3\); choose"
    ):
        prepare_set([input_text], str(tmp_path / "set"), replace(settings, validation_share=0.3))


def test_text_that_changed_between_two_calls_is_refused(tmp_path: Path, settings: Settings, input_text: str) -> None:
    with pytest.raises(Killed):
        prepare_set([input_text], str(tmp_path / "set"), settings, report=lambda p: kill_beyond(p, 0))
    file, times = Path(input_text, "c.txt"), os.stat(Path(input_text, "c.txt"))
    file.write_text(file.read_text().replace("Document", "document"))
    with pytest.raises(ValueError, match=r"or have changed \(state of the files: \w+, not \w+\); repeat that call"):
        prepare_set([input_text], str(tmp_path / "set"), settings)  # of the same size
    assert file.stat().st_size == times.st_size
    file.write_text("other")
    with pytest.raises(ValueError, match=r"settings that were others, or have changed \(files: 3 of .* bytes, hash"):
        prepare_set([input_text], str(tmp_path / "set"), settings)
    shutil.rmtree(tmp_path / "set" / ".preparing")
    assert prepare_set([input_text], str(tmp_path / "set"), settings).documents.train


def test_a_folder_that_was_there_stays_and_so_does_what_is_begun(
    tmp_path: Path, settings: Settings, input_text: str
) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match="no column"):
        prepare_set([input_text], str(tmp_path / "set"), replace(settings, column="body"))
    assert list((tmp_path / "set").iterdir()) == []
    assert not work_folder.is_begun(Folder(tmp_path / "set"))
    with pytest.raises(Killed):
        prepare_set([input_text], str(tmp_path / "set"), settings, report=lambda p: kill_beyond(p, 60))
    assert work_folder.is_begun(Folder(tmp_path / "set"))


def test_a_trained_vocabulary_is_told_and_says_what_it_has_read(tmp_path: Path) -> None:
    text, said = write_jsonl(tmp_path / "a.jsonl", TEXTS), list[str]()
    done = prepare_set([str(text)], str(tmp_path / "set"), SMALL, say=said.append)
    assert said == ["training a vocabulary of 300 on a sample of the text, 64 MiB at most"]
    digests = [hashlib.sha256(one.encode()).hexdigest()[:32] for one in TEXTS]
    read = sum(len(one.encode()) for one, key in zip(TEXTS, digests, strict=True) if not is_validation(key, 0.2))
    assert done.tokenizer.source == f"bpe of {read / 1e6:.3g} MB"
    assert prepare_set([str(text)], str(tmp_path / "set"), SMALL, say=said.append) == done
    assert len(said) == 1


def test_an_interruption_ends_a_process_that_would_not_hear_it() -> None:
    """Training a vocabulary is minutes in a library: whoever types Ctrl-C does not wait for them. Others go on."""
    other = get_context("spawn").Process(target=time.sleep, args=(600.0,))
    other.start()
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        WorkerPool.call(time.sleep, 600.0)
    assert active_children() == [other]
    other.kill()
    other.join()


def test_what_a_call_left_that_saved_nothing_is_not_believed(
    tmp_path: Path, settings: Settings, input_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the digests and the state; then another text, and another tokenizer, at the same place."""
    trained = replace(settings, tokenizer=None, train_bpe=290)

    put = Folder.put

    def dying(self: Folder, key: str, data: bytes | memoryview) -> None:
        if key == work_folder.STATE:
            raise Killed
        put(self, key, data)

    monkeypatch.setattr(Folder, "put", dying)
    with pytest.raises(Killed):
        prepare_set([input_text], str(tmp_path / "set"), trained)
    monkeypatch.setattr(Folder, "put", put)
    assert list((tmp_path / "set" / ".preparing").glob("digests*"))
    text = str(write_jsonl(tmp_path / "a.jsonl", TEXTS[::-1]))
    done = prepare_set([text], str(tmp_path / "set"), SMALL)
    assert done.content_hash == prepare_set([text], str(tmp_path / "clean"), SMALL).content_hash
    assert (done.documents.duplicates, done.tokenizer.vocab_size) == (0, 300)


def test_a_working_file_that_is_gone_is_said_to_be(tmp_path: Path, settings: Settings, input_text: str) -> None:
    with pytest.raises(Killed):
        prepare_set([input_text], str(tmp_path / "set"), settings, report=lambda p: kill_beyond(p, 10))
    for file in (tmp_path / "set" / ".preparing").glob("train-*.npy"):
        file.write_bytes(file.read_bytes()[:130])
    with pytest.raises(ValueError, match=r"train-\d+\.npy is missing or too short; remove .*\.preparing to start from"):
        prepare_set([input_text], str(tmp_path / "set"), settings)


def test_duplicates_are_kept_where_asked_for(tmp_path: Path, settings: Settings) -> None:
    text = str(write_jsonl(tmp_path / "a.jsonl", [*TEXTS, *TEXTS[:9]]))
    kept = prepare_set([text], str(tmp_path / "kept"), replace(settings, keep_duplicates=True))
    without = prepare_set([text], str(tmp_path / "without"), settings)
    assert kept.documents.duplicates == without.documents.duplicates == 9
    assert kept.documents.train + kept.documents.validation == 89
    assert without.documents.train + without.documents.validation == 80


def test_long_documents_are_cut_and_counted(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of whole lines, however the text lies there; their tokens are those of the text."""
    for module in ("muon_core.data.records", "muon_core.data.encoding"):
        monkeypatch.setattr(f"{module}.LONGEST", 2000)
    monkeypatch.setattr("muon_core.data.encoding.PIECE", 500)
    long = "".join(f"line {i} of many é\n" for i in range(600))
    sets = []
    for name, content in (("a.txt", long), ("b.jsonl", None)):
        path = tmp_path / name
        if content:
            path.write_text("<|endoftext|>".join([*TEXTS, content]))
        else:
            write_jsonl(path, [*TEXTS, long])
        sets.append(prepare_set([str(path)], str(tmp_path / f"{name}.set"), settings))
    assert sets[0].documents.cut > 3
    assert sets[0].content_hash == sets[1].content_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": None}, "give a --tokenizer, or --train-bpe"),
        ({"train_bpe": 300}, "one of them"),
        ({"tokenizer": "no/where.json"}, "tokenizer 'no/where.json': no such file, nor is it OWNER/NAME"),
        ({"tokenizer": "no/where"}, "tokenizer no/where is not in the hub's cache on this machine .*HF_HUB_OFFLINE is"),
        ({"separator": "</s>"}, "has no token '</s>' to end documents with; name another by --separator"),
        ({"separator": "<|endoftxt|>"}, r"has no token '<\|endoftxt\|>' \(did you mean '<\|endoftext\|>'\?\) to end"),
        (
            {"separator": "</s>", "tokenizer": None, "train_bpe": 300},
            "'</s>': a vocabulary that is trained ends",
        ),
        ({"tokenizer": None, "train_bpe": 5000}, r"--train-bpe 5000: the text gives \d+ tokens only"),
        ({"tokenizer": None, "train_bpe": 256}, "are 257 tokens; give more"),
        ({"validation_share": 1e-9}, "of 80 documents none is for validation; give more documents, or another"),
        ({"column": "body"}, r"a\.jsonl at byte 0: no column 'body'; its columns are id, text; choose by --column"),
        ({"column": "txt"}, r"no column 'txt' \(did you mean 'text'\?\); its columns are id, text"),
        ({"column": "id"}, r"a\.jsonl at byte 0: column 'id' is int, not text"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, settings: Settings, change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = str(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    with pytest.raises(ValueError, match=message) as error:
        prepare_set([text], str(tmp_path / "sets" / "a"), replace(settings, **change))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sets").exists()


def test_a_vocabulary_above_the_dtype_is_refused_or_gets_a_wider_one(tmp_path: Path, settings: Settings) -> None:
    model = Tokenizer.from_file(str(settings.tokenizer))
    model.add_tokens([f"<extra {i}>" for i in range(2**16)])
    model.save(str(tmp_path / "large.json"))
    text = str(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    large = replace(settings, tokenizer=str(tmp_path / "large.json"))
    with pytest.raises(ValueError, match="a vocabulary of 65836 does not fit into uint16, which holds 65536; use uint"):
        prepare_set([text], str(tmp_path / "set"), replace(large, dtype="uint16"))
    done = prepare_set([text], str(tmp_path / "other"), large)
    assert done.dtype == "uint32"
    assert np.load(tmp_path / "other" / "train-00000.npy").dtype == np.uint32


def test_lines_and_inputs_that_are_none_are_named(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n[1]\n')
    with pytest.raises(ValueError, match=r"a\.jsonl at byte 15: a line is an object"):
        prepare_set([str(tmp_path / "a.jsonl")], str(tmp_path / "set"), settings)
    (tmp_path / "b.jsonl").write_text('{"text": \n')
    with pytest.raises(ValueError, match=r"b\.jsonl at byte 0: no line of JSON"):
        prepare_set([str(tmp_path / "b.jsonl")], str(tmp_path / "set2"), settings)
    with pytest.raises(ValueError, match="input 'nowhere': there is no such file or folder"):
        prepare_set(["nowhere"], str(tmp_path / "set3"), settings)
    with pytest.raises(ValueError, match="of which it would become a part"):
        prepare_set([str(tmp_path)], str(tmp_path / "set4"), settings)


def test_halves_of_letters_in_json_are_no_end(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d of a face"}\n')
    write_jsonl(tmp_path / "b.jsonl", TEXTS)
    done = prepare_set([str(tmp_path / "*.jsonl")], str(tmp_path / "set"), settings)
    assert done.documents.train + done.documents.validation == 81


def test_two_calls_at_once_do_not_share_a_folder(tmp_path: Path, settings: Settings, input_text: str) -> None:
    said: Counter[str] = Counter()

    def second(_: Progress) -> None:
        with pytest.raises(ValueError, match=r"another process is preparing .*set; wait for it, or end it"):
            prepare_set([input_text], str(tmp_path / "set"), settings)
        said["refused"] += 1

    prepare_set([input_text], str(tmp_path / "set"), settings, report=second)
    assert said["refused"] > 3
