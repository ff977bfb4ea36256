"""Normalisation. All but batch norm treat each position separately."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.kernels import calls
from isoflop.model.blocks.part import Part, Start, entry, rows_at


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
        weight = self.weight.to(x_BTD.dtype)  # FSDP may have gathered it in bfloat16
        bias = self.bias.to(x_BTD.dtype) if self.bias is not None else None
        return F.layer_norm(x_BTD, weight.shape, weight, bias, self.eps)


class RMSNorm(Part):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang & Sennrich 2019, 1910.07467).

    Options: `gain=False` leaves the weight out.
    """

    kernels = False

    def __init__(self, *, dim: int, eps: float = 1e-6, gain: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim)) if gain else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def use_kernels(self) -> None:
        """Use the compiled kernels (isoflop/kernels) in training from now on, if there is no gain. The result then has
        the dtype of matrix products, to which it would be cast for its first product."""
        self.kernels = self.weight is None

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.kernels and torch.is_grad_enabled() and (dtype := calls.product_dtype(x_BTD)):
            return KernelRMS.apply(x_BTD.contiguous(), self.eps, dtype)
        if x_BTD.device.type != "cpu":
            return F.rms_norm(x_BTD, (self.dim,), self.weight, self.eps)
        y_BTD = UnitRMS.apply(x_BTD, self.eps)
        return y_BTD if self.weight is None else y_BTD * self.weight.to(y_BTD.dtype)


class UnitRMS(torch.autograd.Function):
    """RMS norm without a gain, for CPUs: torch 2.13 has no fused kernel there, and its chain of small operations takes
    a tenth of a training step at width 128.

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


class KernelRMS(torch.autograd.Function):
    """UnitRMS by the compiled kernels, with a result in `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        y, r = calls.norm(x, eps, dtype)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        y, r = ctx.saved_tensors
        return calls.norm_back(None, dy.contiguous(), y, r)[0], None, None


class BatchNorm(Part):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and variance of each feature over a batch (Ioffe &
    Szegedy 2015, 1502.03167, algorithms 1 and 2).

    Training uses the statistics of the current batch (of each pass, with gradient accumulation) and updates the running
    statistics with weight `momentum`, the variance unbiased. Evaluation always uses the running statistics. These are
    float32 buffers with any dtype of the matrix products, and part of every checkpoint.

    Options:
        over: "batch": separate statistics for each position, over the sequences, so that nothing is learned from later
            tokens; evaluation handles as many positions as training has seen, and decoding passes the position.
            "batch_time": over sequences and positions together, as is common for text (Shen et al. 2020, 2003.07845,
            section 3). A position's output then depends on later tokens during training, which is declared in
            `causal_in_training`.
        momentum: weight of the new statistics in the running ones.

    Raises:
        UserError: in training, if a pass has fewer than two values per feature.
    """

    ragged = True
    separate = False
    keeps_statistics = True
    mean: Tensor
    var: Tensor

    def __init__(
        self, *, dim: int, context: int, over: str = "batch", eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.positional = entry({"batch": True, "batch_time": False}, over, "over")
        if not 0.0 < momentum <= 1.0:
            raise UserError(f"momentum = {momentum:g} is not in (0, 1]")
        self.causal_in_training = self.positional
        self.eps, self.momentum = eps, momentum
        shape = (context, dim) if self.positional else (dim,)
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.register_buffer("mean", torch.empty(shape))
        self.register_buffer("var", torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.mean.zero_()
        self.var.fill_(1.0)

    def forward(self, x_BTD: Tensor, start: Start = 0) -> Tensor:
        T = x_BTD.shape[1]
        if self.positional and not isinstance(start, int):  # decoding, with the running statistics of each position
            mean_BTD, var_BTD = rows_at(self.mean, start, T), rows_at(self.var, start, T)
            return (x_BTD - mean_BTD) * (var_BTD + self.eps).rsqrt() * self.weight + self.bias

        if self.positional:  # T * D features of B values each
            x_NC, rows, repeats = x_BTD.flatten(1), slice(start, start + T), T
        else:
            x_NC, rows, repeats = x_BTD.flatten(0, 1), slice(None), 1
        if self.training and len(x_NC) < 2:
            raise UserError(
                "model.norm = batch has one value per feature in a pass, so no variance; "
                "raise batch.sequences or batch.micro_sequences"
            )

        y_NC = F.batch_norm(
            x_NC,
            self.mean[rows].view(-1),  # views, which training updates in place
            self.var[rows].view(-1),
            self.weight.repeat(repeats),
            self.bias.repeat(repeats),
            self.training,
            self.momentum,
            self.eps,
        )
        return y_NC.view(x_BTD.shape)


class NoNorm(Part):
    """y = x."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD


def normalise(norm: nn.Module | None, x_BTD: Tensor, start: Start) -> Tensor:
    """norm(x), with the position of the first token for norms that need it; x if there is no norm."""
    if norm is None:
        return x_BTD
    y_BTD: Tensor = norm(x_BTD, start) if getattr(norm, "positional", False) else norm(x_BTD)
    return y_BTD
