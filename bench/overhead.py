"""The time that a run spends outside its steps: loader, logging, evaluation, samples, checkpoints.

    python bench/overhead.py [SOURCE ...] [--budget 3m] [--json]

A whole run by `isoflop train`, with the intervals that the plan chooses, on the default corpus if no text is named.
Each part is timed where it happens; checkpoints are the remaining time outside the steps. Shares are of the run's
training seconds.
"""

import argparse
import functools
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from isoflop import job
from isoflop.allocator import keep_freed_memory
from isoflop.data.loader import Loader
from isoflop.trainer import hooks, log
from record import record

TARGET = 0.02  # of the training seconds


def time_calls(spent: Counter[str], owner: Any, method: str, name: str) -> None:
    """Add the seconds of every call of a method to `spent[name]`."""
    plain = getattr(owner, method)

    @functools.wraps(plain)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    setattr(owner, method, timed)


def measure(sources: list[str], budget: str) -> dict[str, Any]:
    spent: Counter[str] = Counter()
    time_calls(spent, Loader, "batch", "loader")
    time_calls(spent, log.TrainingLog, "add", "logging")
    time_calls(spent, hooks.HeldOut, "stepped", "evaluation")
    time_calls(spent, hooks.Samples, "stepped", "samples")
    with tempfile.TemporaryDirectory() as scratch:
        result = job.pretrain(sources, budget, Path(scratch) / "run")
        config = json.loads((Path(scratch) / "run" / "config.json").read_text())
    model = config["model"]
    spent["checkpoints"] = max(0.0, result.aside_seconds - spent["evaluation"] - spent["samples"])
    return {
        "shape": f"{model['layers']} x {model['d_model']}, context {model['context']}",
        "steps": result.step,
        "seconds": round(result.seconds, 3),
        "parts": {name: round(seconds, 4) for name, seconds in spent.items()},
        "share": round(sum(spent.values()) / result.seconds, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="SOURCE")
    parser.add_argument("--budget", default="3m")
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/overhead.json")
    given = parser.parse_args()
    keep_freed_memory()
    found = measure(given.sources, given.budget)
    print(f"{found['shape']}: {found['steps']} steps in {found['seconds']:.1f} s")
    for name, seconds in found["parts"].items():
        print(f"  {name:12} {seconds:8.3f} s  {seconds / found['seconds']:6.2%}")
    print(f"  {'in all':12} {'':8}    {found['share']:6.2%}  (target: under {TARGET:.0%})")
    if given.json:
        record("overhead", {**found, "target": TARGET})


if __name__ == "__main__":
    main()
