"""Timing several things in short turns, so that a program next to them spoils some turns of each and not one of them.

Each turn has its own time, and what the system's counters said of it (isoflop/processors.py). A turn in which something
else used the processors is left out where enough others are left; of those that count, the upper quartile of the speeds
is taken. What cannot be helped that way is timed once more, and said.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from isoflop.processors import Load, Reading

TURNS = 8  # short ones: a program that runs for a second spoils one or two
LEAST = 1  # turns that are taken however late it is
ENOUGH = 3  # turns in which nothing else used the processors, for the others to be left out
WARM_UP = 2  # steps before the first turn: memory is allocated, optimiser state made
QUANTILE = 0.75  # of the turns' speeds: what the machine does when it is left alone, without its luckiest moments
DISAGREE = 1.3  # times that the upper quartile of the speeds may be the lower one before they are timed once more


class Step(Protocol):
    """What is timed."""

    def __call__(self) -> None:
        """Take one step."""

    def begin(self) -> None:
        """Before a turn, outside of the time: threads are set, what is cold is warmed."""

    def wait(self) -> None:
        """Return when all that was launched is done."""

    def whole(self, seconds: float) -> float:
        """Seconds of whole steps, where what was timed since `begin`, in so many seconds, was less than that."""


@dataclass(frozen=True)
class Turn:
    """One turn: seconds per step, the steps that were taken, and who used the processors meanwhile."""

    seconds: float
    steps: int
    load: Load


@dataclass(frozen=True)
class Timing:
    """What the turns of one thing say together.

    Attributes:
        seconds: per step, by the upper quartile of the speeds.
        steps: that were timed.
        trouble: why that may be wrong, in words; empty: nothing speaks against it.
    """

    seconds: float
    steps: int
    trouble: str = ""

    @classmethod
    def of(cls, turns: Sequence[Turn], computing: bool = True) -> "Timing":
        """Judge some turns.

        Args:
            computing: see Load.trouble.
        """
        troubles = [turn.load.trouble(computing) for turn in turns]
        quiet = [turn for turn, trouble in zip(turns, troubles, strict=True) if not trouble]
        counted = quiet if len(quiet) >= ENOUGH else turns
        speeds = [1 / max(turn.seconds, 1e-9) for turn in counted]
        low, high = (float(np.quantile(speeds, q)) for q in (1 - QUANTILE, QUANTILE))

        trouble = ""
        if counted is turns:
            trouble = next((text for text in reversed(troubles) if text), "")
        if not trouble and high > DISAGREE * low:
            trouble = f"equal steps took from {1 / max(speeds):.3g} to {1 / min(speeds):.3g} s"
        return cls(1 / high, sum(turn.steps for turn in turns), trouble)


def take_turns(
    steps: Sequence[Step],
    seconds: float,
    clock: Callable[[], float],
    read: Callable[[], Reading],
    until: float = math.inf,
    computing: bool = True,
) -> list[Timing]:
    """Time each of `steps`, TURNS times in turn, for about `seconds` each in all.

    Where that is contradicted by the counters or by itself, everything has TURNS more turns, once.

    Args:
        clock: in seconds; read: the counters at this moment.
        until: the clock's time after which nothing begins, but for LEAST turns of each.
    """
    for step in steps:
        step.begin()
        for _ in range(WARM_UP):
            if clock() <= until:
                step()
        step.wait()

    turns: list[list[Turn]] = [[] for _ in steps]
    for turn in range(2 * TURNS):
        if turn >= LEAST and clock() > until:
            break
        if turn == TURNS and not any(Timing.of(own, computing).trouble for own in turns):
            break
        for own, step in zip(turns, steps, strict=True):
            own.append(take_turn(step, seconds / TURNS, clock, read))
    return [Timing.of(own, computing) for own in turns]


def take_turn(step: Step, seconds: float, clock: Callable[[], float], read: Callable[[], Reading]) -> Turn:
    """One turn of about `seconds`: at least one step, however long that is."""
    step.begin()
    before, started, taken = read(), clock(), 0
    while not taken or clock() - started < seconds:
        step()
        taken += 1
    step.wait()
    return Turn(step.whole(clock() - started) / taken, taken, Load.between(before, read()))
