"""One optimiser step: forward, backward, clip, update."""

from collections.abc import Sequence

import torch

from isoflop.model.build import Model
from isoflop.model.loss import IGNORED
from isoflop.optim.build import clip_gradients, set_lr
from isoflop.parallel.shard import Layout
from isoflop.runtime import Runtime
from isoflop.trainer.task import Task


def take_step(
    model: Model,
    optimizers: Sequence[torch.optim.Optimizer],
    task: Task,
    batch: Sequence[torch.Tensor],
    *,
    micro: int,
    runtime: Runtime,
    clip: float,
    scale: float,
    layout: Layout | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one step on `batch`, what the task's loss takes with the targets last, at `scale` times the peak learning
    rates.

    The batch goes through the model `micro` sequences at a time, each pass weighted by its share of the targets, so
    that the gradients add up to the whole batch's mean. With several processes `batch` is this one's part, and its
    shares are of the targets of all.

    Args:
        layout: how the model lies over the processes; None: there is one.

    Returns:
        The mean of what is trained on, in nats per token, and the gradient's norm before clipping, both still on the
        device, so that reading them does not stall the next step.
    """
    layout = layout or Layout(model, task.loss)
    counted = layout.sum((batch[-1] != IGNORED).sum())
    set_lr(optimizers, scale)
    total = torch.zeros((), device=runtime.device)
    parts = list(zip(*(tensor.split(micro) for tensor in batch), strict=True))
    for number, part in enumerate(parts, 1):
        share = (part[-1] != IGNORED).sum() / counted
        with layout.last_pass(number == len(parts)):
            with runtime.autocast():
                loss = layout.loss(*part)
            (loss * share).backward()
        total += loss.detach() * share
    total = layout.sum(total)
    norm = clip_gradients(model, clip, layout.whole)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total, norm
