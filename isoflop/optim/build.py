"""Builds the optimisers of a model from its OptimConfig; sets what changes by step, and clips gradients."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from isoflop.optim.config import OptimConfig
from isoflop.optim.groups import split
from isoflop.optim.muon import Matrices
from isoflop.optim.table import WEIGHT_DECAYS, Course


def build(
    model: nn.Module,
    config: OptimConfig,
    dtype: torch.dtype = torch.bfloat16,
    matrices: Matrices | None = None,
) -> list[torch.optim.Optimizer]:
    """The optimisers of a model, in the order of the table's entry.

    Every parameter group has a `name` (see groups.py), and keeps its peak learning rate as `base_lr` and the courses of
    its other settings that change during the run as `courses` (see `set_lr`).

    Args:
        model: has `units()`, the list of its blocks; already on its device.
        config: the optimiser and its settings.
        dtype: of Muon's orthogonalisation; pass the fastest dtype measured for the forward pass.
        matrices: how Muon gets full matrices if they are sharded or shared by processes; None: they are local.
    """
    groups = [
        {
            "params": list(group.parameters.values()),
            "name": group.name,
            "lr": config.entry.rate(group.name),
            "base_lr": config.entry.rate(group.name),
            "weight_decay": config.weight_decay * config.weight_decay_factor if group.decay else 0.0,
            "courses": config.entry.courses(group.name) | weight_decay_course(config, group.decay),
        }
        for group in split(model)
    ]
    return config.entry.make(groups, dtype, matrices)


def weight_decay_course(config: OptimConfig, decays: bool) -> dict[str, Course]:
    """The weight decay of a group as a course, if it changes during the run."""
    factor, peak = WEIGHT_DECAYS[config.weight_decay_course].factor, config.weight_decay * config.weight_decay_factor
    if factor is None or not decays:
        return {}
    return {"weight_decay": lambda scale, step, u: peak * factor(scale, step, u)}


def set_lr(optimizers: Iterable[torch.optim.Optimizer], scale: float, step: int = 0, progress: float = 0.0) -> None:
    """Set the learning rate of every group to `scale` times its peak, and its other settings that change by step.

    Args:
        step: from 0.
        progress: u, the share of the run before this step.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
            for name, course in group.get("courses", {}).items():
                group[name] = course(scale, step, progress)


def clip_gradients(
    model: nn.Module, max_norm: float, global_norm: Callable[[Tensor], Tensor] = lambda norm: norm
) -> Tensor:
    """Scale all gradients by one factor so that their global L2 norm is at most `max_norm`; 0 disables clipping.

    Args:
        global_norm: makes the norm over all processes from the norm of this process's shards (Layout.global_norm).

    Returns:
        The norm before clipping, 0-dimensional, on the gradients' device; non-finite if a gradient is.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = global_norm(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if max_norm > 0 and not needs_no_clipping(norm, max_norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def needs_no_clipping(norm: Tensor, max_norm: float) -> bool:
    """Whether clipping would multiply all gradients by 1. Checked on a CPU only: elsewhere the check would synchronise
    with the device."""
    return norm.device.type == "cpu" and bool(norm + 1e-6 <= max_norm)  # as in clip_grads_with_norm_; False for NaN
