"""The sizes at which steps are measured, and nanoGPT's architecture as a ModelConfig."""

from dataclasses import dataclass

from isoflop.model.config import ModelConfig, Spec
from isoflop.model.presets import gpt2


@dataclass(frozen=True)
class Size:
    """A model's shape, the sequences per step, and the steps per turn of about two seconds."""

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
    "S": Size(4, 128, 4, 64, 12, 65, steps=40),  # nanoGPT's README, for a CPU
    "M": Size(6, 384, 6, 256, 16, 65, steps=1),  # the same, for a GPU, with a quarter of the batch
    "L": Size(12, 768, 12, 1024, 1, 50_304, steps=1),  # GPT-2 with a padded vocabulary
}

# Shapes that a plan takes for minutes on a CPU, with our default architecture (paths.py)
PLANNED = {
    "3x96": Size(3, 96, 1, 256, 32, 2048, steps=4),
    "2x128": Size(2, 128, 2, 256, 16, 4096, steps=8),
    "4x128": Size(4, 128, 2, 256, 32, 2048, steps=4),
    "6x192": Size(6, 192, 3, 256, 64, 4096, steps=1),
}

# On a GPU: nanoGPT's own batch, 40 passes of 12 sequences; and a size for a CPU, to rehearse.
CARD_SIZES = {
    "124M": Size(12, 768, 12, 1024, 480, 50_304, steps=10),
    "1.5B": Size(48, 1600, 25, 1024, 480, 50_304, steps=2),
    "tiny": Size(2, 32, 2, 32, 4, 65, steps=2),
}
ALL_SIZES = SIZES | CARD_SIZES


def nanogpt_model(size: Size) -> ModelConfig:
    """nanoGPT's model as in train.py: GPT-2 with a head tied to the embedding, no biases, and GELU by the error
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
