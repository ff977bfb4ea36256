"""What a batch teaches: batch -> loss. The trainer knows tasks only by this."""

from typing import Protocol

import torch

from isoflop.model.gpt import GPT
from isoflop.model.loss import cross_entropy


class Task(Protocol):
    """Turns one batch into a scalar."""

    def loss(self, model: GPT, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Mean loss in nats per token, a scalar with gradient."""
        ...


class CausalLM:
    """Next-token prediction: cross-entropy of each token given those before it (GPT-1, section 3.1)."""

    def loss(self, model: GPT, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model.hidden(inputs_BT), model.head_weight, targets_BT)
