"""What a batch teaches: batch -> loss. The trainer knows tasks only by this."""

from typing import Protocol

import torch

from isoflop.model.gpt import GPT
from isoflop.model.loss import CrossEntropy


class Task(Protocol):
    """Turns one batch into a scalar."""

    def prepare(self, model: GPT) -> None:
        """Add to the model what only training needs. Once, before its optimisers are made."""
        ...

    def loss(self, model: GPT, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """What is trained on, mean over the tokens, in nats: a scalar with gradient."""
        ...


class CausalLM:
    """Next-token prediction (GPT-1, section 3.1): a loss of model/loss.py, by default cross-entropy, and the auxiliary
    losses of the model's parts."""

    def __init__(self, criterion: CrossEntropy | None = None) -> None:
        self.criterion = criterion or CrossEntropy()

    def prepare(self, model: GPT) -> None:
        self.criterion.prepare(model)

    def loss(self, model: GPT, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return self.criterion(model, inputs_BT, targets_BT) + model.auxiliary_loss()
