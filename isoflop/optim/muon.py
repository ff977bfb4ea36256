"""Muon, with all matrices of one shape orthogonalised as one batch.

The update is that of `torch.optim.Muon` (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): the same
momentum, coefficients and scaling; a test compares it with torch's. Three things differ:

- Matrices of equal shape go through the Newton-Schulz iteration as one batch. A model has a few shapes and many layers,
  and a product of 128 x 128 matrices is too small to occupy a processor (4 layers of width 128 on two cores: 10.7 ms
  per step, torch 19.0 ms).
- A parameter may have more than two dimensions: it is a stack of matrices.
- If matrices are sharded over processes, `Matrices` gathers and scatters them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

# The quintic a x + b x^3 + c x^5 with the steepest slope at zero that still maps [0, 1] near 1 in five rounds: singular
# values end between about 0.7 and 1.2, which trains as well as exactly 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
EPSILON = 1e-7


class Matrices(Protocol):
    """Access to matrices that may be distributed over processes (parallel/matrices.py)."""

    def local(self, tensor: Tensor) -> Tensor:
        """This process's part of a parameter, gradient or buffer, sharing its memory."""

    def apply(self, function: Callable[[Tensor], Tensor], parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """Apply `function`, which maps a stack (n, ..., R, C) to one of the same shape, to the full tensors of `like`'s
        shape whose local parts are `parts`. Returns the local part of each result."""


class LocalMatrices:
    """Full matrices in a single process."""

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def apply(self, function: Callable[[Tensor], Tensor], parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        return list(function(torch.stack(list(parts))).unbind())


class Muon(torch.optim.Optimizer):
    """The step is the (semi-)orthogonal matrix nearest to the momentum.

    The step of an R x C matrix has singular values of about lr * sqrt(max(1, R / C)) (Jordan's scaling, torch's
    `adjust_lr_fn="original"`): the effect of a step on a layer's output then hardly depends on the width, so that one
    learning rate works for several widths. State is one `momentum_buffer` per parameter.

    Args:
        params: tensors (..., R, C), or groups of them.
        lr: learning rate.
        momentum: weight of the old momentum; Nesterov's form.
        weight_decay: decoupled, as in AdamW.
        dtype: of the iteration. bfloat16 is torch's choice, and about twice as fast on processors that support it; on
            others float32 is faster.
        matrices: how they are distributed over processes.

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
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
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

        weights = [self.matrices.local(parameter) for parameter in parameters]
        if self.found_inf is None:
            torch._foreach_mul_(weights, 1 - lr * weight_decay)
        else:
            torch._foreach_mul_(steps, 1 - self.found_inf)
            torch._foreach_mul_(weights, torch.where(discard, 1.0, 1 - lr * weight_decay))
        rows, columns = parameters[0].shape[-2:]
        torch._foreach_add_(weights, steps, alpha=-lr * math.sqrt(max(1.0, rows / columns)))

    def orthogonal(self, matrices: Tensor) -> Tensor:
        return orthogonalize(matrices, self.dtype).to(matrices.dtype)


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """U V^T of each matrix U S V^T, approximately: singular values end between about 0.7 and 1.2. Zero stays zero.

    Args:
        matrices: (..., R, C).
        dtype: of the products and the result.
    """
    rows, columns = matrices.shape[-2:]

    x = matrices.reshape(-1, rows, columns).to(dtype)
    tall = rows > columns
    if tall:  # the Gram matrix is then the smaller of the two
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)  # by Frobenius: singular values are at most 1

    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)

    if tall:
        x = x.mT
    return x.reshape(matrices.shape)
