"""Many short continuations in one batch: 3 layers x 96, 256 prompts of 1 to 16 tokens, 32 new tokens each.

    python bench/many.py [--previous CHECKOUT] [--rounds 5] [--threads 1] [--json]

Prints tokens per second, prefill included: greedy, and sampled with temperature 0.8 and top-p 0.95 as `isoflop sample`
does. With --previous the same measurement of another checkout of isoflop takes turns with ours, each turn in a process
of its own, and the ratio is the median over rounds; `git worktree add ../before 7a96182` has the engine that fed rows
token by token. Seconds of the clock, so that threads count; use it on a quiet machine. On a busy one --processor counts
those of the process, with one thread.

The floor is what no engine of this arithmetic can beat on the machine: the matrix products of each step alone, and one
read of the keys and values that it attends to.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isoflop.generate.engine import stream_all
from isoflop.model.config import ModelConfig
from isoflop.model.gpt import GPT
from record import commit, record

WAYS: dict[str, dict[str, float]] = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 0.8, "top_p": 0.95}}
VOCABULARY = 1024
REPEATS = 3  # in each turn, after one that warms up


def measured(rows: int, tokens: int, processor: bool) -> dict[str, float]:
    """Tokens per second of each way, by the isoflop that this process imports."""
    clock = time.process_time if processor else time.perf_counter
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=VOCABULARY, context=256, layers=3, d_model=96, heads=2))
    with torch.no_grad():  # logits as wide as a trained model's, so that top-p leaves some out
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.08)
    lengths = torch.randint(1, 17, (rows,)).tolist()
    prompts = [torch.randint(VOCABULARY, (n,)).tolist() for n in lengths]

    speeds = {}
    for name, how in WAYS.items():
        took = []
        for _ in range(REPEATS + 1):
            started = clock()
            count = sum(1 for _ in stream_all(model, prompts, tokens, **how))  # type: ignore[arg-type]
            took.append(clock() - started)
            assert count == rows * tokens
        speeds[name] = rows * tokens / statistics.median(took[1:])
    speeds["floor"] = rows / floor(model.config, rows, statistics.mean(lengths) + tokens / 2, clock)
    return speeds


def floor(config: ModelConfig, rows: int, length: float, clock: Callable[[], float]) -> float:
    """Seconds of a step's matrix products alone, and of one read of keys and values of this mean length."""
    D, layers = config.d_model, config.layers
    shapes = [*[(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)] * layers, (D, config.vocab_size)]
    weights = [torch.randn(shape) for shape in shapes]
    inputs = {width: torch.randn(rows, width) for width, _ in shapes}
    results = {width: torch.empty(rows, width) for _, width in shapes}
    held = torch.ones(math.ceil(2 * layers * rows * length * D))

    def step() -> None:
        for weight in weights:
            torch.mm(inputs[weight.shape[0]], weight, out=results[weight.shape[1]])
        held.sum()

    took = []
    for _ in range(50):
        started = clock()
        step()
        took.append(clock() - started)
    return statistics.median(took)


def turn(checkout: Path, given: argparse.Namespace) -> dict[str, float]:
    """`measured` in a process that imports isoflop from `checkout`."""
    words = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--once",
        f"--rows={given.rows}",
        f"--tokens={given.tokens}",
    ]
    words += [f"--threads={given.threads}", *(["--processor"] if given.processor else [])]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--previous", type=Path, help="another checkout, which takes turns with ours")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor", action="store_true", help="seconds of the process instead of the clock's")
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/many.json")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.once:
        print(json.dumps(measured(given.rows, given.tokens, given.processor)))
        return

    ours = Path(__file__).resolve().parents[1]
    checkouts = {"ours": ours} | ({"previous": given.previous.resolve()} if given.previous else {})
    rounds = [{who: turn(checkout, given) for who, checkout in checkouts.items()} for _ in range(given.rounds)]

    result: dict[str, Any] = {"rows": given.rows, "tokens": given.tokens, "threads": given.threads, "ways": {}}
    for way in WAYS:
        speeds = {who: statistics.median(one[who][way] for one in rounds) for who in checkouts}
        line = f"{way:8} {speeds['ours']:9,.0f} tokens/s"
        if given.previous:
            speeds["ratio"] = statistics.median(one["ours"][way] / one["previous"][way] for one in rounds)
            line += f", previous {speeds['previous']:9,.0f}, ratio {speeds['ratio']:.2f}"
        result["ways"][way] = speeds
        print(line, flush=True)

    result["floor"] = statistics.median(one["ours"]["floor"] for one in rounds)
    print(f"floor    {result['floor']:9,.0f} tokens/s: products alone, and one read of keys and values")

    if given.json:
        peers = {"previous": commit(given.previous)} if given.previous else {}
        record("many", {**result, "clock": "processor" if given.processor else "wall"}, peers)


if __name__ == "__main__":
    main()
