"""The running average of a model's weights, by a rule of optim/average.py.

    step ─> the weights enter the average every few steps ─> evaluations and samples use it in their place
                                                          └> a checkpoint has both; its readers use the average

Training itself never uses it: a run has the same losses with and without.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from isoflop import checkpoint
from isoflop.model.mtp import TRAINING_ONLY
from isoflop.optim.config import AverageConfig
from isoflop.parallel.state import AVERAGE, MODEL, model_tensors


class WeightAverage:
    """The average of a run.

    Attributes:
        points: how many times weights have entered it; 0: there is no average now.
        means: the average by name in the model; heads that only training uses have none.
    """

    def __init__(self, config: AverageConfig) -> None:
        self.rule, self.every = config.entry, config.every
        self.points = 0
        self.means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, u: float, last: bool) -> None:
        """Let the weights after `step` steps enter the average, if it is their turn.

        Args:
            u: progress after the step.
            last: whether it was the run's last step, which is always a point.
        """
        if not self.rule.on:
            return
        weight = self.rule.weight(self.points, u, self.every)
        if weight is None:
            self.clear()
            return
        if not last and step % self.every:
            return

        weights = averaged_weights(model)
        if not self.points:
            self.means = {name: tensor.detach().clone() for name, tensor in weights.items()}
        else:
            torch._foreach_lerp_(list(self.means.values()), [weights[name].detach() for name in self.means], weight)
        self.points += 1

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model has the average as its weights; afterwards it has its own again, bit for bit.
        Without an average nothing changes."""
        self.exchange(model)
        try:
            yield
        finally:
            self.exchange(model)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Exchange the values of the weights and of the average, one tensor after another to save memory."""
        weights = averaged_weights(model) if self.points else {}
        for name, mean in self.means.items():
            kept = weights[name].detach().clone()
            weights[name].copy_(mean)
            mean.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores next to the weights."""
        return {f"{AVERAGE}{name}": mean for name, mean in self.means.items()}

    def restore(self, model: nn.Module, last: Path | None, points: int) -> None:
        """Continue with the average of a checkpoint with this many points; without one, from the start.

        Raises:
            UserError: naming the first tensor that is missing or differs.
        """
        self.clear()
        if last is None or not points or not self.rule.on:
            return
        means = {name: tensor.detach().clone() for name, tensor in averaged_weights(model).items()}
        checkpoint.load_tensors(last, {f"{AVERAGE}{name}": mean for name, mean in means.items()})
        self.points, self.means = points, means

    def clear(self) -> None:
        self.points, self.means = 0, {}


def averaged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are averaged, by name in the model; a tied one once. Running statistics are not."""
    named = {name.removeprefix(MODEL): tensor for name, tensor in model_tensors(model).items()}
    return {
        name: tensor
        for name, tensor in named.items()
        if isinstance(tensor, nn.Parameter) and not name.startswith(TRAINING_ONLY)
    }
