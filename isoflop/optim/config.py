"""The configuration of the optimiser and of the learning-rate schedule."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from isoflop.config import Added, Derived, OneOf
from isoflop.errors import UserError
from isoflop.optim.average import AVERAGES, Averaging
from isoflop.optim.muon import Neurons
from isoflop.optim.orthogonal import ITERATIONS
from isoflop.optim.table import FLOAT, OPTIMIZERS, SCHEDULES, WEIGHT_DECAYS, Optimizer, Schedule, choose, without

MOST_ROUNDS = 100
Betas = tuple[float, float]


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser.

    Raises:
        UserError: naming the field, for a value outside its range.
    """

    name: Annotated[str, OneOf(OPTIMIZERS)] = "muon"
    lr: Annotated[float, "AdamW's peak learning rate: embeddings, head, gains, biases (all parameters with adamw)"] = (
        1e-2
    )
    matrix_lr: Annotated[
        float,
        "Muon's peak learning rate, for the matrices inside the blocks",
        Derived(lambda: f"(unused with {without('matrix_lr')})"),
    ] = 0.015
    head_lr: Annotated[float, "AdamW's peak learning rate for an untied head; 0: that of optim.lr"] = 0.0
    embedding_lr: Annotated[float, "AdamW's peak learning rate for lookup tables; 0: that of optim.lr"] = 0.0
    betas: Annotated[tuple[float, float], "AdamW's decay rates of the gradient's first and second moment"] = (0.9, 0.95)
    eps: Annotated[float, "AdamW's term added to the denominator"] = 1e-8
    weight_decay: Annotated[
        float,
        "decoupled decay: each step subtracts lr * weight_decay * weight_decay_factor of each weight; none on 1-D "
        "tensors",
    ] = 0.1
    momentum: Annotated[float, "Muon's momentum"] = 0.9
    clip: Annotated[float, "largest global norm of the gradient; larger ones are scaled down; 0 disables it"] = 1.0
    value_lr: Annotated[
        float,
        "AdamW's peak learning rate for value embeddings; 0: that of lookup tables (nanochat: half of it)",
        Added(),
    ] = 0.0
    embedding_betas: Annotated[
        Betas | None, "betas for lookup tables; null: optim.betas (nanochat: [0.8, 0.995])", Added()
    ] = None
    head_betas: Annotated[
        Betas | None, "betas for an untied head; null: optim.betas (nanochat: [0.8, 0.96])", Added()
    ] = None
    weight_decay_factor: Annotated[
        float, "factor on weight_decay; a plan raises it where the text is read several times", Added()
    ] = 1.0
    weight_decay_course: Annotated[str, "weight decay during the run:", OneOf(WEIGHT_DECAYS), Added()] = "constant"
    cautious_decay: Annotated[
        bool, "Muon's weight decay only where the step moves no weight away from 0 (2510.12402)", Added()
    ] = False
    momentum_from: Annotated[float, "Muon's momentum at the first step, if optim.momentum_steps > 0", Added()] = 0.85
    momentum_steps: Annotated[int, "steps in which Muon's momentum rises to optim.momentum; 0: none", Added()] = 0
    iteration: Annotated[str, "Muon's orthogonalisation:", OneOf(ITERATIONS), Added()] = "quintic"
    rounds: Annotated[int, "Muon's rounds of orthogonalisation", Added()] = 5
    neurons: Annotated[
        Neurons,
        "lines of Muon's steps that are divided by their running root mean square (NorMuon, 2510.05491): none; rows; "
        "or longer: rows of tall and columns of wide matrices",
        Added(),
    ] = "none"
    neuron_beta: Annotated[float, "decay rate of that mean square", Added()] = 0.95

    def __post_init__(self) -> None:
        for field in ("lr", "matrix_lr", "eps"):
            require(f"optim.{field}", getattr(self, field), 0.0, math.inf, open_low=True)
        for field in ("betas", "embedding_betas", "head_betas"):
            for i, beta in enumerate(getattr(self, field) or ()):
                require(f"optim.{field}[{i}]", beta, 0.0, 1.0, open_high=True)
        for field in ("head_lr", "embedding_lr", "value_lr"):
            require(f"optim.{field}", getattr(self, field), 0.0, math.inf)
        for field in ("momentum", "momentum_from", "neuron_beta"):
            require(f"optim.{field}", getattr(self, field), 0.0, 1.0, open_high=True)
        require("optim.momentum_steps", self.momentum_steps, 0, math.inf)
        require("optim.rounds", self.rounds, 1, MOST_ROUNDS)
        require("optim.weight_decay", self.weight_decay, 0.0, math.inf)
        require("optim.weight_decay_factor", self.weight_decay_factor, 0.0, math.inf)
        require("optim.clip", self.clip, 0.0, math.inf)
        OneOf(ITERATIONS).check(self.iteration, "optim.iteration")
        OneOf(WEIGHT_DECAYS).check(self.weight_decay_course, "optim.weight_decay_course")
        _ = self.entry

    @cached_property
    def entry(self) -> Optimizer:
        """The optimiser `name` with these settings."""
        return choose(OPTIMIZERS, "optim.name", self)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate schedule, as a factor on each group's peak learning rate.

    Raises:
        UserError: naming the field, for a value outside its range.
    """

    name: Annotated[str, OneOf(SCHEDULES)] = "wsd"
    warmup: Annotated[float, "share of the planned tokens in which the rate rises linearly"] = 0.02
    decay: Annotated[
        float, "share of the run, at its end, in which wsd falls linearly to the floor; 0 for no decay"
    ] = 0.3
    floor: Annotated[float, "factor at the very end (GPT-3's cosine: 0.1)"] = 0.0
    length: Annotated[
        float, "share of the run after which cosine has reached the floor, and stays there (GPT-3: 260 of 300)"
    ] = 1.0
    cosine_from: Annotated[
        Literal["warmup", "start"],
        "where cosine begins: at the end of the warm-up, or at the run's start, multiplied by the warm-up (GPT-1)",
    ] = "warmup"

    def __post_init__(self) -> None:
        for field in ("warmup", "decay", "floor"):
            require(f"schedule.{field}", getattr(self, field), 0.0, 1.0)
        require("schedule.length", self.length, 0.0, 1.0, open_low=True)
        _ = self.entry

    @classmethod
    def as_written(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Defaults for files of earlier versions: before `cosine_from` existed, every cosine began at the start."""
        return {"cosine_from": "start", **data}

    @cached_property
    def entry(self) -> Schedule:
        """The schedule `name` with these settings."""
        return choose(SCHEDULES, "schedule.name", self)


@dataclass(frozen=True)
class AverageConfig:
    """The average of the weights that is evaluated and saved in their place.

    Raises:
        UserError: naming the field, for a value outside its range.
    """

    name: Annotated[str, OneOf(AVERAGES)] = "none"
    share: Annotated[float, "share of the run, at its end, over which tail takes the mean"] = 0.1
    beta: Annotated[float, "decay rate of exponential, per step"] = 0.99
    every: Annotated[int, "steps between two points of the average"] = 4

    def __post_init__(self) -> None:
        require("average.share", self.share, 0.0, 1.0, open_low=True)
        require("average.beta", self.beta, 0.0, 1.0, open_high=True)
        require("average.every", self.every, 1, math.inf)
        _ = self.entry

    @cached_property
    def entry(self) -> Averaging:
        """The rule `name` with these settings."""
        return choose(AVERAGES, "average.name", self)


def bytes_of_copy() -> str:
    """The memory of a copy of weights and optimiser state, per parameter inside the blocks, for help texts."""
    sizes = {name: FLOAT + OptimConfig(name=name).entry.state_bytes("matrices") for name in OPTIMIZERS}
    default = sizes[OptimConfig().name]
    alternatives = [f"with {name} {size}" for name, size in sizes.items() if size != default]
    return ", ".join([f"{default} bytes per parameter", *alternatives])


def require(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Check that a number is finite and in an interval.

    Raises:
        UserError: naming the field, its value and the interval.
    """
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (math.isfinite(value) and above and below):
        bounds = [f"{'above' if open_low else 'at least'} {low:g}"]
        if math.isfinite(high):
            bounds.append(f"{'below' if open_high else 'at most'} {high:g}")
        raise UserError(f"{name} = {value:g} is out of range: it must be {' and '.join(bounds)}")
