"""What is done to a model's units from outside so that a step needs less memory, or less time."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from isoflop.errors import UserError


def recompute(model: nn.Module, units: list[nn.Module]) -> None:
    """Let each unit keep its input alone in a training forward, and work out the rest again in the backward pass (Chen
    et al. 2016, 1604.06174). Loss and gradients keep their bits; a step takes one forward more, about a third.

    Dropout draws again what it drew. A forward without gradients is as it was.

    Raises:
        UserError: for a model that keeps running statistics of what passes through it: they would move twice a step.
    """
    if any(name.rpartition(".")[2] in ("mean", "var") for name, _ in model.named_buffers()):
        raise UserError(
            "runtime.recompute = true does not go with model.norm = batch, whose statistics would move twice a step; "
            "lower batch.micro_sequences to save memory"
        )
    for unit in units:
        unit.forward = remembering_inputs(unit.forward)


def remembering_inputs(forward: Any) -> Any:
    def again(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        return checkpoint(forward, *args, use_reentrant=False, **options)

    return again


def compile_units(units: list[nn.Module], fixed: bool = True) -> None:
    """Compile each unit's training forward by itself: units of one kind share what is compiled, so that a deep model
    takes no longer than a shallow one, and what stands between them stays as it is written.

    A forward without gradients stays as it was: when the model is measured or sampled from, nearly every call has
    another shape, and each would be compiled anew.

    Args:
        fixed: all training forwards have one shape, or a few; else kernels for any shape are made.
    """
    for unit in units:
        unit.forward = fast_with_gradients(unit.forward, False if fixed else None)


def fast_with_gradients(forward: Any, dynamic: bool | None) -> Any:
    fast = torch.compile(forward, dynamic=dynamic)

    def either(*args: Any, **options: Any) -> Any:
        return fast(*args, **options) if torch.is_grad_enabled() else forward(*args, **options)

    return either
