"""How fast one core makes token ids of text, beside what users of `datasets` do: a map over batches of rows.

The text: the sources of the installed torch and ray, 76 MB, as JSON lines. The tokenizer: a byte-level BPE of 49,152
tokens, trained on a part of it before the clocks start. Ours is `prepare_set` in one process: with hashes, its search
for duplicates, its split and its synced shards. The rival does the work of `datasets.Dataset.map(batched=True)` with a
fast tokenizer, in one process: 1,000 rows at a time, parsed, tokenized by `encode_batch`, and written as lists of ids
to an Arrow file. Each scheme is a process of its own with one thread, in CPU seconds, twice and in turns; the faster
counts.

Prints MB of text a CPU second and peak memory; exits 1 below `GOAL` MB/s or `RATIO` times the rival.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import files
from pathlib import Path

GOAL, RATIO = 1.0, 1.0
VOCABULARY = 49_152
ROWS = 1000
REPEATS = 2


def write_corpus(path: Path) -> int:
    """JSON lines of the packages' sources; returns their bytes of text."""
    total = 0
    with path.open("w") as lines:
        for package in ("torch", "ray"):
            for file in sorted(files(package) or (), key=str):
                source = Path(str(file.locate()))
                if source.suffix == ".py" and source.is_file():
                    text = source.read_text(errors="replace")
                    total += len(text.encode())
                    lines.write(json.dumps({"path": str(file), "text": text}) + "\n")
    return total


def ours(corpus: str, tokenizer: str, out: str) -> int:
    """Number of tokens that `prepare_set` makes."""
    from muon_core.data.prepare import Settings, prepare_set

    done = prepare_set([corpus], out, Settings(tokenizer=tokenizer, keep_duplicates=True))
    return done.tokens("train") + done.tokens("validation")


def rival(corpus: str, tokenizer: str, out: str) -> int:
    """Number of tokens that a map over batches of rows makes, one end of text for each row among them."""
    import pyarrow as pa
    from tokenizers import Tokenizer

    model, total = Tokenizer.from_file(tokenizer), 0
    end = model.token_to_id("<|endoftext|>")
    schema = pa.schema({"input_ids": pa.list_(pa.int32())})
    with open(corpus) as lines, pa.OSFile(out, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while rows := [json.loads(line)["text"] for _, line in zip(range(ROWS), lines, strict=False)]:
            ids = [[*encoding.ids, end] for encoding in model.encode_batch(rows)]
            total += sum(map(len, ids))
            writer.write_batch(pa.record_batch({"input_ids": pa.array(ids, schema.field(0).type)}))
    return total


def measure(scheme: str, *arguments: str) -> None:
    """Print what a scheme takes, as JSON."""
    begin = time.process_time()
    tokens = {"ours": ours, "rival": rival}[scheme](*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"tokens": tokens, "seconds": time.process_time() - begin, "peak_mb": peak}))


def ask(scheme: str, *arguments: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    one_thread = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, __file__, scheme, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | one_thread)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure both in turns."""
    from muon_core.data.tokenizer import train

    with tempfile.TemporaryDirectory() as folder:
        corpus, tokenizer = Path(folder, "corpus.jsonl"), Path(folder, "tokenizer.json")
        num_bytes = write_corpus(corpus)
        train([str(corpus)], "text", VOCABULARY, 32 << 20, 0.01, tokenizer)
        print(f"text   {num_bytes / 1e6:.1f} MB, vocabulary {VOCABULARY}", flush=True)
        best: dict[str, dict[str, float]] = {}
        for repeat in range(REPEATS):
            for scheme in ("ours", "rival"):
                found = ask(scheme, str(corpus), str(tokenizer), str(Path(folder, f"{scheme}-{repeat}")))
                if scheme not in best or found["seconds"] < best[scheme]["seconds"]:
                    best[scheme] = found
    speeds = {scheme: num_bytes / 1e6 / found["seconds"] for scheme, found in best.items()}
    for scheme, found in best.items():
        numbers = f"{found['tokens']:,.0f} tokens, peak {found['peak_mb']:.0f} MB"
        print(f"{scheme:<6} {found['seconds']:.1f} CPU s, {speeds[scheme]:.2f} MB/s a core, {numbers}")
    ratio = speeds["ours"] / speeds["rival"]
    print(f"{speeds['ours']:.2f} MB/s a core (goal {GOAL}), {ratio:.2f} times the map over rows (goal {RATIO})")
    sys.exit(0 if speeds["ours"] >= GOAL and ratio >= RATIO else 1)


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
