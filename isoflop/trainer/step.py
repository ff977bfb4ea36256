"""One optimiser step: forward and backward passes, clipping (optim/build.py), then the update, or none."""

import contextlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.profiler import record_function

from isoflop.model.build import Model
from isoflop.model.cross_entropy import IGNORED
from isoflop.optim.build import clip_gradients, set_lr
from isoflop.parallel.shard import Layout
from isoflop.runtime import Runtime
from isoflop.trainer.config import GuardConfig
from isoflop.trainer.task import Task

FOUND_INF = "found_inf"  # the attribute that torch's fused AdamW reads
STEP_SPAN = "training step"  # the name of a step of the loop in a profiler's trace


def step_span() -> contextlib.AbstractContextManager[object]:
    """Marks a step of the loop in the trace of a running profiler; does nothing without one."""
    return record_function(STEP_SPAN) if torch.autograd._profiler_enabled() else contextlib.nullcontext()


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
    """A full step without the guard's check of loss and gradient norm: `forward_backward`, `clip_gradients`, `update`.

    For measurements: the training loop calls the three itself, and checks between them.

    Returns:
        The loss in nats per token and the gradient's norm before clipping, both still on the device.
    """
    layout = layout or Layout(model, task.loss)
    loss = forward_backward(model, task, batch, micro=micro, runtime=runtime, layout=layout)
    norm = clip_gradients(model, clip, layout.global_norm)
    update(optimizers, scale)
    return loss, norm


def forward_backward(
    model: Model,
    task: Task,
    batch: Sequence[torch.Tensor],
    *,
    micro: int,
    runtime: Runtime,
    layout: Layout | None = None,
) -> torch.Tensor:
    """Compute the gradients of `batch` and leave them in the parameters, not clipped.

    Gradient accumulation: the batch is processed `micro` sequences at a time, each pass weighted by its share of the
    targets, so that the gradients sum to that of the batch's mean loss. With several processes `batch` is this
    process's part, and the shares are of the targets of all processes.

    Args:
        batch: the inputs of the task's loss, the targets last.
        layout: how the model is distributed over processes; None: one process.

    Returns:
        The mean training loss in nats per token, over all processes, still on the device: reading it waits for the
        device.
    """
    layout = layout or Layout(model, task.loss)
    targets = layout.sum((batch[-1] != IGNORED).sum())
    total = torch.zeros((), device=runtime.device)
    passes = list(zip(*(tensor.split(micro) for tensor in batch), strict=True))

    for number, micro_batch in enumerate(passes, 1):
        weight = (micro_batch[-1] != IGNORED).sum() / targets
        with layout.last_pass(number == len(passes)):
            with runtime.autocast():
                loss = layout.loss(*micro_batch)
            (loss * weight).backward()
        total += loss.detach() * weight

    return layout.sum(total)


def update(
    optimizers: Sequence[torch.optim.Optimizer],
    scale: float,
    found_inf: torch.Tensor | None = None,
    *,
    step: int = 0,
    progress: float = 0.0,
) -> None:
    """Take the optimiser step at `scale` times the peak learning rates, and free the gradients.

    Args:
        step, progress: the step's number from 0 and its u, for other settings that change during a run (`set_lr`).
        found_inf: a flag on the device (`find_inf`): 1 discards the update, so that weights, moments and step counts
            are unchanged. Only for optimisers that `support_found_inf`.
    """
    set_lr(optimizers, scale, step, progress)
    for optimizer in optimizers:
        setattr(optimizer, FOUND_INF, found_inf)
        optimizer.step()
        setattr(optimizer, FOUND_INF, None)
        optimizer.zero_grad(set_to_none=True)


def support_found_inf(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether all optimisers can discard an update by a flag on the device: fused AdamW and our Muon do."""
    return all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in optimizers)


def updates_ahead(
    runtime: Runtime, guard: GuardConfig, layout: Layout, optimizers: Sequence[torch.optim.Optimizer]
) -> bool:
    """Whether to launch the update before the host has read loss and norm, so that a GPU never waits for the host: the
    device itself discards a non-finite step. Not with rules for loss spikes, which only the host can judge, nor with
    sharded weights (FSDP), whose optimisers get no flag."""
    on_gpu = runtime.device.type == "cuda"
    host_is_needed = guard.spike != "keep" or layout.forward_is_collective
    return on_gpu and not host_is_needed and support_found_inf(optimizers)


def find_inf(numbers: Sequence[torch.Tensor]) -> torch.Tensor:
    """1.0 if loss or norm is not finite, else 0.0, on their device."""
    return (~torch.stack(list(numbers)).isfinite().all()).float()


class Statistics:
    """The buffers that a training forward pass updates: the running statistics of batch norm. Copied before each step,
    so that a discarded step leaves no trace."""

    def __init__(self, model: Model) -> None:
        # by identity: a sharded model has other parameters while it is gathered, as after an evaluation
        by_id = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
        self.live = [tensor for tensor in by_id.values() if not isinstance(tensor, nn.Parameter)]
        self.copies: list[torch.Tensor] = []

    def save(self) -> None:
        self.copies = [tensor.clone() for tensor in self.live]

    def restore(self) -> None:
        for tensor, copy in zip(self.live, self.copies, strict=True):
            tensor.copy_(copy)


def discard_step(optimizers: Sequence[torch.optim.Optimizer], statistics: Statistics) -> None:
    """Free the gradients and restore the statistics; weights, moments and step counts were not changed."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    statistics.restore()
