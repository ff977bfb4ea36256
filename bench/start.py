"""Seconds from starting the command to the end of its first step, with text that was prepared before.

    python bench/start.py [SOURCE ...] [--rounds 5] [--plan] [--json]

A small model is trained for one step: once to prepare the text and measure the machine's peak, and then repeatedly from
the same config.json, each time in a new process, as a user who tries settings would.

With --plan, a budget of 30 seconds is planned instead of giving a configuration. Later starts use cached timings of the
machine, and should take their first step within 5 seconds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from isoflop.config import override, to_dict
from isoflop.data.config import DataConfig
from isoflop.files import write_json
from isoflop.trainer import RunConfig
from record import record

LAYERS, WIDTH = 4, 128
POLL = 0.005  # seconds


def start(arguments: list[str], out: Path) -> float:
    """Seconds until the first training line is written; then the run is stopped."""
    lines = out / "metrics.jsonl"
    command = [sys.executable, "-m", "isoflop", "train", *arguments, "--out", str(out)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (lines.exists() and lines.stat().st_size):
        if process.poll() not in (None, 0):
            raise SystemExit(f"the run failed: {process.communicate()[1].decode()}")
        time.sleep(POLL)
    took = time.perf_counter() - started
    process.kill()
    process.communicate()
    return took


def measure(sources: list[str], rounds: int, plan: bool = False) -> dict[str, Any]:
    fields = [f"model.layers={LAYERS}", f"model.d_model={WIDTH}", "steps=1", "every.sample=0", "every.evaluate=0"]
    config = override(RunConfig(data=DataConfig(sources=tuple(sources))), fields)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.json"
        write_json(path, to_dict(config))
        given = [*sources, "--budget", "30s"] if plan else ["--config", str(path)]
        first = start(given, Path(scratch) / "first")
        seconds = [start(given, Path(scratch) / f"run-{number}") for number in range(rounds)]
    shape = "planned for 30s" if plan else f"{LAYERS} x {WIDTH}, {config.tokens_per_step:,} tokens per step"
    return {"shape": shape, "first": first, "seconds": seconds, "median": statistics.median(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="SOURCE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plan", action="store_true", help="plan a budget instead of giving a configuration")
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/start.json")
    given = parser.parse_args()
    found = measure(given.sources, given.rounds, given.plan)
    print(f"{found['shape']}: first start {found['first']:.1f} s, later ones {found['median']:.1f} s (median)")
    if given.json:
        record("start-plan" if given.plan else "start", found)


if __name__ == "__main__":
    main()
