"""Changes of the residual stream outside the blocks: smear in front of the first block, backout behind the last one.

Letters: B batch, T positions, S positions in a cache, D d_model, C inputs of a gate.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.model.blocks.part import Cache, Init, Part, Start

GATE_INPUTS = 24  # features that smear's gate reads: nanochat's, at every width
LAYER = -1  # smear's number in a cache, next to those of the layers
SHARE = 0.2  # backout's first share: nanochat's


class Smear(Part):
    """Adds the embedding of the previous token, weighted by a gate:

        x_t <- x_t + a sigmoid(w x_t[:24]) x_(t-1)

    with learned a, 0 at the start, and w; the first token stays unchanged (modded-nanogpt and nanochat). A cache keeps
    the last embedding, like a key of an attention with a window of two.
    """

    ragged: ClassVar[bool] = True

    def __init__(self, *, d_model: int, init: Init) -> None:
        super().__init__()
        self.init, self.cache_width, self.window = init, d_model, 2
        self.share = nn.Parameter(torch.empty(1))
        self.gate = nn.Parameter(torch.empty(min(GATE_INPUTS, d_model)))  # a vector: no matrix for Muon
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.share)
        self.init(self.gate, "gate")

    def forward(
        self, x_BTD: Tensor, start: Start = 0, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Tensor:
        """`documents_BT`: the number of each token's document, whose first token stays unchanged, too."""
        gate_BT1 = F.linear(x_BTD[..., : len(self.gate)], self.gate.to(x_BTD.dtype).unsqueeze(0)).sigmoid()
        weight_BT1 = self.share.to(x_BTD.dtype) * gate_BT1.to(x_BTD.dtype)
        if documents_BT is not None:
            same_BT = F.pad(documents_BT[:, 1:] == documents_BT[:, :-1], (1, 0))
            weight_BT1 = weight_BT1 * same_BT.unsqueeze(-1)
        return torch.addcmul(x_BTD, weight_BT1, self.previous(x_BTD, start, cache))

    def previous(self, x_BTD: Tensor, start: Start, cache: Cache | None) -> Tensor:
        """x_BTD one position earlier: in front of the T positions the cached one, zero in front of a text."""
        held_BSD = x_BTD
        if cache is not None:
            x_B1TD = x_BTD.unsqueeze(1)
            held_B1SD, _ = cache.append(LAYER, x_B1TD, x_B1TD[..., :0], self.window)
            held_BSD = held_B1SD.squeeze(1)
        T, S = x_BTD.shape[1], held_BSD.shape[1]
        if S > T:
            earlier_BTD = held_BSD[:, S - T - 1 : S - 1]
        else:
            earlier_BTD = F.pad(held_BSD[:, :-1], (0, 0, 1, 0))
        if isinstance(start, int):
            return earlier_BTD
        return earlier_BTD * (start > 0).unsqueeze(-1)  # positions_BT: a row may begin behind padding

    def matmul_weights(self) -> int:
        return len(self.gate)


class Backout(Part):
    """Subtracts a learned share of the residual stream after half of the blocks: x <- x - b x_mid, b 0.2 at the start
    (modded-nanogpt and nanochat).

    x_mid is the output of block L // 2, counted from 1, of L blocks (of one block, its input). nanochat takes the block
    after it, of two the last one, where the norm behind cancels what is subtracted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.share, SHARE)

    def forward(self, x_BTD: Tensor, middle_BTD: Tensor) -> Tensor:
        return x_BTD - self.share.to(x_BTD.dtype) * middle_BTD
