"""AVERAGES: the values of `average.name`, the rules by which a run averages its weights.

The mean of the weights of many steps has less of the noise that single steps leave in them, as after a decay of the
learning rate (Polyak and Juditsky 1992; Izmailov et al. 2018, 1803.05407; Hägele et al. 2024, 2405.18392).
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """No average: the weights themselves are evaluated and saved.

    Class attributes:
        on: whether there is an average, which takes memory.
    """

    words: ClassVar[str] = "the weights themselves"
    on: ClassVar[bool] = False

    def weight(self, points: int, u: float, every: int) -> float | None:
        """The weight of the present weights as the next point of an average of `points` earlier ones; None: there is no
        average at this place of the run, and none continues.

        Args:
            u: progress, the share of the run that is done.
            every: steps between two points.
        """
        return None

    def explained(self) -> str:
        """The average in words, for the plan."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Tail(Averaging):
    """The mean over the last share of the run."""

    words: ClassVar[str] = "the mean over the last average.share of the run"
    on: ClassVar[bool] = True

    share: float

    def weight(self, points: int, u: float, every: int) -> float | None:
        return 1.0 / (points + 1) if u > 1.0 - self.share else None

    def explained(self) -> str:
        return f"mean over the last {self.share:.0%} of the run"


@dataclass(frozen=True, kw_only=True)
class Exponential(Averaging):
    """The exponential moving average with decay rate `beta` per step; until it has as many points as that stands for,
    their mean."""

    words: ClassVar[str] = "the exponential average with decay rate average.beta per step"
    on: ClassVar[bool] = True

    beta: float

    def weight(self, points: int, u: float, every: int) -> float | None:
        return max(1.0 - self.beta**every, 1.0 / (points + 1))

    def explained(self) -> str:
        return f"exponential, decay rate {self.beta:g} per step"


AVERAGES: dict[str, type[Averaging]] = {"none": Averaging, "tail": Tail, "exponential": Exponential}
