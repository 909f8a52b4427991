"""`muon data prepare` on a large packed corpus: its memory, its speed, and whether two kills change a byte.

Makes `--mb` megabytes of JSON lines of made-up documents (pieces of installed packages' sources, a twentieth of them
equal to an earlier one), packs them with Zstandard, and prepares them twice: undisturbed, and killed by SIGKILL after a
third and after two thirds. The memory is the resident set of the command and all its processes together, shared pages
counted for each. The rival is the undisturbed call.

`--store URL` prepares the killed one from and to S3 instead of folders, under the AWS settings of the environment.
Prints sizes, seconds and memory; exits 1 above `LIMIT_MB`, or if the results differ or processes are left behind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

import psutil
import zstandard

from muon_core.data.set_cache import cache_root
from muon_core.store.open import open_storage

MUON = str(Path(sys.executable).with_name("muon"))
LIMIT_MB = 500.0
DUPLICATES = 0.05
SOURCE_BYTES = 40_000_000
LEFT_BEHIND_S = 10.0


@dataclass
class Result:
    """What a call took; `peak_mb` of all its processes together."""

    code: int
    seconds: float
    peak_mb: float
    left_behind: int


def make_corpus(folder: Path, num_bytes: int) -> tuple[list[Path], int]:
    """Two packed files of JSON lines, and how many documents they hold."""
    sources = (file for file in sorted(files("torch") or (), key=str) if str(file).endswith(".py"))
    texts, size = [], 0
    while size < min(SOURCE_BYTES, num_bytes) and (file := next(sources, None)):
        texts.append(Path(str(file.locate())).read_text(errors="replace"))
        size += len(texts[-1])
    text = "".join(texts)
    draw, paths, number = random.Random(0), [], 0
    for part in range(2):
        path, written = folder / f"part-{part}.jsonl.zst", 0
        paths.append(path)
        with zstandard.open(path, "wb") as packed:
            kept: list[bytes] = []
            while written < num_bytes // 2:
                if kept and draw.random() < DUPLICATES:
                    line = draw.choice(kept)
                else:
                    start, size = draw.randrange(len(text) - 10_000), draw.randrange(500, 8000)
                    line = json.dumps({"id": number, "text": f"{part}-{number}\n{text[start : start + size]}"}).encode()
                    kept = [*kept[-1000:], line] if number % 50 == 0 else kept
                packed.write(line + b"\n")
                written, number = written + len(line), number + 1
    return paths, number


def call(inputs: list[str], out: str, options: list[str], state: Path, kill_at: int | None = None) -> Result:
    """One call of the command, killed once `kill_at` documents are in the state that it keeps in the folder `state`."""
    begin = time.monotonic()
    process = subprocess.Popen([MUON, "data", "prepare", *inputs, "-o", out, *options])
    watched, peak = psutil.Process(process.pid), [0.0]
    family: set[psutil.Process] = set()
    thread = threading.Thread(target=_watch, args=(watched, peak, family))
    thread.start()
    while process.poll() is None:
        time.sleep(0.05)
        if kill_at is not None and _documents(state) >= kill_at:
            process.kill()
    thread.join()
    seconds = time.monotonic() - begin
    _, left = psutil.wait_procs(list(family), timeout=LEFT_BEHIND_S)
    return Result(process.returncode, seconds, peak[0], len(left))


def _watch(process: psutil.Process, peak: list[float], family: set[psutil.Process]) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        total = 0
        for one in [process, *_children(process)]:
            try:
                total += one.memory_info().rss
            except psutil.Error:
                continue
        family.update(_children(process))
        peak[0] = max(peak[0], total / 1e6)
        time.sleep(0.1)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.Error:
        return []
    return found


def _documents(state: Path) -> int:
    try:
        return int(json.loads((state / "state.json").read_text())["documents"])
    except (FileNotFoundError, ValueError):
        return 0


def digests(place: str) -> dict[str, str]:
    """File -> sha256 of a data set; of the manifest without what names where the text lay."""
    storage = open_storage(place)
    found = {name: storage.get(name) for name, _ in storage.list("")}
    manifest = json.loads(found["manifest.json"])
    del manifest["plan"], manifest["source"]["inputs"], manifest["asked"]["text"]
    found["manifest.json"] = json.dumps(manifest).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def main() -> None:
    """Make, prepare, kill, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mb", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--shard-tokens", type=int, default=2**25)
    parser.add_argument("--store", help="s3://bucket/prefix for the killed one")
    parser.add_argument("--folder", help="where the files go; by default temporary")
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="muon-data-", dir=asked.folder))
    try:
        sys.exit(0 if compare(root, asked) else 1)
    finally:
        shutil.rmtree(root)


def compare(root: Path, asked: argparse.Namespace) -> bool:
    """Whether all was as it should be."""
    paths, number = make_corpus(root, int(asked.mb * 1e6))
    packed = sum(path.stat().st_size for path in paths)
    print(f"corpus      {asked.mb:g} MB of JSON lines, {packed / 1e6:.1f} MB packed, {number} documents", flush=True)
    options = ["--train-bpe", str(asked.vocabulary), "--workers", str(asked.workers)]
    options += ["--shard-tokens", str(asked.shard_tokens)]
    inputs, whole = [str(path) for path in paths], str(root / "whole")
    rival = call(inputs, whole, options, root / "whole" / ".preparing")
    speed = asked.mb / rival.seconds
    print(f"undisturbed {rival.seconds:.1f} s, {speed:.2f} MB/s, peak {rival.peak_mb:.0f} MB", flush=True)
    out, state = str(root / "killed"), root / "killed" / ".preparing"
    if asked.store:
        storage = open_storage(asked.store)
        for path in paths:
            storage.put(f"text/{path.name}", path.read_bytes())
        inputs, out = [f"{asked.store}/text/{path.name}" for path in paths], f"{asked.store}/set"
        name = hashlib.sha256(open_storage(out).place.encode()).hexdigest()[:16]
        state = cache_root().parent / "preparing" / name
    calls = [call(inputs, out, options, state, kill_at) for kill_at in (number // 3, 2 * number // 3, None)]
    for one in calls:
        print(f"then        exit code {one.code} after {one.seconds:.1f} s, peak {one.peak_mb:.0f} MB", flush=True)
    peak = max(one.peak_mb for one in [rival, *calls])
    left = sum(one.left_behind for one in calls)
    was_killed = [one.code for one in calls] == [-9, -9, 0]
    same_input = (
        asked.store or (root / "whole/manifest.json").read_bytes() == (root / "killed/manifest.json").read_bytes()
    )
    wanted, found = digests(whole), digests(out)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            print(f"differs     {name}: {wanted.get(name)} and {found.get(name)}")
    equal = same_input and rival.code == 0 and was_killed and wanted == found
    print(
        f"killed {'twice' if was_killed else 'NOT TWICE'}, {'equal' if equal else 'DIFFERENT'} bytes, {left} processes "
        f"left behind, peak {peak:.0f} MB of {LIMIT_MB:.0f}, killed / undisturbed "
        f"{sum(one.seconds for one in calls) / rival.seconds:.2f}x of the time"
    )
    return equal and peak <= LIMIT_MB and not left


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main()
