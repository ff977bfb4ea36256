"""What a GPT and an encoder-decoder share around their blocks: the head, initialisation, and the interface to losses,
counting and distribution."""

from collections.abc import Sequence

from torch import Tensor, nn

from isoflop.model.blocks.part import Embedding, Linear, Part, Unit, mean_readings, reset_inside, take_auxiliary
from isoflop.model.config import ModelConfig


class LanguageModel(Part):
    """The base of both models.

    Attributes:
        head: W_VD; None if the head is tied, so that the embedding's weight is the head's too.
    """

    config: ModelConfig
    embedding: Embedding
    head: Linear | None

    @property
    def head_weight(self) -> Tensor:
        """W_VD: the head's own weight, or the embedding's if the head is tied."""
        return self.head.weight if self.head is not None else self.embedding.weight

    @property
    def logit_cap(self) -> float:
        """Logit soft cap; 0 disables it."""
        return self.config.logit_cap

    def units(self) -> Sequence[Unit]:
        """The units of sharding, recomputation and compilation, in the order of the forward pass."""
        raise NotImplementedError

    def units_within(self) -> list[nn.Module]:
        """Parts of the units that are also called outside of their unit: none."""
        return []

    def reset_parameters(self) -> None:
        """Initialise every parameter and buffer from torch's global seed, in the order of construction."""
        reset_inside(self)

    def auxiliary_loss(self) -> Tensor | float:
        """The sum of the auxiliary losses of the last training forward; each is returned once."""
        return take_auxiliary(self)

    def mean_readings(self) -> dict[str, float]:
        """The metrics of the last forward pass (Part.readings), each name's mean over the parts that have it."""
        return mean_readings(self.units())
