"""Timing several steps in short alternating turns, so that another program disturbs only a few turns of each.

Each turn is timed, with the system's counters before and after it (isoflop/processors.py). A turn in which something
else used the processors is discarded if enough others are left; the result is the upper quartile of the remaining
speeds. If too few are left, everything is timed once more, and the trouble is reported.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from isoflop.processors import Load, Reading

TURNS = 8  # short ones: a program that runs for a second disturbs one or two
LEAST = 1  # turns of each that are taken even if time is up
ENOUGH = 3  # undisturbed turns that are needed to discard the disturbed ones
WARM_UP = 2  # steps before the first turn, which allocate memory and create optimiser state
QUANTILE = 0.75  # of the turns' speeds: the speed of the undisturbed machine, without its fastest moments
DISAGREE = 1.3  # largest ratio of the upper to the lower quartile of the speeds without timing once more


class Step(Protocol):
    """A step to be timed."""

    def __call__(self) -> None:
        """Take one step."""

    def begin(self) -> None:
        """Prepare a turn, not timed: set threads, warm up."""

    def wait(self) -> None:
        """Return when all launched work is done."""

    def whole(self, seconds: float) -> float:
        """The seconds of whole steps, given the seconds since `begin`, if the timed steps are smaller."""


@dataclass(frozen=True)
class Turn:
    """One turn: seconds per step, number of steps, and the load of the processors."""

    seconds: float
    steps: int
    load: Load


@dataclass(frozen=True)
class Timing:
    """The result of the turns of one step.

    Attributes:
        seconds: per step, by the upper quartile of the speeds.
        steps: number of steps timed.
        trouble: why it may be wrong, in words; "" if there is no reason.
    """

    seconds: float
    steps: int
    trouble: str = ""

    @classmethod
    def of(cls, turns: Sequence[Turn], computing: bool = True) -> "Timing":
        """The result of some turns.

        Args:
            computing: see Load.trouble.
        """
        troubles = [turn.load.trouble(computing) for turn in turns]
        quiet = [turn for turn, trouble in zip(turns, troubles, strict=True) if not trouble]
        counted = quiet if len(quiet) >= ENOUGH else turns
        speeds = [1 / max(turn.seconds, 1e-9) for turn in counted]
        lower, upper = (float(np.quantile(speeds, q)) for q in (1 - QUANTILE, QUANTILE))

        trouble = ""
        if counted is turns:
            trouble = next((text for text in reversed(troubles) if text), "")
        if not trouble and upper > DISAGREE * lower:
            trouble = f"equal steps took from {1 / max(speeds):.3g} to {1 / min(speeds):.3g} s"
        return cls(1 / upper, sum(turn.steps for turn in turns), trouble)


def take_turns(
    steps: Sequence[Step],
    seconds: float,
    clock: Callable[[], float],
    read: Callable[[], Reading],
    until: float = math.inf,
    computing: bool = True,
) -> list[Timing]:
    """Time each of `steps`, in TURNS turns each, for about `seconds` each in total.

    If the counters or the spread of the speeds show a disturbance, everything gets TURNS more turns, once.

    Args:
        clock: returns the time in seconds.
        read: returns the system's counters.
        until: the clock's time after which no turn begins, except the first LEAST of each.
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
        if turn == TURNS and not any(Timing.of(step_turns, computing).trouble for step_turns in turns):
            break
        for step_turns, step in zip(turns, steps, strict=True):
            step_turns.append(take_turn(step, seconds / TURNS, clock, read))
    return [Timing.of(step_turns, computing) for step_turns in turns]


def take_turn(step: Step, seconds: float, clock: Callable[[], float], read: Callable[[], Reading]) -> Turn:
    """One turn of about `seconds`, at least one step."""
    step.begin()
    before, started, steps_taken = read(), clock(), 0
    while not steps_taken or clock() - started < seconds:
        step()
        steps_taken += 1
    step.wait()
    return Turn(step.whole(clock() - started) / steps_taken, steps_taken, Load.between(before, read()))
