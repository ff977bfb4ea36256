"""OPTIMIZERS, WEIGHT_DECAYS and SCHEDULES: the values of `optim.name`, `optim.weight_decay_course` and `schedule.name`,
and their interfaces to other files.

Adding one takes a class and a line in its table. The fields of the class are its schema: each gets the value of the
field of OptimConfig or ScheduleConfig (config.py) with the same name. Help and error texts are derived from here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch

from isoflop.config import OneOf
from isoflop.errors import UserError
from isoflop.optim.muon import Matrices, Muon, Neurons
from isoflop.optim.orthogonal import ITERATIONS

FLOAT = 4  # bytes: weights and the optimisers' state are float32
WIDTH = 128  # d_model at which the default learning rates were measured (LAB.md)
EMBEDDING = 4.0  # ratio of the embedding's learning rate to that of AdamW's other groups (LAB.md)

T = TypeVar("T")

# (factor on the learning rate, step from 0, progress u) -> a setting of a parameter group at that step
Course = Callable[[float, int, float], float]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimiser of all parameters. Groups are named as in groups.py: matrices, embedding, value, head, vectors.

    If its torch class has `_step_supports_amp_scaling`, it discards a step by itself when `found_inf` is set on the
    device; for any other the host waits for the gradient's norm before the step. Its state has to be created in the
    first step, as tensors or numbers per parameter, so that checkpoints can hold it.

    Class attributes:
        decay_worth: the fall of the loss while the learning rate decays, relative to Muon (bench/onway.py), for running
            forecasts before the decay (trainer/curve_law.py).
    """

    words: ClassVar[str] = ""
    decay_worth: ClassVar[float] = 1.0

    lr: float

    def rate(self, group: str) -> float:
        """The peak learning rate of a parameter group."""
        return self.lr

    def courses(self, group: str) -> dict[str, Course]:
        """The settings of a parameter group, other than learning rate and weight decay, that change during the run."""
        return {}

    def state_bytes(self, group: str) -> int:
        """Bytes of optimiser state per parameter of a group, without the few numbers per tensor or row."""
        raise NotImplementedError

    def stacks(self, group: str) -> bool:
        """Whether a step stacks all tensors of one shape in this group, which takes extra memory."""
        return False

    def at_width(self, d_model: int, tied_head: bool) -> dict[str, float]:
        """The fields of OptimConfig that depend on the width, given the values measured at d_model = WIDTH."""
        return {}

    def make(
        self, groups: Sequence[dict[str, Any]], dtype: torch.dtype, matrices: Matrices | None
    ) -> list[torch.optim.Optimizer]:
        """The torch optimisers of these parameter groups, which hold `params`, `name`, `lr` and `weight_decay`.

        Args:
            dtype: of the matrix products inside a step.
            matrices: access to full matrices if they are distributed over processes; None: they are local.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019, 1711.05101), torch's fused one. Head, embedding and value embeddings may have
    their own learning rates: 0 is `lr`, for value embeddings that of the embedding. Head and embeddings may have their
    own betas: None is `betas`."""

    words: ClassVar[str] = "AdamW for all"
    decay_worth: ClassVar[float] = 0.5

    head_lr: float
    embedding_lr: float
    value_lr: float
    betas: tuple[float, float]
    head_betas: tuple[float, float] | None
    embedding_betas: tuple[float, float] | None
    eps: float

    def rate(self, group: str) -> float:
        own = {"head": self.head_lr, "embedding": self.embedding_lr, "value": self.value_lr or self.embedding_lr}
        return own.get(group) or self.lr

    def betas_of(self, group: str) -> tuple[float, float]:
        """The decay rates of the moments of a parameter group."""
        own = {"head": self.head_betas, "embedding": self.embedding_betas, "value": self.embedding_betas}
        return own.get(group) or self.betas

    def state_bytes(self, group: str) -> int:
        return 2 * FLOAT  # both moments

    def at_width(self, d_model: int, tied_head: bool) -> dict[str, float]:
        """lr ~ 1 / sqrt(width): one rate for matrices that sum over the width and for lookup tables is the geometric
        mean of the two rules of MuonAdamW."""
        return {"lr": self.lr * math.sqrt(WIDTH / d_model)}

    def make(
        self, groups: Sequence[dict[str, Any]], dtype: torch.dtype, matrices: Matrices | None
    ) -> list[torch.optim.Optimizer]:
        if not groups:
            return []
        with_betas = [{**group, "betas": self.betas_of(group["name"])} for group in groups]
        return [torch.optim.AdamW(with_betas, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)]


@dataclass(frozen=True, kw_only=True)
class MuonAdamW(AdamW):
    """Muon for the matrices inside the blocks, AdamW for all other parameters."""

    words: ClassVar[str] = "Muon for the matrices inside the blocks, AdamW for all else"
    decay_worth: ClassVar[float] = 1.0

    matrix_lr: float
    momentum: float
    momentum_from: float
    momentum_steps: int
    iteration: str
    rounds: int
    neurons: Neurons
    neuron_beta: float
    cautious_decay: bool

    def rate(self, group: str) -> float:
        return self.matrix_lr if self.by_muon(group) else super().rate(group)

    def courses(self, group: str) -> dict[str, Course]:
        if not self.by_muon(group) or not self.momentum_steps:
            return {}
        first, last, steps = self.momentum_from, self.momentum, self.momentum_steps
        return {"momentum": lambda scale, step, u: first + (last - first) * min(1.0, step / steps)}

    def state_bytes(self, group: str) -> int:
        return FLOAT if self.by_muon(group) else super().state_bytes(group)

    def stacks(self, group: str) -> bool:
        return self.by_muon(group)

    def at_width(self, d_model: int, tied_head: bool) -> dict[str, float]:
        """Steps of Muon and of the embedding change each coordinate of the next layer's input by the same amount at
        every width. The head sums over the width, where Adam's steps add up, so its rate is ~ 1 / width (Yang et al.
        2022, 2203.03466, table 8). A row of the embedding is updated only by its own token and needs a larger rate than
        weights that every token updates. A tied head is both, with one rate: AdamW's rule."""
        if tied_head:
            return super().at_width(d_model, tied_head)
        return {"head_lr": self.lr * (WIDTH / d_model), "embedding_lr": self.lr * EMBEDDING}

    def make(
        self, groups: Sequence[dict[str, Any]], dtype: torch.dtype, matrices: Matrices | None
    ) -> list[torch.optim.Optimizer]:
        by_muon = [group for group in groups if self.by_muon(group["name"])]
        by_adamw = [group for group in groups if not self.by_muon(group["name"])]
        muon = [self.make_muon(by_muon, dtype, matrices)] if by_muon else []
        return [*muon, *super().make(by_adamw, dtype, matrices)]

    def make_muon(self, groups: list[dict[str, Any]], dtype: torch.dtype, matrices: Matrices | None) -> Muon:
        return Muon(
            groups,
            momentum=self.momentum,
            dtype=dtype,
            matrices=matrices,
            iteration=ITERATIONS[self.iteration],
            rounds=self.rounds,
            neurons=self.neurons,
            neuron_beta=self.neuron_beta,
            cautious=self.cautious_decay,
        )

    @staticmethod
    def by_muon(group: str) -> bool:
        return group == "matrices"


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "muon": MuonAdamW,
    "adamw": AdamW,
}


@dataclass(frozen=True)
class WeightDecay:
    """How the weight decay of every group changes during the run.

    Attributes:
        factor: on `optim.weight_decay` at a step; None: it does not change.
    """

    words: str
    factor: Course | None = None


WEIGHT_DECAYS: dict[str, WeightDecay] = {
    "constant": WeightDecay(""),
    "with_lr": WeightDecay("times the learning rate's factor", lambda scale, step, u: scale),
    "linear": WeightDecay("falling to 0 over the whole run", lambda scale, step, u: 1.0 - u),
    "cosine": WeightDecay("the same by a cosine", lambda scale, step, u: 0.5 * (1.0 + math.cos(math.pi * u))),
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning-rate schedule after the warm-up, which all share. It is a function of the progress u, with u = 1 at
    the end of the run, so that the end can be moved at any time (timetable.py).

    Class attributes:
        stable: it stays at the full rate up to a final decay; a run can be extended from before the decay.
    """

    words: ClassVar[str] = ""
    stable: ClassVar[bool] = False

    def shape(self, u: float) -> float:
        """The factor on the peak learning rate: 1 at u = 0, never rising, for u in [0, 1]."""
        raise NotImplementedError

    def explained(self) -> str:
        """A description of its shape for the plan, or ""."""
        return ""


@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warm-up, stable, decay (Hu et al. 2024, 2404.06395), with a linear decay to the floor (Hägele et al. 2024,
    2405.18392)."""

    words: ClassVar[str] = "warm-up, stable, linear decay"
    stable: ClassVar[bool] = True

    decay: float
    floor: float

    def shape(self, u: float) -> float:
        remaining = (1.0 - u) / self.decay if self.decay > 0 else 1.0
        return self.floor + (1.0 - self.floor) * remaining if remaining < 1.0 else 1.0

    def explained(self) -> str:
        return f"decay {self.decay:.0%}"


# `schedule.cosine_from` -> the progress u at which the cosine begins, given the warm-up's share of the run
COSINE_STARTS: dict[str, Callable[[float], float]] = {"warmup": lambda warmup: warmup, "start": lambda warmup: 0.0}


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a period of the cosine, down to the floor at `length` (Loshchilov and Hutter 2017, 1608.03983, without
    restarts). It begins at the end of the warm-up, as in most trainers since GPT-3, or at the start of the run, where
    it multiplies the warm-up, as in OpenAI's code of GPT-1.

    Raises:
        UserError: for a shape that would train part of the run at a rate of 0.
    """

    words: ClassVar[str] = "half a period"

    warmup: float
    floor: float
    length: float
    cosine_from: str

    def __post_init__(self) -> None:
        if self.length < 1.0 and self.floor == 0.0:
            raise UserError(
                f"schedule.length = {self.length:g} with schedule.floor = 0 trains the end of the run at a learning "
                "rate of 0; raise the floor or set the length to 1"
            )

    def shape(self, u: float) -> float:
        start = COSINE_STARTS[self.cosine_from](self.warmup)
        if not start:
            done = u / self.length
        elif u < start:
            done = 0.0
        else:
            done = (u - start) / (self.length - start) if start < self.length else 1.0
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def explained(self) -> str:
        where = (
            "; it begins at the start and multiplies the warm-up" if self.cosine_from == "start" and self.warmup else ""
        )
        return f"down to {self.floor:.0%} at {self.length:.0%} of the run{where}"


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The full rate to the end."""

    def shape(self, u: float) -> float:
        return 1.0


SCHEDULES: dict[str, type[Schedule]] = {
    "wsd": WSD,
    "cosine": Cosine,
    "constant": Constant,
}


def choose(table: Mapping[str, Callable[..., T]], where: str, config: Any) -> T:
    """The entry `config.name`, with those of the configuration's fields that its class has.

    Raises:
        UserError: for a name that is not in the table, or inconsistent values.
    """
    cls: Any = table[OneOf(table).check(config.name, where)]
    entry: T = cls(**{field.name: getattr(config, field.name) for field in fields(cls)})
    return entry


def without(field: str) -> str:
    """The names of the optimisers that do not read a field of OptimConfig, for its help."""
    return ", ".join(name for name, cls in OPTIMIZERS.items() if field not in [own.name for own in fields(cls)])


def rates(optimizer: Optimizer) -> dict[str, float]:
    """The learning rates among an optimiser's fields, by name; 0 stands for `lr`."""
    named = [field.name for field in fields(optimizer)]
    return {name: getattr(optimizer, name) for name in named if name == "lr" or name.endswith("_lr")}
