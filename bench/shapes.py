"""The sizes that steps are measured at, and nanoGPT's architecture in our words."""

from dataclasses import dataclass

from isoflop.model.config import ModelConfig, Spec
from isoflop.model.presets import gpt2


@dataclass(frozen=True)
class Size:
    """A model's shape, the sequences of a step, and how many steps make a turn of about two seconds here."""

    layers: int
    d_model: int
    heads: int
    context: int
    batch: int
    vocabulary: int
    steps: int

    @property
    def tokens(self) -> int:
        return self.batch * self.context

    def __str__(self) -> str:
        return (
            f"{self.layers} x {self.d_model}, context {self.context}, batch {self.batch}, vocabulary "
            f"{self.vocabulary:,}"
        )


SIZES = {
    "S": Size(4, 128, 4, 64, 12, 65, steps=40),  # what nanoGPT's README gives a CPU
    "M": Size(6, 384, 6, 256, 16, 65, steps=1),  # what it gives a GPU, a quarter of the batch
    "L": Size(12, 768, 12, 1024, 1, 50_304, steps=1),  # GPT-2, its vocabulary padded
}

# On a GPU: nanoGPT's own batch, 40 passes of 12 sequences; and one that a CPU can do, to try the bench.
CARD_SIZES = {
    "124M": Size(12, 768, 12, 1024, 480, 50_304, steps=10),
    "1.5B": Size(48, 1600, 25, 1024, 480, 50_304, steps=2),
    "tiny": Size(2, 32, 2, 32, 4, 65, steps=2),
}
ALL_SIZES = SIZES | CARD_SIZES


def nanogpt_model(size: Size) -> ModelConfig:
    """nanoGPT's model as train.py makes it: GPT-2 with a head tied to the embedding, no biases, GELU by the error
    function."""
    return gpt2(
        layers=size.layers,
        d_model=size.d_model,
        heads=size.heads,
        context=size.context,
        vocab_size=size.vocabulary,
        norm=Spec("layer", bias=False),
        attention=Spec("full", bias=False),
        feed_forward=Spec("mlp", activation="gelu", bias=False),
    )
