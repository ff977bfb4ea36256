"""Recomputation and compilation of a model's units, applied from outside: less memory or less time per step.

A unit (model/blocks/part.py) lets its computation be wrapped, inside the module's own hooks and without changing the
names of its tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from isoflop.errors import UserError

Compute = Callable[..., Any]


class Unit(Protocol):
    """A part of a model whose computation can be wrapped."""

    def wrap(self, wrapper: Callable[[Compute], Compute]) -> None:
        """Replace the computation by `wrapper(compute)`."""


def recompute(model: nn.Module, units: Sequence[Unit]) -> None:
    """Activation checkpointing: each unit keeps only its input in a training forward pass, and recomputes its
    activations in the backward pass (Chen et al. 2016, 1604.06174). Loss and gradients keep their bits; a step takes
    one more forward pass, about a third more time.

    Dropout draws the same numbers again. A forward pass without gradients is unchanged.

    Raises:
        UserError: for a model with running statistics, which would be updated twice per step.
    """
    if any(getattr(module, "keeps_statistics", False) for module in model.modules()):
        raise UserError(
            "runtime.recompute = true is not possible with model.norm = batch, whose statistics would be updated twice "
            "per step; lower batch.micro_sequences to save memory"
        )
    for unit in units:
        unit.wrap(checkpointed)


def checkpointed(compute: Compute) -> Compute:
    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return compute(*inputs, **options)
        return checkpoint(compute, *inputs, use_reentrant=False, **options)

    return run


def compile_units(units: Sequence[Unit], fixed: bool = True) -> None:
    """Compile each unit's training forward pass separately: units of one kind share the compiled code, so that a deep
    model compiles as fast as a shallow one. The code between the units is not compiled.

    A forward pass without gradients is not compiled: in evaluation and sampling nearly every call has another shape,
    and each would be compiled again.

    Args:
        fixed: all training forward passes have one shape, or a few; else the compiled kernels handle any shape.
    """
    for unit in units:
        unit.wrap(lambda compute: compiled_with_gradients(compute, False if fixed else None))


def compiled_with_gradients(compute: Compute, dynamic: bool | None) -> Compute:
    compiled = torch.compile(compute, dynamic=dynamic)

    def run(*inputs: Any, **options: Any) -> Any:
        return compiled(*inputs, **options) if torch.is_grad_enabled() else compute(*inputs, **options)

    return run
