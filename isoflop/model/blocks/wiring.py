"""Connects the branches of a block to the residual stream.

A wiring applies its branches in the given order and does not know which is attention and which is feed-forward: each is
a function of (B, T, D). `start` is the position of the first of the T tokens, or positions_BT of all, for norms that
need it. `branch_init` is the initialisation of the branches' weights, by the roles of blocks/part.py.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from isoflop.model.blocks.norm import normalise
from isoflop.model.blocks.part import Init, Part, Start

Branch = Callable[[Tensor], Tensor]
MakeNorm = Callable[[], nn.Module]


class Wiring(Part):
    """The base: one norm per branch.

    Attributes:
        decoder_only: True if its constants are those of a decoder-only model, so that an encoder-decoder refuses it.
    """

    decoder_only: ClassVar[bool] = False

    def __init__(self, *, branches: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(branches))

    @staticmethod
    def branch_init(init: Init, layers: int) -> Init:
        """The initialisation of the branches' weights, given that of the model."""
        return init


class PreNorm(Wiring):
    """x + f(norm(x)), branch after branch: GPT-2 and most since (Xiong et al. 2020, 2002.04745)."""

    def forward(self, x_BTD: Tensor, *branches: Branch, start: Start = 0) -> Tensor:
        for norm, branch in zip(self.norms, branches, strict=True):
            x_BTD = x_BTD + branch(normalise(norm, x_BTD, start))
        return x_BTD


class PostNorm(Wiring):
    """norm(x + f(x)), branch after branch: the first transformer (1706.03762) and GPT-1."""

    def forward(self, x_BTD: Tensor, *branches: Branch, start: Start = 0) -> Tensor:
        for norm, branch in zip(self.norms, branches, strict=True):
            x_BTD = normalise(norm, x_BTD + branch(x_BTD), start)
        return x_BTD


class Sandwich(Wiring):
    """x + norm(f(norm(x))), branch after branch, two norms each (CogView, Ding et al. 2021, 2105.13290, section 2.4;
    Gemma 2).

    The norm after a branch removes the scale of its last product, and a product of zeros would get an enormous
    gradient: it is initialised like any other matrix.
    """

    def __init__(self, *, branches: int, norm: MakeNorm) -> None:
        super().__init__(branches=branches, norm=norm)
        self.norms_after = nn.ModuleList(norm() for _ in range(branches))

    @staticmethod
    def branch_init(init: Init, layers: int) -> Init:
        return residual_as_matrix(init)

    def forward(self, x_BTD: Tensor, *branches: Branch, start: Start = 0) -> Tensor:
        for before, branch, after in zip(self.norms, branches, self.norms_after, strict=True):
            x_BTD = x_BTD + normalise(after, branch(normalise(before, x_BTD, start)), start)
        return x_BTD


class Parallel(Wiring):
    """x + f(norm(x)) + g(norm(x)), all branches from one norm: GPT-J and PaLM (2204.02311, section 2)."""

    def __init__(self, *, branches: int, norm: MakeNorm) -> None:
        super().__init__(branches=min(branches, 1), norm=norm)

    def forward(self, x_BTD: Tensor, *branches: Branch, start: Start = 0) -> Tensor:
        for norm in self.norms:
            h_BTD = normalise(norm, x_BTD, start)
            for branch in branches:
                x_BTD = x_BTD + branch(h_BTD)
        return x_BTD


class NoResidual(Wiring):
    """f(norm(x)), branch after branch: no residual connections, as a control.

    A branch's last product must not start at zero, or the output would be zero; it is initialised like any other
    matrix.
    """

    @staticmethod
    def branch_init(init: Init, layers: int) -> Init:
        return residual_as_matrix(init)

    def forward(self, x_BTD: Tensor, *branches: Branch, start: Start = 0) -> Tensor:
        for norm, branch in zip(self.norms, branches, strict=True):
            x_BTD = branch(normalise(norm, x_BTD, start))
        return x_BTD


class ReZero(Wiring):
    """x + a f(x) with one learned a per branch that starts at 0, and no norm in the blocks (Bachlechner et al. 2020,
    2003.04887, equations 1 and 8).

    Since a is 0, a branch's last product is initialised like any other matrix: if both factors were zero, neither would
    get a gradient.
    """

    def __init__(self, *, branches: int) -> None:
        super().__init__(branches=0, norm=nn.Identity)
        self.scale = nn.Parameter(torch.empty(branches))
        self.reset_parameters()

    @staticmethod
    def branch_init(init: Init, layers: int) -> Init:
        return residual_as_matrix(init)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.scale)

    def forward(self, x_BTD: Tensor, *branches: Branch, start: Start = 0) -> Tensor:
        for scale, branch in zip(self.scale, branches, strict=True):
            h_BTD = branch(x_BTD)
            x_BTD = x_BTD + scale.to(h_BTD.dtype) * h_BTD
        return x_BTD


class DeepNorm(Wiring):
    """norm(a x + f(x)) with a = (2 L)^(1/4), and initial weights in the branches times b = (8 L)^(-1/4), L layers (Wang
    et al. 2022, 2203.00555, figure 2, decoder-only).

    b multiplies the initial weights of values, output and feed-forward, not those of queries and keys, as in the paper.
    """

    decoder_only = True

    def __init__(self, *, branches: int, norm: MakeNorm, layers: int) -> None:
        super().__init__(branches=branches, norm=norm)
        self.alpha = (2 * layers) ** 0.25

    @staticmethod
    def branch_init(init: Init, layers: int) -> Init:
        return scaled(init, (8 * layers) ** -0.25)

    def forward(self, x_BTD: Tensor, *branches: Branch, start: Start = 0) -> Tensor:
        for norm, branch in zip(self.norms, branches, strict=True):
            x_BTD = normalise(norm, torch.add(branch(x_BTD), x_BTD, alpha=self.alpha), start)
        return x_BTD


class Shortcut(Part):
    """a x + b x0 in front of a block of any wiring: the residual stream x and the embedding x0, mixed by two learned
    scalars (modded-nanogpt, record of 2024-11-06; nanochat's lambdas, which start at 1.15 to 1.05 and 0.2 to 0.05 over
    the depth).

    Args:
        residual, embedding: a and b at the start; 1 and 0 change nothing.
    """

    def __init__(self, *, residual: float = 1.0, embedding: float = 0.0) -> None:
        super().__init__()
        self.start = (residual, embedding)
        self.mix = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.mix[0], self.mix[1] = self.start

    def forward(self, x_BTD: Tensor, x0_BTD: Tensor) -> Tensor:
        a, b = self.mix.to(x_BTD.dtype).unbind()
        return a * x_BTD + b * x0_BTD


def residual_as_matrix(init: Init) -> Init:
    """`init`, except that the last product of a branch is initialised like those inside it."""

    def fill(weight: Tensor, role: str) -> None:
        init(weight, "matrix" if role == "residual" else role)

    return fill


def scaled(init: Init, factor: float) -> Init:
    """`init`, multiplied by `factor` for the matrix products of a branch, except those of role "score"."""

    def fill(weight: Tensor, role: str) -> None:
        init(weight, role)
        if role in ("matrix", "residual"):
            with torch.no_grad():
                weight.mul_(factor)

    return fill
