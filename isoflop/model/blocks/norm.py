"""Normalisation: keep the size of activations in hand, position by position."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from isoflop.model.blocks.part import Part


class LayerNorm(Part):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, over the last dimension (Ba et al. 2016, 1607.06450)."""

    def __init__(self, *, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.layer_norm(x_BTD, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(Part):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang & Sennrich 2019, 1910.07467).

    Options: `gain=False` leaves the weight out.
    """

    def __init__(self, *, dim: int, eps: float = 1e-6, gain: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim)) if gain else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if x_BTD.device.type != "cpu":
            return F.rms_norm(x_BTD, (self.dim,), self.weight, self.eps)
        y_BTD = UnitRMS.apply(x_BTD, self.eps)
        return y_BTD if self.weight is None else y_BTD * self.weight.to(y_BTD.dtype)


class UnitRMS(torch.autograd.Function):
    """RMS norm without a gain for CPUs, where torch 2.13 has no fused kernel and its chain of small operations takes a
    tenth of a training step at width 128.

    With r = 1 / rms(x) and y = r x, the gradient is dx = r (dy - y mean(dy y)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        r = norm.square().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        y = x * r
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        y, r = ctx.saved_tensors
        return torch.addcmul(dy, y, (dy * y).mean(dim=-1, keepdim=True), value=-1).mul_(r), None


class NoNorm(Part):
    """y = x."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD
