"""The feed-forward branch: one network, applied to each position separately."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model.blocks.part import Init, Linear, Part, entry


class SquaredRelu(torch.autograd.Function):
    """max(x, 0)^2, with the gradient 2 max(x, 0) computed in one pass over memory instead of autograd's four: less than
    half the time on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = F.relu(x)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return torch.addcmul(grad.new_zeros(()), grad, r, value=2)


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer, 2109.08668)."""
    return SquaredRelu.apply(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by the tanh formula, as GPT-1 and GPT-2 compute it (Hendrycks & Gimpel 2016, 1606.08415)."""
    return F.gelu(x, approximate="tanh")


def identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu2": relu2,
    "silu": F.silu,
    "identity": identity,
}


class MLP(Part):
    """y = W_down f(W_up x). The entry "linear" is this with f(x) = x.

    Options: `activation` (relu, gelu, gelu_tanh, relu2, silu, identity); the hidden width is `ratio` * d_model, or
    `d_ff` if that is not 0; `bias` in both matrix products.
    """

    def __init__(
        self,
        *,
        d_model: int,
        dropout: float,
        init: Init,
        activation: str = "gelu",
        ratio: float = 4.0,
        d_ff: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        F_ = hidden_width(d_model, ratio, d_ff)
        self.activation = entry(ACTIVATIONS, activation, "activation")
        self.up = Linear(d_model, F_, bias=bias, init=init)
        self.down = Linear(F_, d_model, bias=bias, init=init, role="residual")
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.dropout(self.down(self.activation(self.up(x_BTD))))


class Gated(Part):
    """y = W_down (f(W_gate x) * W_up x) (Shazeer 2020, 2002.05202, equations 5 and 6). The entries "swiglu", "geglu",
    "reglu" and "bilinear" are this with f = silu, gelu, relu and the identity.

    Options: those of MLP. The hidden width is 8/3 d_model, with which three matrices have as many weights as the two of
    an MLP at ratio 4 (the paper's 2/3 rule), rounded up to a multiple of `multiple_of`; or `d_ff` if that is not 0.
    """

    def __init__(
        self,
        *,
        d_model: int,
        dropout: float,
        init: Init,
        activation: str = "silu",
        ratio: float = 8 / 3,
        multiple_of: int = 16,
        d_ff: int = 0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if multiple_of < 1:
            raise UserError(f"multiple_of = {multiple_of} is not positive")
        F_ = hidden_width(d_model, ratio, d_ff)
        if not d_ff:
            F_ = -(-F_ // multiple_of) * multiple_of
        self.activation = entry(ACTIVATIONS, activation, "activation")
        self.gate = Linear(d_model, F_, bias=bias, init=init)
        self.up = Linear(d_model, F_, bias=bias, init=init)
        self.down = Linear(F_, d_model, bias=bias, init=init, role="residual")
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.dropout(self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD)))


def hidden_width(d_model: int, ratio: float, d_ff: int) -> int:
    """`d_ff`, or ratio * d_model if that is 0.

    Raises:
        UserError: if it is not positive.
    """
    width = d_ff or round(ratio * d_model)
    if width < 1:
        raise UserError(
            f"{f'd_ff = {d_ff}' if d_ff else f'ratio = {ratio:g}'} gives a hidden width of {width}; make it positive"
        )
    return width
