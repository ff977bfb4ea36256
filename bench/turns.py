"""Trainers in separate processes, timed in turns: they share no allocator, threads or memory, and a drifting machine
speed affects all alike."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CONTENDER = Path(__file__).with_name("contender.py")
TOKENS = 2**20  # random ids in the file that all trainers read


class Contender:
    """A process that takes steps on request (contender.py)."""

    def __init__(self, spec: dict[str, Any], log: Path, environment: Mapping[str, str]) -> None:
        self.spec, self.log = spec, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(CONTENDER), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, **environment},
            )

    def take(self, steps: int) -> dict[str, Any]:
        """Take a number of steps.

        Raises:
            RuntimeError: if it died, with the end of its output.
        """
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            raise RuntimeError(f"{self.spec} stopped:\n{self.log.read_text(errors='replace')[-2000:]}")
        return dict(json.loads(answer))

    def stop(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


@dataclass
class Turns:
    """The measurements of one trainer: seconds, processor seconds and page faults per step, for each turn, and its peak
    memory in bytes."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def add(self, answer: Mapping[str, Any], steps: int) -> None:
        """Add the measurements of a turn."""
        self.peak_bytes = answer["peak_bytes"]
        self.seconds.append(answer["seconds"] / steps)
        self.cpu_seconds.append(answer["cpu_seconds"] / steps)
        self.faults.append(answer["faults"] / steps)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        return {
            "seconds_per_step": [round(value, 6) for value in self.seconds],
            "cpu_seconds_per_step": round(statistics.median(self.cpu_seconds), 6),
            "faults_per_step": round(statistics.median(self.faults), 1),
            "peak_bytes": self.peak_bytes,
        }


def take_turns(
    specs: dict[str, dict[str, Any]],
    steps: int,
    rounds: int,
    folder: Path,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[dict[str, Turns], dict[str, str]]:
    """Let each trainer take `steps` steps per turn, for `rounds` rounds. The first turn of each is a warm-up and not
    counted. A trainer that dies is left out of later rounds.

    Returns:
        The turns by name, and the error of each trainer that died.
    """
    done: dict[str, Turns] = {}
    missing: dict[str, str] = {}
    with started(specs, folder, environments or {}) as contenders:
        for number in range(rounds + 1):
            for name, contender in list(contenders.items()):
                try:
                    answer = contender.take(steps if number else max(2, steps // 4))
                except RuntimeError as error:
                    missing[name] = str(error)
                    del contenders[name]
                    done.pop(name, None)
                    continue
                if number:
                    done.setdefault(name, Turns()).add(answer, steps)
    return done, missing


def take_turns_alone(
    specs: dict[str, dict[str, Any]], steps: int, rounds: int, folder: Path, warm_up: int = 3
) -> tuple[dict[str, Turns], dict[str, str]]:
    """Like `take_turns`, if the memory (of a GPU) holds only one trainer at a time: each is started for its turn, takes
    `warm_up` steps that are not counted and then `steps`, and is stopped."""
    done: dict[str, Turns] = {}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        for name, spec in specs.items():
            if name in missing:
                continue
            with started({name: spec}, folder, {}) as contenders:
                try:
                    contenders[name].take(warm_up)
                    answer = contenders[name].take(steps)
                except RuntimeError as error:
                    missing[name] = str(error)
                    done.pop(name, None)
                    continue
            done.setdefault(name, Turns()).add(answer, steps)
    return done, missing


@contextlib.contextmanager
def started(
    specs: dict[str, dict[str, Any]], folder: Path, environments: Mapping[str, Mapping[str, str]]
) -> Iterator[dict[str, Contender]]:
    contenders = {
        name: Contender(spec, folder / f"{index}.log", environments.get(name, {}))
        for index, (name, spec) in enumerate(specs.items())
    }
    everyone = list(contenders.values())
    try:
        yield contenders
    finally:
        for contender in everyone:
            contender.stop()


def ratio(turns: Turns, other: Turns) -> float:
    """The speed relative to another trainer: the median over rounds of the ratio in each round."""
    return statistics.median(b / a for a, b in zip(turns.seconds, other.seconds, strict=True))


def random_tokens(folder: Path, vocabulary: int) -> Path:
    """Write a file of random 16-bit ids; the cost of a step does not depend on its tokens."""
    path = folder / f"tokens-{vocabulary}.bin"
    if not path.exists():
        np.random.default_rng(0).integers(vocabulary, size=TOKENS, dtype=np.uint16).tofile(path)
    return path
