"""How branches join the residual stream. A wiring receives branches and never names them: attention and feed-forward
are two functions of (B, T, D) to it, applied in the order given."""

from collections.abc import Callable

from torch import Tensor, nn

from isoflop.model.blocks.part import Part

Branch = Callable[[Tensor], Tensor]


class PreNorm(Part):
    """x + f(norm(x)), branch after branch: GPT-2 and most since (Xiong et al. 2020, 2002.04745)."""

    def __init__(self, *, branches: int, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(branches))

    def forward(self, x_BTD: Tensor, *branches: Branch) -> Tensor:
        for norm, branch in zip(self.norms, branches, strict=True):
            x_BTD = x_BTD + branch(norm(x_BTD))
        return x_BTD


class PostNorm(Part):
    """norm(x + f(x)), branch after branch: the first transformer (1706.03762) and GPT-1."""

    def __init__(self, *, branches: int, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(branches))

    def forward(self, x_BTD: Tensor, *branches: Branch) -> Tensor:
        for norm, branch in zip(self.norms, branches, strict=True):
            x_BTD = norm(x_BTD + branch(x_BTD))
        return x_BTD


class Parallel(Part):
    """x + f(norm(x)) + g(norm(x)), all branches from one norm: GPT-J and PaLM (2204.02311, section 2)."""

    def __init__(self, *, branches: int, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(min(branches, 1)))

    def forward(self, x_BTD: Tensor, *branches: Branch) -> Tensor:
        for norm in self.norms:
            h_BTD = norm(x_BTD)
            for branch in branches:
                x_BTD = x_BTD + branch(h_BTD)
        return x_BTD
