"""What is done to a model's units from outside so that a step needs less memory, or less time.

A unit (model/blocks/part.py) lets its computation be wrapped: inside the module's own hooks, and with the names of its
tensors as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from isoflop.errors import UserError

Compute = Callable[..., Any]


class Unit(Protocol):
    """A part of a model that is computed as a whole."""

    def wrap(self, wrapper: Callable[[Compute], Compute]) -> None:
        """From now on compute by `wrapper(compute)`."""


def recompute(model: nn.Module, units: Sequence[Unit]) -> None:
    """Let each unit keep its input alone in a training forward, and compute the rest again in the backward pass (Chen
    et al. 2016, 1604.06174). Loss and gradients keep their bits; a step takes one forward more, about a third.

    Dropout draws again what it drew. A forward without gradients is as it was.

    Raises:
        UserError: for a model that keeps running statistics of what passes through it: they would move twice per step.
    """
    if any(getattr(module, "keeps_statistics", False) for module in model.modules()):
        raise UserError(
            "runtime.recompute = true does not go with model.norm = batch, whose statistics would move twice a step; "
            "lower batch.micro_sequences to save memory"
        )
    for unit in units:
        unit.wrap(remembering_inputs)


def remembering_inputs(compute: Compute) -> Compute:
    def again(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return compute(*inputs, **options)
        return checkpoint(compute, *inputs, use_reentrant=False, **options)

    return again


def compile_units(units: Sequence[Unit], fixed: bool = True) -> None:
    """Compile each unit's training forward by itself: units of one kind share what is compiled, so that a deep model
    takes no longer than a shallow one, and what stands between them stays as it is written.

    A forward without gradients stays as it was: when the model is measured or sampled from, nearly every call has
    another shape, and each would be compiled anew.

    Args:
        fixed: all training forwards have one shape, or a few; else kernels for any shape are made.
    """
    for unit in units:
        unit.wrap(lambda compute: fast_with_gradients(compute, False if fixed else None))


def fast_with_gradients(compute: Compute, dynamic: bool | None) -> Compute:
    fast = torch.compile(compute, dynamic=dynamic)

    def either(*inputs: Any, **options: Any) -> Any:
        return fast(*inputs, **options) if torch.is_grad_enabled() else compute(*inputs, **options)

    return either
