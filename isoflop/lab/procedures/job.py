"""The inputs and outputs of a procedure."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.config import to_key
from isoflop.trainer import RunConfig
from isoflop.trainer.task import make_task

FORMAT = 1  # raise it when a procedure measures something else by the same name

# Measures that are infinitely bad for a run that diverged. Of other measures such a run has none.
LOSSES = ("bits_per_byte", "nats_per_token", "excess_over_unigram", "train_loss", "unit_error_rate")


@dataclass(frozen=True)
class Job:
    """One run: a procedure, a configuration, a seed.

    Attributes:
        procedure: its name in table.py.
        config: what is built or trained; `config.seed` draws the initial weights.
        order: the seed of the data's order, which the arms of a pair share.
        options: the procedure's own.
        data: the fingerprint of the prepared data; empty for a procedure that reads none.
        role: what it is for: "pair", "rate", "noise". It decides nothing.
        arm: whose. It decides nothing.
        factor: the rates', against those of the plan. It decides nothing: the configuration has it already.
    """

    procedure: str
    config: RunConfig
    order: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    role: str = field(default="pair", compare=False)
    arm: str = field(default="", compare=False)
    factor: float = field(default=1.0, compare=False)

    @property
    def key(self) -> str:
        """A hash of everything that decides the outcome, in hexadecimal digits: a job whose key is on record is not run
        again. Data enters by its fingerprint, whatever its path; not at all where the procedure reads none."""
        config = {name: value for name, value in to_key(self.config).items() if name != "data"}
        deciding = [FORMAT, self.procedure, config, self.order, dict(self.options), self.data]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Measured:
    """The result of a job.

    Attributes:
        measures: numbers by name; infinite for a run that diverged.
        lists: by name, for figures: the points of a curve, a value per layer.
        diverged: whether training failed.
    """

    measures: dict[str, float]
    lists: dict[str, list[float]] = field(default_factory=dict)
    diverged: bool = False


@dataclass(frozen=True)
class Procedure:
    """An entry of the table.

    Attributes:
        run: does it.
        measures: the names of what it measures.
        words: what it is, for help.
        trains: whether it has learning rates and a length.
        reads: whether it reads the text that the configuration names.
        seeded: whether its outcome depends on the seed.
        builds: whether it builds the model that the configuration describes.
        pairs: whether its data are pairs of an input and an output, not text.
        cases: whether the pair numbers stand for a fixed list of cases, so that no further ones can be drawn.
        task: prepares its data and, where it trains, is what is learned.
    """

    run: Callable[[Job], Measured]
    measures: tuple[str, ...]
    words: str
    trains: bool = False
    reads: bool = True
    seeded: bool = True
    builds: bool = True
    pairs: bool = False
    cases: bool = False
    task: Callable[[RunConfig], Any] = make_task


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of y on x; 0 where x does not vary."""
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((value - mean_x) ** 2 for value in x)
    together = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return together / spread if spread else 0.0


def log10(value: float) -> float:
    """log10, within the range of single precision: what vanished or overflowed is at its end, and not missing."""
    if not math.isfinite(value):
        return 38.0
    return max(-38.0, min(38.0, math.log10(value))) if value > 0 else -38.0
