"""How branches join the residual stream. A wiring receives branches and never names them: attention and feed-forward
are two functions of (B, T, D) to it, applied in the order given. `start` is the position of the first of the T tokens,
or positions_BT of all, for a norm that has to know.

What a wiring assumes of the first weights of its branches it says in `branch_init`, by the roles of blocks/part.py.
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
        decoder_only: True where its constants are those of a decoder-only model, so that it does not go with pairs.
    """

    decoder_only: ClassVar[bool] = False

    def __init__(self, *, branches: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(branches))

    @staticmethod
    def branch_init(init: Init, layers: int) -> Init:
        """How the weights in the branches are filled, given how the model fills its weights."""
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

    The size of a branch's last product is lost in the norm after it, and a zero there would have an enormous gradient:
    it is filled like any other matrix.
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
    """f(norm(x)), branch after branch: no residual stream at all, the control that shows what one is good for.

    A branch's last product must not start at zero, or nothing would pass; it is filled like any other matrix.
    """

    @staticmethod
    def branch_init(init: Init, layers: int) -> Init:
        return residual_as_matrix(init)

    def forward(self, x_BTD: Tensor, *branches: Branch, start: Start = 0) -> Tensor:
        for norm, branch in zip(self.norms, branches, strict=True):
            x_BTD = branch(normalise(norm, x_BTD, start))
        return x_BTD


class ReZero(Wiring):
    """x + a f(x) with one learned a per branch, at first 0, and no norm in the blocks (Bachlechner et al. 2020,
    2003.04887, equations 1 and 8).

    As a is 0 already, a branch's last product is filled like any other matrix: from two zeros in a product neither
    would ever move.
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
    """norm(a x + f(x)) with a = (2 L)^(1/4), and first weights in the branches times b = (8 L)^(-1/4), L layers (Wang
    et al. 2022, 2203.00555, figure 2, decoder-only).

    b multiplies what the chosen init gives values, output and feed-forward; queries and keys are left, as in the paper.
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
    """a x + b x0 in front of a block, whatever its wiring: the residual stream and the embedding x0 that it began as,
    by two learned numbers, at first 1 and 0 (modded-nanogpt, record of 2024-11-06; nanochat's lambdas, which begin at
    1.15 to 1.05 and 0.2 to 0.05 over the depth)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.mix.zero_()
            self.mix[0] = 1.0

    def forward(self, x_BTD: Tensor, x0_BTD: Tensor) -> Tensor:
        a, b = self.mix.to(x_BTD.dtype).unbind()
        return a * x_BTD + b * x0_BTD


def residual_as_matrix(init: Init) -> Init:
    """The same, but for the products that end a branch, which it fills like those inside."""

    def fill(weight: Tensor, role: str) -> None:
        init(weight, "matrix" if role == "residual" else role)

    return fill


def scaled(init: Init, factor: float) -> Init:
    """The same, times `factor` for the products that make a branch large: not for those that are only compared."""

    def fill(weight: Tensor, role: str) -> None:
        init(weight, role)
        if role in ("matrix", "residual"):
            with torch.no_grad():
                weight.mul_(factor)

    return fill
