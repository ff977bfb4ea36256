"""Preparing text, next to the `tokenizers` library alone: GPT-2's tokenizer, in turns, each turn in a new process.

    python bench/prepare.py TEXT.jsonl[.xz] --tokenizer vocab.bpe [--megabytes 25] [--rounds 5] [--json]

Ours is all of `isoflop prepare`: compressed JSON lines on disk, read twice (the first pass decides duplicates and the
held-out split), encoded by parallel processes and written as shards with checksums. Theirs is `encode_batch` on all
cores over the same documents in memory, whose ids are not used. MB are of UTF-8 text, the first --megabytes of the
file. Memory is the peak of our main process and of its largest encoding process.
"""

import argparse
import json
import lzma
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isoflop.data.config import DataConfig
from isoflop.data.prepare import documents, prepare
from isoflop.data.tokenizer import Tokenizer
from isoflop.processors import cores
from isoflop.runtime import peak_memory
from record import record


def beginning(path: Path, column: str, wanted: float, out: Path) -> int:
    """Write the first documents, about `wanted` bytes of text, to a new .jsonl.xz. Returns the bytes of text."""
    size = 0
    with lzma.open(out, "wt", encoding="utf-8") as file:
        for text in documents(DataConfig(sources=(str(path),), text_column=column)):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            size += len(text.encode())
            if size >= wanted:
                break
    return size


def ours(text: Path, tokenizer: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ISOFLOP_HOME"] = folder
        started = time.perf_counter()
        prepared = prepare(DataConfig(sources=(str(text),), tokenizer=tokenizer), out=Path(folder) / "out")
        took = time.perf_counter() - started
        tokens = prepared.account().train.tokens
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": took, "tokens": tokens, "peak_bytes": peak_memory("cpu"), "peak_bytes_of_a_worker": largest}


def theirs(text: Path, tokenizer: str) -> dict[str, float]:
    inner = Tokenizer.from_file(tokenizer)._inner
    texts = list(documents(DataConfig(sources=(str(text),))))
    started = time.perf_counter()
    encodings = inner.encode_batch(texts, add_special_tokens=False)
    took = time.perf_counter() - started
    tokens = sum(len(encoding.ids) for encoding in encodings) + len(texts)
    return {"seconds": took, "tokens": tokens, "peak_bytes": peak_memory("cpu")}


MAKERS = {"ours": ours, "theirs": theirs}


def measure(text: Path, size: int, tokenizer: str, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MAKERS}
    for _ in range(rounds):
        for name in MAKERS:
            command = [sys.executable, __file__, str(text), "--tokenizer", tokenizer, "--turn-of", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout))
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(found["ours"], found["theirs"], strict=True)]
    row: dict[str, Any] = {"text_bytes": size, "cores": cores(), "ratio": statistics.median(ratios)}
    for name, turns in found.items():
        row[name] = {
            "bytes_per_second": size / statistics.median(turn["seconds"] for turn in turns),
            "seconds": [turn["seconds"] for turn in turns],
            **{key: max(turn[key] for turn in turns) for key in turns[0] if key != "seconds"},
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.json, or GPT-2's vocab.bpe")
    parser.add_argument("--column", default="text")
    parser.add_argument("--megabytes", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/prepare.json")
    parser.add_argument("--turn-of", choices=list(MAKERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.turn_of:
        print(json.dumps(MAKERS[given.turn_of](given.text, given.tokenizer)))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.jsonl.xz"
        size = beginning(given.text, given.column, given.megabytes * 1e6, text)
        row = {"text": given.text.name, **measure(text, size, given.tokenizer, given.rounds)}
    us, them = row["ours"], row["theirs"]
    print(
        f"{row['text']}: {size / 1e6:.1f} MB, ours {us['bytes_per_second'] / 1e6:.2f} MB/s "
        f"({us['peak_bytes'] / 2**20:.0f} MiB), encode_batch {them['bytes_per_second'] / 1e6:.2f} MB/s "
        f"({them['peak_bytes'] / 2**20:.0f} MiB), ratio {row['ratio']:.2f}"
    )
    if given.json:
        record("prepare", {"rows": [row]}, {"tokenizers": version("tokenizers")})


if __name__ == "__main__":
    main()
