"""From a model and its OptimConfig to the optimisers, and the two things that a step does to them from outside."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from isoflop.optim.config import OptimConfig
from isoflop.optim.groups import split
from isoflop.optim.muon import Matrices


def build(
    model: nn.Module,
    config: OptimConfig,
    dtype: torch.dtype = torch.bfloat16,
    matrices: Matrices | None = None,
) -> list[torch.optim.Optimizer]:
    """The optimisers of a model, in the order in which the table's entry makes them.

    Every parameter group has a `name` (see groups.py) and keeps its peak learning rate as `base_lr`.

    Args:
        model: has `units()`, the list of its blocks; already on its device.
        config: what to build.
        dtype: what Muon's orthogonalisation computes in; pass the dtype that the forward pass was found fastest in.
        matrices: how Muon gets at whole matrices where they lie over several processes; None: they lie here.
    """
    groups = [
        {
            "params": list(group.parameters.values()),
            "name": group.name,
            "lr": config.entry.rate(group.name),
            "base_lr": config.entry.rate(group.name),
            "weight_decay": config.weight_decay if group.decay else 0.0,
        }
        for group in split(model)
    ]
    return config.entry.make(groups, dtype, matrices)


def set_lr(optimizers: Iterable[torch.optim.Optimizer], scale: float) -> None:
    """Give every group `scale` times its peak learning rate. What was set before does not matter."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale


def clip_gradients(model: nn.Module, max_norm: float, whole: Callable[[Tensor], Tensor] = lambda norm: norm) -> Tensor:
    """Scale all gradients down together so that their global L2 norm is at most `max_norm`; 0 leaves them.

    Args:
        whole: puts a norm together of which each process has a part.

    Returns:
        The norm before, 0-dimensional, on the gradients' device. A NaN or infinite gradient shows in it.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if max_norm > 0 and not small_already(norm, max_norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def small_already(norm: Tensor, max_norm: float) -> bool:
    """Whether clipping would multiply all gradients by 1. Looked at on a CPU alone: elsewhere that waits for the
    device."""
    return norm.device.type == "cpu" and bool(norm + 1e-6 <= max_norm)  # as clip_grads_with_norm_ has it; NaN is not
