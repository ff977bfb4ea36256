"""Fuzzing: corrupt files in many ways and read them. Each case must be read or refused in one line.

    python tests/campaigns/fuzz.py --cases 20000 --workers 2         in full, over all targets
    python tests/campaigns/fuzz.py                                   10,000 cases
    python tests/campaigns/fuzz.py --only gguf --cases 2000 --seed 3
    python tests/campaigns/fuzz.py --only gguf --seed 3 --number 417    one case again, in detail

Cases run in worker processes, many per worker, one after another; a case that kills its worker or takes longer than
--limit seconds is a finding, and a new worker continues. A case is (target, seed, number) and nothing else. Prints a
table by target and every kind of finding with the case that shows it; the exit code is 1 if there is any.
"""

import argparse
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("fuzz_worker.py")
READY = 300  # seconds for making a valid example, imports included


@dataclass
class Found:
    """The outcomes of a target's cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: dict[str, Any], result: dict[str, Any]) -> None:
        self.outcomes[result["outcome"]] += 1
        self.slowest = max(self.slowest, result.get("seconds", 0.0))
        self.largest = max(self.largest, result.get("grown", 0))
        if result["outcome"] not in ("read", "refused"):
            self.findings.append({**case, **result})


class Process:
    """A worker at the other end of two pipes."""

    def __init__(self) -> None:
        read, write = os.pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(WORKER.parents[2]), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
        }
        self.errors = open(os.memfd_create("errors"), "w+b")  # noqa: SIM115, PTH123 - a descriptor, closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            pass_fds=[write],
            env=environment,
        )
        os.close(write)
        self.answers = os.fdopen(read, "r")
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.answers, selectors.EVENT_READ)
        self.made: set[str] = set()

    def ask(self, case: dict[str, Any], limit: float) -> dict[str, Any]:
        """The worker's answer, or how it died."""
        assert self.process.stdin is not None
        if case["target"] not in self.made and case["number"] >= 0:
            ready = self.ask({**case, "number": -1}, READY)
            if ready["outcome"] != "ready":
                raise RuntimeError(f"the valid example of {case['target']} does not read: {ready}")
            self.made.add(case["target"])
        self.process.stdin.write(json.dumps(case).encode() + b"\n")
        self.process.stdin.flush()
        if not self.selector.select(limit):
            self.end()
            return {"outcome": "hang", "message": f"no answer in {limit:.0f} s", "seconds": limit}
        if answer := self.answers.readline():
            result: dict[str, Any] = json.loads(answer)
            return result
        code = self.process.wait()
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"outcome": "crash", "message": f"{cause}: {self.last_words()}"}

    def last_words(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")[-1500:]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        if self.alive:
            self.process.kill()
        self.process.wait()
        self.answers.close()
        self.errors.close()


def run(
    cases: list[dict[str, Any]], workers: int = 1, limit: float = 20.0, minutes: float = math.inf
) -> dict[str, Found]:
    """Run every case, or as many as fit into some minutes. Returns the outcomes by target."""
    end = time.monotonic() + 60 * minutes
    found: dict[str, Found] = {}
    left, lock, broken = iter(cases), threading.Lock(), list[BaseException]()

    def work() -> None:
        process = None
        try:
            while True:
                with lock:
                    case = next(left, None)
                if case is None or broken or time.monotonic() > end:
                    return
                if process is None or not process.alive:
                    process = Process()
                result = process.ask(case, limit)
                with lock:
                    found.setdefault(case["target"], Found()).add(case, result)
                if result["outcome"] not in ("read", "refused"):
                    print(f"{case}: {result['outcome']}", file=sys.stderr, flush=True)
        except BaseException as error:
            broken.append(error)
        finally:
            if process is not None:
                process.end()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return found


def plan(cases: int, seed: int, only: list[str], weights: dict[str, float]) -> list[dict[str, Any]]:
    """The cases to run: each target's share by weight, at least one, with the targets interleaved."""
    names = only or list(weights)
    total = sum(weights[name] for name in names)
    shares = {name: max(1, round(cases * weights[name] / total)) for name in names}
    listed = [(number / share, name, number) for name, share in shares.items() for number in range(share)]
    return [{"target": name, "seed": seed, "number": number} for _, name, number in sorted(listed)]


def show(found: dict[str, Found], findings: int = 3) -> int:
    """Print the table and the findings. Returns how many findings there are."""
    print(f"{'target':22}{'cases':>8}{'read':>8}{'refused':>9}{'findings':>10}{'slowest':>10}{'memory':>10}")
    for name, of in [*found.items(), ("all", summed(found))]:
        cells = [of.outcomes.total(), of.outcomes["read"], of.outcomes["refused"], len(of.findings)]
        row = f"{name:22}{cells[0]:>8,}{cells[1]:>8,}{cells[2]:>9,}{cells[3]:>10,}"
        print(f"{row}{of.slowest:>8.1f} s{of.largest >> 20:>6,} MiB")
    kinds: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for of in found.values():
        for one in of.findings:
            last = one["message"].strip().splitlines()[-1] if one["message"].strip() else ""
            kinds.setdefault((one["target"], one["outcome"], last[:50]), []).append(one)
    for (target, outcome, last), cases in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(cases)} x {target}: {outcome}: {last}")
        for one in cases[:findings]:
            print(f"    --only '{target}' --seed {one['seed']} --number {one['number']}    {one.get('what', '')[:150]}")
    return sum(len(of.findings) for of in found.values())


def summed(found: dict[str, Found]) -> Found:
    whole = Found()
    for of in found.values():
        whole.outcomes += of.outcomes
        whole.findings += of.findings
        whole.slowest, whole.largest = max(whole.slowest, of.slowest), max(whole.largest, of.largest)
    return whole


def main() -> None:
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=list(TARGETS), metavar="TARGET")
    parser.add_argument("--number", type=int, help="this one case alone")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no case after so many")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that a case may take")
    given = parser.parse_args()
    if given.number is not None:
        case = {"target": given.only[0], "seed": given.seed, "number": given.number}
        process = Process()
        result = process.ask(case, given.limit)
        process.end()
        print("\n".join(f"{name}: {value}" for name, value in result.items()))
        sys.exit(result["outcome"] not in ("read", "refused"))
    cases = plan(given.cases, given.seed, given.only, {name: target.weight for name, target in TARGETS.items()})
    sys.exit(1 if show(run(cases, given.workers, given.limit, given.minutes)) else 0)


if __name__ == "__main__":
    main()
