"""Kill a real run at random moments, resume it each time, and compare it bit for bit with an uninterrupted one.

    python tests/campaigns/kill.py SOURCE --kills 100                        in full
    python tests/campaigns/kill.py SOURCE --kills 6 --budget 600steps --signals KILL INT TERM --seed 0 --set FIELD=VALUE

The budget is in tokens or steps, so that results do not depend on the clock. Each process is killed after a random time
between its start and some of its steps, so that every phase is hit: preparing the text, calibration, starting again,
steps, evaluation, writing a checkpoint. Prints each kill, its phase and its cost: the recorded steps that were not in a
checkpoint yet and are repeated, and their seconds. At the end it prints the lost checkpoints (damaged, or missing
although none is newer) and the losses and tensors that differ. All of these have to be 0; otherwise the exit code is 1.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from isoflop import checkpoint
from isoflop.errors import UserError
from isoflop.records import RunFolder, read_lines, read_run

BEFORE_IT_IS_A_RUN = 8  # kills at most before there is anything to resume; the text is prepared anew each time


@dataclass(frozen=True)
class Kill:
    """One kill: the signal, the phase that it hit, and the work to be repeated."""

    signal: str
    where: str
    steps: int
    seconds: float


def start(arguments: list[str], home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ISOFLOP_HOME": str(home)}
    command = [sys.executable, "-m", "isoflop", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(process: subprocess.Popen[bytes]) -> None:
    errors = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}:\n{errors}")


def is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def steps_done(folder: Path) -> int:
    """Optimiser steps that a stopped run had on record when it was stopped."""
    training = read_run(folder).training if is_run(folder) else []
    return training[-1].step if training else 0


def lost_checkpoints(folder: Path, seen: int) -> tuple[int, int]:
    """(checkpoints that are damaged, or missing though they were the newest, the newest step)."""
    checkpoints = RunFolder(folder).checkpoints
    steps = checkpoint.steps(checkpoints)
    damaged = 0
    for step in steps:
        try:
            checkpoint.verify(checkpoint.at_step(checkpoints, step))
        except UserError:
            damaged += 1
    newest = steps[-1] if steps else 0
    return damaged + (newest < seen), max(newest, seen)


def where_it_hit(folder: Path, began_at: int, since: float) -> str:
    """The phase in which a process was killed, inferred from its files.

    Args:
        began_at: the steps on record when it started.
        since: when that was, in seconds since 1970: what an earlier life left half-written is not this one's.
    """
    if not is_run(folder):
        return "before it was a run"
    run = read_run(folder)
    if not run.result.missing:
        return "after its last step"
    if any(path.stat().st_mtime >= since for path in (folder / "checkpoints").glob(".step-*.tmp")):
        return "writing a checkpoint"
    done = steps_done(folder)
    if done == began_at:
        return "starting"
    every = run.config["every"]["evaluate"]
    if done % every == 0 and (not run.heldout or run.heldout[-1].step < done):
        return "measuring"
    return "in its steps"


def work_to_redo(folder: Path) -> tuple[int, float]:
    """(steps, their seconds) on record beyond the newest checkpoint."""
    if not is_run(folder):
        return 0, 0.0
    steps = checkpoint.steps(RunFolder(folder).checkpoints)
    safe = steps[-1] if steps else 0
    lines = read_lines(RunFolder(folder).log("metrics"))
    times = {line["step"]: line["seconds"] for line in lines if "grad_norm" in line}
    done = max(times, default=0)
    return max(0, done - safe), max(0.0, times.get(done, 0.0) - times.get(safe, 0.0))


def differing(one: Path, other: Path) -> tuple[int, int, int, int]:
    """(losses that differ, losses, tensors that differ, tensors) of two finished runs."""
    a, b = ([(line.step, line.loss) for line in read_run(run).training] for run in (one, other))
    losses = sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
    u, v = (checkpoint.read(run).weights for run in (one, other))
    tensors = sum(name not in u or name not in v or not torch.equal(u[name], v[name]) for name in {*u, *v})
    return losses, len(a), tensors, len(u)


def kill_often(
    new: list[str],
    broken: Path,
    home: Path,
    signals: list[str],
    kills: int,
    draw: random.Random,
    first: float,
    rest: float,
) -> tuple[list[Kill], int]:
    """Start a run, kill and resume it `kills` times or until it ends by itself, then let it finish.

    Args:
        first: seconds from a fresh start to the first step.
        rest: seconds of all the steps of a run left alone.

    Returns:
        The kills, and the checkpoints lost.
    """
    total, hits, lost, newest = 0, [], 0, 0
    boot = first / 2
    for number in range(kills):
        resumed, began_at, since = is_run(broken), steps_done(broken), time.time()
        process = start(["--resume", str(broken)] if resumed else [*new, str(broken)], home)
        share = 1 - total / max(1, steps_of(new))
        beyond = 2 * rest * share / (kills - number)
        least = first if not resumed and number >= BEFORE_IT_IS_A_RUN else 0.0
        wait_until = time.monotonic() + draw.uniform(least, (boot if resumed else first) + beyond)
        began, stepped = time.monotonic(), False
        while time.monotonic() < wait_until and process.poll() is None:
            time.sleep(0.005)
            if resumed and not stepped and has_stepped(broken, began_at):
                boot, stepped = time.monotonic() - began, True
        if process.poll() is not None:
            finish(process)
            break
        name = signals[number % len(signals)]
        process.send_signal(getattr(signal, f"SIG{name}"))
        process.communicate()
        now_lost, newest = lost_checkpoints(broken, newest)
        lost += now_lost
        total = steps_done(broken)
        hits.append(Kill(name, where_it_hit(broken, began_at, since), *work_to_redo(broken)))
        kill = hits[-1]
        cost = (
            f"{kill.steps} steps, {kill.seconds:.2f} s to be done again" if is_run(broken) else "nothing to go on from"
        )
        print(f"kill {number + 1}: SIG{name} {kill.where}, {total} steps on record: {cost}", flush=True)
        if is_run(broken) and not read_run(broken).result.missing:
            break  # killed when all was done
    else:
        finish(start(["--resume", str(broken)] if is_run(broken) else [*new, str(broken)], home))
    return hits, lost


def has_stepped(folder: Path, began_at: int) -> bool:
    """Whether there is a step on record that was not when the process started."""
    lines = read_lines(folder / "metrics.jsonl")
    return any(line["step"] > began_at for line in lines[-2:])


def steps_of(new: list[str]) -> int:
    """The steps of a budget such as 600steps; 1,000 for other budgets (it only sets the pace of the kills)."""
    budget = new[new.index("--budget") + 1]
    return int(budget.removesuffix("steps")) if budget.endswith("steps") else 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--budget", default="600steps")
    parser.add_argument("--signals", nargs="+", choices=["KILL", "INT", "TERM"], default=["KILL"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], help="passed on to `isoflop train`")
    given = parser.parse_args()
    extra = [word for text in given.set for word in ("--set", text)]
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        whole, broken = top / "whole", top / "broken"
        began = time.time()
        new = [*given.sources, "--budget", given.budget, *extra, "--out"]
        finish(start([*new, str(whole)], top / "home"))
        took = time.time() - began
        first = read_run(whole).events[0].time - began
        print(f"unbroken: {took:.1f} s, {steps_done(whole)} steps, the first after {first:.1f} s", flush=True)
        # the broken run has a home of its own, so that it prepares its text itself
        home = top / "home of the broken run"
        draw = random.Random(given.seed)
        began = time.time()
        kills, lost = kill_often(new, broken, home, given.signals, given.kills, draw, first, took - first)
        tell(kills, time.time() - began)
        losses, of_losses, tensors, of_tensors = differing(whole, broken)
        print(
            f"{len(kills)} kills: {lost} checkpoints lost, {losses} of {of_losses} losses differ, "
            f"{tensors} of {of_tensors} tensors differ"
        )
        sys.exit(1 if lost or losses or tensors else 0)


def tell(kills: list[Kill], took: float) -> None:
    """Print the phases that the kills hit, and their cost."""
    for where, count in Counter(kill.where for kill in kills).most_common():
        print(f"  {count:3} {where}")
    if kills:
        steps, seconds = [kill.steps for kill in kills], [kill.seconds for kill in kills]
        print(
            f"done again for a kill: {statistics.mean(steps):.1f} steps ({max(steps)} at most), "
            f"{statistics.mean(seconds):.2f} s ({max(seconds):.2f} at most); {took:.0f} s in all"
        )


if __name__ == "__main__":
    main()
