"""Multi-token prediction: heads for later tokens than the next (Gloeckle et al. 2024, 2404.19737, figure 1).

    tokens_BT -> embedding -> all blocks but the last = trunk -> last block       -> norm    -> h_BTD of the next token
                                                              -> head's own block -> its norm -> h_BTD of the second ...

All of them share the output matrix. The heads exist in training only: a GPT builds them when the loss needs them
(GPT.add_mtp_heads); evaluation, sampling and readers of a checkpoint ignore them.
"""

from torch import Tensor, nn

from isoflop.model.blocks.norm import normalise
from isoflop.model.blocks.part import Part, Unit

TRAINING_ONLY = "ahead."  # prefix of the names of tensors that a trained model does not need


class MTPHead(Part):
    """A head for one later token: another last block and final norm on top of the trunk."""

    def __init__(self, block: Unit, norm: nn.Module | None) -> None:
        super().__init__()
        self.block = block
        self.norm = norm

    def forward(self, x_BTD: Tensor, **extra: Tensor) -> Tensor:
        return normalise(self.norm, self.block(x_BTD, **extra), 0)
