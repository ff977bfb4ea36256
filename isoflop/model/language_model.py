"""What a GPT and an encoder-decoder have in common around their blocks: a head, first weights, and what losses,
counting and distribution ask of a model."""

from collections.abc import Sequence

from torch import Tensor, nn

from isoflop.model.blocks.part import Embedding, Linear, Part, Unit, mean_readings, reset_inside, take_auxiliary
from isoflop.model.config import ModelConfig


class LanguageModel(Part):
    """The base of both models.

    Attributes:
        head: W_VD; None where the head is tied, so that the embedding's weight is the head's too.
    """

    config: ModelConfig
    embedding: Embedding
    head: Linear | None

    @property
    def head_weight(self) -> Tensor:
        """W_VD: the head's own weight, or the embedding's where the head is tied."""
        return self.head.weight if self.head is not None else self.embedding.weight

    @property
    def logit_cap(self) -> float:
        """Logit soft cap; 0 disables it."""
        return self.config.logit_cap

    def units(self) -> Sequence[Unit]:
        """What distribution, recomputation and compilation may treat one by one, in the order of the forward."""
        raise NotImplementedError

    def units_within(self) -> list[nn.Module]:
        """Parts of the units that are entered apart from their unit: none."""
        return []

    def reset_parameters(self) -> None:
        """Fill every parameter and buffer anew from torch's global seed, in the order of construction."""
        reset_inside(self)

    def auxiliary_loss(self) -> Tensor | float:
        """The sum of what the parts' last training forward adds to the loss; each is given once."""
        return take_auxiliary(self)

    def mean_readings(self) -> dict[str, float]:
        """What the parts of the blocks report of the last forward (Part.readings), each name's mean over them."""
        return mean_readings(self.units())
