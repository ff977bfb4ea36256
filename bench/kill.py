"""Kill a real run at random moments, resume it each time, and compare it bit for bit with one that was left alone.

    python bench/kill.py [SOURCE ...] [--kills 5] [--budget 6e5tok] [--signals KILL INT TERM] [--seed 0] [--set F=V ...]

The budget is in tokens or steps, so that the clock decides nothing. The first kill comes while the text is prepared and
the run planned, the others at a random step and up to a third of a second on: in a step, a measurement, a checkpoint's
write. Prints each kill and the steps gone on from, and how many losses and tensors differ in the end (0, or something
is wrong: exit code 1).
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from isoflop import checkpoint
from isoflop.records import read_run


def start(arguments: list[str], home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ISOFLOP_HOME": str(home)}
    command = [sys.executable, "-m", "isoflop", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(process: subprocess.Popen[bytes]) -> None:
    said = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}:\n{said}")


def steps_done(run: Path) -> int:
    """Optimiser steps that a stopped run had on record when it was stopped."""
    if not (run / "config.json").is_file():
        return 0
    training = read_run(run).training
    return training[-1]["step"] if training else 0


def wait_for(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run has this many steps on record, or ends."""
    metrics = run / "metrics.jsonl"
    while step and process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b'"grad_norm"') >= step:
            return
        time.sleep(0.01)


def differing(one: Path, other: Path) -> tuple[int, int, int, int]:
    """(losses that differ, losses, tensors that differ, tensors) of two finished runs."""
    a, b = ([(line["step"], line["loss"]) for line in read_run(run).training] for run in (one, other))
    losses = sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
    u, v = (checkpoint.read(run).weights for run in (one, other))
    tensors = sum(name not in u or name not in v or not torch.equal(u[name], v[name]) for name in {*u, *v})
    return losses, len(a), tensors, len(u)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--budget", default="6e5tok")
    parser.add_argument("--signals", nargs="+", choices=["KILL", "INT", "TERM"], default=["KILL", "INT"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], help="passed on to `isoflop train`")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    extra = [word for text in given.set for word in ("--set", text)]
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        whole, broken = top / "whole", top / "broken"
        began = time.time()
        new = [*given.sources, "--budget", given.budget, *extra, "--out"]
        finish(start([*new, str(whole)], top / "home"))
        print(f"unbroken: {time.time() - began:.1f} s, {steps_done(whole)} steps", flush=True)
        first_step = read_run(whole).events[0]["time"] - began
        # the broken run has a home of its own, so that it prepares its text itself
        home = top / "home of the broken run"
        targets = sorted(draw.randrange(1, steps_done(whole) - 1) for _ in range(given.kills - 1))
        process = start([*new, str(broken)], home)
        for number, target in enumerate([0, *targets]):
            name = given.signals[number % len(given.signals)]
            wait_for(broken, target, process)
            time.sleep(draw.uniform(0, first_step if not target else 0.3))
            process.send_signal(getattr(signal, f"SIG{name}"))
            process.communicate()
            is_run = (broken / "config.json").is_file()
            where = f"at step {steps_done(broken)}" if is_run else "before it was a run"
            process = start(["--resume", str(broken)] if is_run else [*new, str(broken)], home)
            print(f"kill {number + 1}: SIG{name} {where}", flush=True)
        finish(process)
        resumed = [int(e["step"]) for e in read_run(broken).events if e["event"] == "resumed"]
        losses, of_losses, tensors, of_tensors = differing(whole, broken)
        print(f"resumed from steps {resumed}")
        print(f"{given.kills} kills: {losses} of {of_losses} losses differ, {tensors} of {of_tensors} tensors differ")
        sys.exit(1 if losses or tensors else 0)


if __name__ == "__main__":
    main()
