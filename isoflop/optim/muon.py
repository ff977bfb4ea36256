"""Muon, with all matrices of one shape orthogonalised as one batch.

By default the update is that of `torch.optim.Muon` (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/):
the same momentum, coefficients and scaling; a test compares it with torch's. Three things differ:

- Matrices of equal shape go through the Newton-Schulz iteration as one batch. A model has a few shapes and many layers,
  and a product of 128 x 128 matrices is too small to occupy a processor (4 layers of width 128 on two cores: 10.7 ms
  per step, torch 19.0 ms).
- A parameter may have more than two dimensions: it is a stack of matrices.
- If matrices are sharded over processes, `Matrices` gathers and scatters them.

Two additions are off by default: a second moment per neuron (NorMuon) and cautious weight decay.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from isoflop.optim.orthogonal import QUINTIC, Iteration, orthogonalize

LEAST = 1e-10  # least mean square of a row by which it is divided

Neurons = Literal["none", "rows", "longer"]


class Matrices(Protocol):
    """Access to matrices that may be distributed over processes (parallel/matrices.py)."""

    def local(self, tensor: Tensor) -> Tensor:
        """This process's part of a parameter, gradient or buffer, sharing its memory."""

    def apply(self, function: Callable[[Tensor], Tensor], parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """Apply `function`, which maps a stack (n, ..., R, C) to one of the same shape, to the full tensors of `like`'s
        shape whose local parts are `parts`. Returns the local part of each result."""

    def total(self, sums: Tensor, like: Tensor) -> Tensor:
        """Sums over the whole matrices of tensors of `like`'s shape, given the sums over this process's part of each
        matrix."""


class LocalMatrices:
    """Full matrices in a single process."""

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def apply(self, function: Callable[[Tensor], Tensor], parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        return list(function(torch.stack(list(parts))).unbind())

    def total(self, sums: Tensor, like: Tensor) -> Tensor:
        return sums


class Muon(torch.optim.Optimizer):
    """The step is the (semi-)orthogonal matrix nearest to the momentum.

    The step of an R x C matrix has singular values of about lr * sqrt(max(1, R / C)) (Jordan's scaling, torch's
    `adjust_lr_fn="original"`): the effect of a step on a layer's output then hardly depends on the width, so that one
    learning rate works for several widths. State is one `momentum_buffer` per parameter, and with `neurons` a
    `second_moment`.

    Args:
        params: tensors (..., R, C), or groups of them.
        lr: learning rate.
        momentum: weight of the old momentum; Nesterov's form.
        weight_decay: decoupled, as in AdamW.
        dtype: of the iteration. bfloat16 is torch's choice, and about twice as fast on processors that support it; on
            others float32 is faster.
        matrices: how they are distributed over processes.
        iteration, rounds: of the orthogonalisation.
        neurons: which lines of the orthogonal matrix are divided by the root of their running mean square (`even`):
            none; rows, one per output (Li et al. 2025, NorMuon, 2510.05491); or longer, rows of a tall matrix and
            columns of a wide one, whose rows have equal norms already (modded-nanogpt, nanochat).
        neuron_beta: decay rate of that mean square.
        cautious: weights decay only where the step moves them towards zero or does not move them (Chen et al. 2025,
            2510.12402).

    Attributes:
        found_inf: as in torch's fused AdamW: if not None, a tensor on the device: 1.0 discards the next step, which
            then changes nothing, 0.0 takes it. The host need not know which.
    """

    _step_supports_amp_scaling = True  # how torch marks optimisers that support found_inf
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
        matrices: Matrices | None = None,
        iteration: Iteration = QUINTIC,
        rounds: int = 5,
        neurons: Neurons = "none",
        neuron_beta: float = 0.95,
        cautious: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype, self.iteration, self.rounds = dtype, iteration, rounds
        self.neurons, self.neuron_beta, self.cautious = neurons, neuron_beta, cautious
        self.matrices: Matrices = matrices or LocalMatrices()
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(f"Muon trains matrices, not a tensor of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            by_shape: dict[tuple[Any, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
            for parameters in by_shape.values():
                self.update(parameters, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def update(self, parameters: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        """One step of parameters that share shape, dtype and device."""
        gradients: list[Tensor] = []
        buffers: list[Tensor] = []
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(self.matrices.local(self.state[parameter]["momentum_buffer"]))
            assert parameter.grad is not None
            gradients.append(self.matrices.local(parameter.grad))

        # If the step is discarded, each gradient is replaced by its buffer: the interpolation then leaves the buffer
        # unchanged, and everything computed from it is finite.
        if self.found_inf is not None:
            discard = self.found_inf.bool()
            gradients = [torch.where(discard, b, g) for b, g in zip(buffers, gradients, strict=True)]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, buffers, momentum)
        steps = self.matrices.apply(self.orthogonal, nesterov, parameters[0])
        if self.neurons != "none":
            steps = self.even(steps, parameters)

        weights = [self.matrices.local(parameter) for parameter in parameters]
        if self.cautious:
            self.decay_cautiously(weights, steps, lr * weight_decay)
        elif self.found_inf is None:
            torch._foreach_mul_(weights, 1 - lr * weight_decay)
        else:
            torch._foreach_mul_(weights, torch.where(discard, 1.0, 1 - lr * weight_decay))
        if self.found_inf is not None:
            torch._foreach_mul_(steps, 1 - self.found_inf)
        rows, columns = parameters[0].shape[-2:]
        torch._foreach_add_(weights, steps, alpha=-lr * math.sqrt(max(1.0, rows / columns)))

    def orthogonal(self, matrices: Tensor) -> Tensor:
        return orthogonalize(matrices, self.dtype, self.iteration, self.rounds).to(matrices.dtype)

    def even(self, steps: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """Divide each line of the steps by the root of its running mean square, so that neurons whose steps were small
        move as far as the others; each matrix keeps its Frobenius norm. The lines are rows, or columns of a wide matrix
        (see `neurons`)."""
        like = parameters[0]
        rows, columns = like.shape[-2:]
        by_columns = self.neurons == "longer" and columns > rows

        # the mean square of each line, over all of it
        step_NRC = torch.stack(steps)
        squares = step_NRC.square().sum(-2 if by_columns else -1, keepdim=True)
        if by_columns:
            squares = self.matrices.total(squares, like)
        means = squares / (rows if by_columns else columns)

        # its running mean, which a discarded step does not change
        moments = [self.second_moment(parameter, by_columns) for parameter in parameters]
        before = torch.stack(moments)
        running = torch.lerp(before, means, 1 - self.neuron_beta)
        if self.found_inf is not None:
            running = torch.where(self.found_inf.bool(), before, running)
        torch._foreach_copy_(moments, list(running.unbind()))

        scale = running.clamp(min=LEAST).rsqrt()
        norms = [(lines * squares).sum((-2, -1), keepdim=True) for lines in (torch.ones_like(scale), scale.square())]
        if not by_columns:
            norms = [self.matrices.total(norm, like) for norm in norms]
        kept = (norms[0] / norms[1].clamp(min=torch.finfo(scale.dtype).tiny)).sqrt()
        return list((step_NRC * (scale * kept)).unbind())

    def second_moment(self, parameter: Tensor, by_columns: bool) -> Tensor:
        """This process's part of the running mean squares of a parameter: (..., R, 1) or (..., 1, C). Those of columns
        are held by all processes if rows are divided among them."""
        state = self.state[parameter]
        if "second_moment" not in state:
            if by_columns and parameter.ndim == 2:
                shape = (1, parameter.shape[-1])
                state["second_moment"] = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
            else:
                lines = parameter.detach()[..., :1, :] if by_columns else parameter.detach()[..., :1]
                state["second_moment"] = torch.zeros_like(lines)
        return self.matrices.local(state["second_moment"])

    def decay_cautiously(self, weights: list[Tensor], steps: list[Tensor], rate: float) -> None:
        """Subtract `rate` times each weight whose sign is not opposite to that of its step, which is subtracted."""
        decays = torch._foreach_mul(weights, steps)
        torch._foreach_sign_(decays)  # 1 or 0: with the step; -1: against it
        torch._foreach_add_(decays, 1.0)
        torch._foreach_clamp_max_(decays, 1.0)
        torch._foreach_mul_(decays, weights)
        if self.found_inf is None:
            torch._foreach_mul_(decays, rate)
        else:
            torch._foreach_mul_(decays, torch.where(self.found_inf.bool(), 0.0, rate))
        torch._foreach_sub_(weights, decays)
