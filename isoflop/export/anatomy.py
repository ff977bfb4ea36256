"""Anatomy: the description of a model that all file formats share.

Six families of Hugging Face architectures consist of parts that isoflop has. Each is a row of FAMILIES, with all
choices that the family fixes. fit.py decides which configurations belong to a family.
"""

from dataclasses import dataclass
from typing import Any

from isoflop.errors import UserError
from isoflop.model.config import ModelConfig, Spec

QK_EPS = 1e-6  # of the norm in blocks/attention.py, which has no option for it


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        norm, position, wiring, feed_forward: the entries of the slots.
        qk_norm: queries and keys are normalised, with gains.
        final_norm: there is a norm before the head.
        biases: of attention and feed-forward: "always", "never" or "either" (a field of its config.json decides).
        free_width: d_ff is a field; else it is 4 d_model.
        kv_heads: there may be fewer key-value heads than heads, and heads of another width than d_model / heads.
    """

    norm: str
    position: str
    wiring: str
    feed_forward: str
    qk_norm: bool = False
    final_norm: bool = True
    biases: tuple[str, str] = ("always", "always")
    free_width: bool = True
    kv_heads: bool = True


FAMILIES: dict[str, Family] = {
    "openai-gpt": Family("layer", "learned", "post", "mlp", final_norm=False, free_width=False, kv_heads=False),
    "gpt2": Family("layer", "learned", "pre", "mlp", kv_heads=False),
    "llama": Family("rms", "rotary", "pre", "gated", biases=("either", "either")),
    "qwen3": Family("rms", "rotary", "pre", "gated", qk_norm=True, biases=("either", "never")),
    "arcee": Family("rms", "rotary", "pre", "mlp", biases=("either", "either")),
    "apertus": Family("rms", "rotary", "pre", "mlp", qk_norm=True, biases=("either", "never")),
}


@dataclass(frozen=True)
class Scaling:
    """Llama 3.1's scaling of rotary positions, with the options of blocks/position.py. `factor` 1 is none."""

    factor: float = 1.0
    low_freq: float = 1.0
    high_freq: float = 4.0
    original: int = 8192

    def options(self) -> dict[str, Any]:
        """As options of the entry "rotary"; empty without scaling."""
        return {} if self.factor == 1.0 else {**self.__dict__}


UNSCALED = Scaling()


@dataclass(frozen=True)
class Anatomy:
    """A model of one of the families.

    Attributes:
        eps: of every norm.
        base: of rotary positions; 0 without them.
        scaling: of rotary positions.
    """

    family: str
    vocab_size: int
    context: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    activation: str
    eps: float
    base: float = 0.0
    scaling: Scaling = UNSCALED
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    dropout: float = 0.0

    def to_config(self, where: str) -> ModelConfig:
        """The ModelConfig, with half-split rotary pairs and every gain and bias of the family.

        Raises:
            UserError: naming what isoflop does not support.
        """
        family = FAMILIES[self.family]
        if family.qk_norm and self.eps != QK_EPS:
            raise UserError(
                f"{where}: {self.family} with rms_norm_eps {self.eps:g}; our QK norm supports only {QK_EPS:g}"
            )

        attention: dict[str, Any] = {"bias": self.attention_bias}
        if self.kv_heads != self.heads:
            attention["kv_heads"] = self.kv_heads
        if family.qk_norm:
            attention |= {"qk_norm": True, "qk_gain": True}

        position = Spec(family.position)
        if family.position == "rotary":
            position = Spec("rotary", base=self.base, **self.scaling.options())

        return ModelConfig(
            vocab_size=self.vocab_size,
            context=self.context,
            layers=self.layers,
            d_model=self.d_model,
            heads=self.heads,
            head_dim=0 if self.head_dim * self.heads == self.d_model else self.head_dim,
            norm=Spec(family.norm, eps=self.eps),
            position=position,
            attention=Spec("full", **attention),
            feed_forward=Spec(family.feed_forward, activation=self.activation, d_ff=self.d_ff, bias=self.mlp_bias),
            wiring=Spec(family.wiring),
            init=Spec("gpt2"),
            final_norm=family.final_norm,
            tied_head=self.tied,
            dropout=self.dropout,
        )
