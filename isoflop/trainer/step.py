"""One optimiser step: forward, backward, clip; then update, or leave it out."""

from collections.abc import Sequence

import torch
from torch import nn

from isoflop.model.build import Model
from isoflop.model.loss import IGNORED
from isoflop.optim.build import clip_gradients, set_lr
from isoflop.parallel.shard import Layout
from isoflop.runtime import Runtime
from isoflop.trainer.task import Task

FLAG = "found_inf"  # torch's name for it, which its fused AdamW reads


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
    """`find_gradients`, then `update`: a step that nobody looks at before it is taken."""
    loss, norm = find_gradients(model, task, batch, micro=micro, runtime=runtime, clip=clip, layout=layout)
    update(optimizers, scale)
    return loss, norm


def find_gradients(
    model: Model,
    task: Task,
    batch: Sequence[torch.Tensor],
    *,
    micro: int,
    runtime: Runtime,
    clip: float,
    layout: Layout | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave the clipped gradients of `batch`, what the task's loss takes with the targets last, in the parameters.

    The batch goes through the model `micro` sequences at a time, each pass weighted by its share of the targets, so
    that the gradients add up to the whole batch's mean. With several processes `batch` is this one's part, and its
    shares are of the targets of all.

    Args:
        layout: how the model lies over the processes; None: there is one.

    Returns:
        The mean of what is trained on, in nats per token, and the gradient's norm before clipping, both still on the
        device: reading them waits for it.
    """
    layout = layout or Layout(model, task.loss)
    counted = layout.sum((batch[-1] != IGNORED).sum())
    total = torch.zeros((), device=runtime.device)
    parts = list(zip(*(tensor.split(micro) for tensor in batch), strict=True))
    for number, part in enumerate(parts, 1):
        share = (part[-1] != IGNORED).sum() / counted
        with layout.last_pass(number == len(parts)):
            with runtime.autocast():
                loss = layout.loss(*part)
            (loss * share).backward()
        total += loss.detach() * share
    return layout.sum(total), clip_gradients(model, clip, layout.whole)


def update(optimizers: Sequence[torch.optim.Optimizer], scale: float, spoilt: torch.Tensor | None = None) -> None:
    """Take the step that the gradients say, at `scale` times the peak learning rates.

    Args:
        spoilt: 1 on the device where the step must be left out, else 0 (`spoilt_by`): weights, moments and step counts
            are then what they were. Only for optimisers that `heed` it.
    """
    set_lr(optimizers, scale)
    for optimizer in optimizers:
        setattr(optimizer, FLAG, spoilt)
        optimizer.step()
        setattr(optimizer, FLAG, None)
        optimizer.zero_grad(set_to_none=True)


def heed(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether all of them leave a step out that is `spoilt`: fused AdamW and our Muon do."""
    return all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in optimizers)


def spoilt_by(numbers: Sequence[torch.Tensor]) -> torch.Tensor:
    """1.0 if one of a step's numbers is not finite, else 0.0, on their device."""
    return (~torch.stack(list(numbers)).isfinite().all()).float()


class Statistics:
    """What a model's forward pass writes into it while training: the running statistics of batch norm. Kept before a
    step, so that one that is left out leaves no trace."""

    def __init__(self, model: Model) -> None:
        # by what they are: a divided model has other parameters while it is gathered, as after a measurement
        kept = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
        self.live = [tensor for tensor in kept.values() if not isinstance(tensor, nn.Parameter)]
        self.copies: list[torch.Tensor] = []

    def keep(self) -> None:
        self.copies = [tensor.clone() for tensor in self.live]

    def put_back(self) -> None:
        for tensor, copy in zip(self.live, self.copies, strict=True):
            tensor.copy_(copy)


def leave_out(optimizers: Sequence[torch.optim.Optimizer], statistics: Statistics) -> None:
    """Forget the gradients and what their forward pass wrote: weights, moments and step counts are untouched."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    statistics.put_back()
