"""The decay probe: measures, before the learning rate decays, how much that decay will lower the loss.

At a constant learning rate the weights fluctuate around a path of lower loss. A decay ends these fluctuations; so does
the average of the weights over the last part of the run, whose loss is close to that after a decay (Hägele et al. 2024,
2405.18392; Li et al. 2025, 2505.12082). The trainer measures the average next to the weights, and running forecasts use
the difference (curve_law.py).

The average is only read: weights are put back bit for bit, and no random generator is used. It is kept in main memory,
and in the checkpoints of the stable phase, so that a resumed run measures the same.

In a checkpoint it is the tensors probe.<name>, and `probe` of its progress, the number of additions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop import checkpoint
from isoflop.parallel.state import MODEL, PROBE, model_tensors

# The weights after a share x of the additions count in proportion to x^POWER (Karras et al. 2023, 2312.02696, section
# 3.1): the window grows with the run, and its mean lags behind by LAG of the steps so far.
POWER = 4.0
LAG = 1.0 / (POWER + 2.0)
ADDITIONS = 256  # in a run as planned
FEWEST = 16  # additions before the first measurement


class DecayProbe:
    """The average of a model's weights so far, weighted towards the newest.

    Args:
        interval: steps between additions.
        each: the average is measured at every `each`-th held-out measurement.
        power: see POWER.
    """

    def __init__(self, model: nn.Module, interval: int = 1, each: int = 1, power: float = POWER) -> None:
        self.interval, self.each, self.power = interval, each, power
        tensors = model_tensors(model)
        self.live = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
        self.count = 0
        self._means: list[Tensor] = []

    @property
    def ready(self) -> bool:
        return self.count >= FEWEST

    def follow(self, step: int, stable: bool) -> None:
        """Add the weights after `step` steps if it is their turn; forget the average once the rate has fallen."""
        if not stable:
            self.clear()
        elif step % self.interval == 0:
            self.add()

    @torch.no_grad()
    def add(self) -> None:
        """Add the present weights."""
        self.count += 1
        if self.count == 1:
            self._means = [tensor.detach().to("cpu", copy=True) for tensor in self.live.values()]
            return
        share = (self.power + 1.0) / (self.count + self.power)
        torch._foreach_lerp_(self._means, [tensor.detach().to("cpu") for tensor in self.live.values()], share)

    def clear(self) -> None:
        """Forget the average, and free its memory."""
        self.count, self._means = 0, []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the average as its weights. An exception at any place inside puts the
        weights back; a signal must not raise one while entering or leaving (signals.py)."""
        own = [tensor.detach().clone() for tensor in self.live.values()]
        try:
            copy(self._means, self.live.values())
            yield
        finally:
            copy(own, self.live.values())

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint saves, by name."""
        return {saved_name(name): mean for name, mean in zip(self.live, self._means, strict=False)}

    def restore(self, folder: Path | None) -> bool:
        """Continue as of a checkpoint; None: as of the start of the run.

        Returns:
            False if the checkpoint has no average of all steps before it: it is older than the probe, from a run
            without one, or from after the stable phase.

        Raises:
            UserError: if its average does not fit the model.
        """
        self.clear()
        if folder is None:
            return True
        saved = checkpoint.read_state(folder)
        count = saved["progress"].get("probe")
        if type(count) is not int or count != saved["step"] // self.interval:
            return False
        means = [torch.zeros_like(tensor, device="cpu") for tensor in self.live.values()] if count else []
        checkpoint.load_tensors(folder, {saved_name(name): mean for name, mean in zip(self.live, means, strict=False)})
        self.count, self._means = count, means
        return True


def saved_name(name: str) -> str:
    return PROBE + name.removeprefix(MODEL)


@torch.no_grad()
def copy(sources: Any, targets: Any) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
