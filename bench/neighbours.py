"""The cost of another program on the same machine: the same budget alone, and next to others.

    python bench/neighbours.py [SOURCE ...] [--budget 60] [--pairs 5] [--json]

    alone     no other program computes on this machine
    loop      a single-threaded loop
    torch     a torch program that computes with two threads
    start     the same, from the start of calibration on, for a quarter of the budget (15 s of 60)

A pair is one run alone and one run next to each of the other programs, with the same seed. Each run has its own
ISOFLOP_HOME, so that it has no cached timings, and prepares its text. Printed is, for each program, the median over
pairs of the loss relative to the run alone. The last should be within 2 %: its plan was made while the machine was
busy, and the run is planned again. The machine must be idle otherwise.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from isoflop.records import Run, read_run
from record import record

LOOP = "import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass"
TORCH = (
    "import time, torch\ntorch.set_num_threads(2)\na = torch.randn(256, 256)\nend = time.time() + {seconds}\n"
    "while time.time() < end:\n    for _ in range(50): a @ a"
)
LONG = 10.0  # times the budget: longer than the whole run, including everything outside its budget
PROGRAMS = {"alone": None, "loop": (LOOP, LONG), "torch": (TORCH, LONG), "start": (TORCH, 0.25)}
MEASURES = "measuring this machine"  # the line after which the neighbour of "start" begins
WITHIN = 0.02  # the target for "start", relative to the loss alone


def train(kind: str, sources: list[str], budget: float, seed: int, out: Path) -> Run:
    """One run next to a program, which starts with the run, or when the run begins to measure the machine."""
    command = [sys.executable, "-u", "-m", "isoflop", "train", *sources, "--budget", f"{budget:g}s", "--out", str(out)]
    home = {**os.environ, "ISOFLOP_HOME": str(out.with_suffix(".home"))}
    neighbours = [] if kind == "start" else start_neighbour(kind, budget)
    try:
        with subprocess.Popen(
            [*command, "--set", f"seed={seed}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=home
        ) as run:
            for line in run.stdout or ():
                if kind == "start" and MEASURES in line and not neighbours:
                    neighbours = start_neighbour(kind, budget)
        if run.returncode:
            sys.exit(f"the run {out} ended with exit code {run.returncode}")
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    if kind == "start" and not neighbours:
        sys.exit(f"no line of the run says {MEASURES!r}: the neighbour was never started")
    return read_run(out)


def start_neighbour(kind: str, budget: float) -> list[subprocess.Popen[bytes]]:
    """Start the program of a kind; returns a list of processes, empty for "alone"."""
    program = PROGRAMS[kind]
    if program is None:
        return []
    code, share = program
    return [subprocess.Popen([sys.executable, "-c", code.format(seconds=share * budget)])]


def row_of(run: Run) -> dict[str, Any]:
    return {
        "bits_per_byte": run.result.heldout.bits_per_byte,
        "seconds": run.result.seconds,
        "parameters": run.plan.parameters,
        "tokens": run.result.tokens,
        "threads": run.settings.runtime.threads,
        "doubt": run.plan.calibration.doubt,
        "attempts": 1 + (run.folder.path / "attempts" / "1").is_dir(),
        "phases": run.result.phases,
    }


def measure(sources: list[str], budget: float, pairs: int) -> dict[str, Any]:
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in PROGRAMS}
    with tempfile.TemporaryDirectory() as scratch:
        for pair in range(pairs):
            for kind in PROGRAMS:
                run = train(kind, sources, budget, 0, Path(scratch) / f"{kind}-{pair}")
                rows[kind].append(row_of(run))
                print(f"pair {pair}, {kind}: {rows[kind][-1]}", flush=True)
    alone = [row["bits_per_byte"] for row in rows["alone"]]
    relative = {
        kind: statistics.median(row["bits_per_byte"] / loss for row, loss in zip(found, alone, strict=True))
        for kind, found in rows.items()
    }
    return {"budget": budget, "pairs": pairs, "rows": rows, "relative": relative}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="SOURCE")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds per run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/neighbours.json")
    given = parser.parse_args()

    found = measure(given.sources, given.budget, given.pairs)
    print(f"{'':8} loss relative to alone, median of {given.pairs}")
    for kind, ratio in found["relative"].items():
        print(f"{kind:8} {ratio:.4f}")
    kept = abs(found["relative"]["start"] - 1) <= WITHIN
    print(f"start: {'within' if kept else 'NOT within'} {WITHIN:.0%} of the run alone")
    if given.json:
        record("neighbours", found)


if __name__ == "__main__":
    main()
