"""One optimiser step: forward, backward, clip, update."""

from collections.abc import Sequence

import torch

from isoflop.model.gpt import GPT
from isoflop.optim.build import clip_gradients, set_lr
from isoflop.runtime import Runtime
from isoflop.trainer.task import Task


def take_step(
    model: GPT,
    optimizers: Sequence[torch.optim.Optimizer],
    task: Task,
    batch: tuple[torch.Tensor, torch.Tensor],
    *,
    micro: int,
    runtime: Runtime,
    clip: float,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one step on `batch` (inputs_BT, targets_BT) at `scale` times the peak learning rates.

    The batch goes through the model `micro` sequences at a time; the gradients add up to the whole batch's mean.

    Returns:
        The mean of what is trained on, in nats per token, and the gradient's norm before clipping, both still on the
        device, so that reading them does not stall the next step.
    """
    inputs_BT, targets_BT = batch
    passes = inputs_BT.shape[0] // micro
    set_lr(optimizers, scale)
    total = torch.zeros((), device=runtime.device)
    for inputs, targets in zip(inputs_BT.split(micro), targets_BT.split(micro), strict=True):
        with runtime.autocast():
            loss = task.loss(model, inputs, targets)
        (loss / passes).backward()
        total += loss.detach() / passes
    norm = clip_gradients(model, clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total, norm
