"""Normalisation: keep the size of activations in hand, position by position."""

import torch
from torch import Tensor, nn
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
        return F.rms_norm(x_BTD, (self.dim,), self.weight, self.eps)


class NoNorm(Part):
    """y = x."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD
