"""Sampling settings of each row, and its random numbers: one generator per row."""

from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isoflop.errors import UserError

TEMPERATURE = 0.8  # where none is asked for
LARGEST_PENALTY = 1e6
LARGEST = float(np.finfo(np.float32).max)

AT_A_TIME = 64  # random numbers that are drawn from a row's generator at once

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How one row's tokens are chosen, in the order of application.

    Attributes:
        repetition_penalty: positive logits of ids in the row's prompt or output are divided by it, negative ones
            multiplied (Keskar et al. 2019, 1909.05858, section 4.1); 1 disables it.
        temperature: logits are divided by it; 0 is greedy.
        top_k: keep the k likeliest; 0: all.
        top_p: of these keep the fewest likeliest that together reach this probability (Holtzman et al. 2019,
            1904.09751); 1: all.
        min_p: of these keep those with at least this share of the likeliest one's probability (Nguyen et al. 2024,
            2407.01082); 0: all.
    """

    temperature: float = TEMPERATURE
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def check(self) -> None:
        """Raises:
        UserError: naming the option whose value makes no sense.
        """
        for each in fields(self):  # from Python anything may come
            value: Any = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise UserError(f"{each.name} = {value!r} is not a number")
            if each.name == "top_k" and not isinstance(value, Integral):
                raise UserError(f"--top-k {value:g} is not a whole number")
        if not 0.0 <= self.temperature < float("inf"):
            raise UserError(
                f"--temperature {self.temperature:g} is not a number from 0 up; 0 takes the likeliest token"
            )
        if self.top_k < 0:
            raise UserError(f"--top-k {self.top_k} is negative; 0 keeps all tokens")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"--top-p {self.top_p:g} is not in (0, 1]; 1 keeps all tokens")
        if not 0.0 <= self.min_p <= 1.0:
            raise UserError(f"--min-p {self.min_p:g} is not in [0, 1]; 0 keeps all tokens")
        if not 1 / LARGEST_PENALTY <= self.repetition_penalty <= LARGEST_PENALTY:  # beyond, logits overflow
            raise UserError(
                f"--repetition-penalty {self.repetition_penalty:g} is not a number above 0 (from "
                f"{1 / LARGEST_PENALTY:g} to {LARGEST_PENALTY:g}); 1 changes nothing"
            )


@dataclass
class Rules:
    """The `Sampling` of many rows, as an array per field."""

    temperature: npt.NDArray[np.float32]
    top_k: Rows
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]
    repetition_penalty: npt.NDArray[np.float32]
    known: dict[Any, Any] = field(default_factory=dict, compare=False)  # cached tensors for these rows

    @classmethod
    def for_rows(cls, rows: list[Sampling]) -> "Rules":
        def column(name: str) -> npt.NDArray[np.float32]:
            return np.array([min(getattr(row, name), LARGEST) for row in rows], dtype=np.float32)

        top_k = np.array([min(row.top_k, 2**31) for row in rows], dtype=np.int64)
        return cls(column("temperature"), top_k, column("top_p"), column("min_p"), column("repetition_penalty"))

    def of(self, rows: npt.NDArray[Any]) -> "Rules":
        return Rules(*(getattr(self, each.name)[rows] for each in fields(self) if each.name != "known"))

    def column(self, name: str, device: torch.device) -> Tensor:
        """One of the fields as (B, 1)."""
        if name not in self.known:
            self.known[name] = torch.from_numpy(getattr(self, name)).unsqueeze(1).to(device)
        column: Tensor = self.known[name]
        return column

    def parts(self) -> list[tuple[str, Rows]]:
        """Which rows are greedy, which sample from all ids, and which from the likeliest ones (top-k, top-p)."""
        if "parts" not in self.known:
            greedy = self.temperature == 0
            ranked = ~greedy & ((self.top_k > 0) | (self.top_p < 1.0))
            ways = {"greedy": greedy, "all": ~greedy & ~ranked, "likeliest": ranked}
            self.known["parts"] = [(name, mask.nonzero()[0]) for name, mask in ways.items() if mask.any()]
        parts: list[tuple[str, Rows]] = self.known["parts"]
        return parts


class Draws:
    """A random generator per slot, seeded for the row in it. A row's n-th number does not depend on other rows, nor on
    the device, since all generators are the CPU's."""

    def __init__(self, slots: int) -> None:
        self.generators = [torch.Generator() for _ in range(slots)]
        self.ready = np.empty((slots, AT_A_TIME))
        self.used = np.full(slots, AT_A_TIME)

    def seed(self, slot: int, seed: int) -> None:
        self.generators[slot].manual_seed(seed)
        self.used[slot] = AT_A_TIME

    def next(self, slots: Rows) -> Tensor:
        """A number in (0, 1] for each of these slots, float64."""
        for slot in slots[self.used[slots] == AT_A_TIME]:
            numbers = torch.rand(AT_A_TIME, generator=self.generators[slot], dtype=torch.float64)
            self.ready[slot] = 1.0 - numbers.numpy()
            self.used[slot] = 0
        drawn = self.ready[slots, self.used[slots]]
        self.used[slots] += 1
        return torch.from_numpy(drawn)
