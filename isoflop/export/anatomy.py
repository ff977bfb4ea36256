"""What a model is, in the words that all file formats share.

Six families of Hugging Face architectures are made of parts that we have. Each is one row of FAMILIES; a row says all
that the family leaves no choice in. Which configurations are of a family is found out in fit.py.
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
        norm, position, wiring, feed_forward: the entries that it is made of.
        qk_norm: queries and keys are normalised, with gains.
        final_norm: there is a norm before the head.
        biases: of attention and feed-forward: "always", "never" or "either" (a field of its config.json says so).
        free_width: d_ff is a field; else it is 4 d_model.
        kv_heads: key-value heads may be fewer, and heads of another width than d_model / heads.
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
    """Llama 3.1's scaling of rotary positions: see blocks/position.py, whose options these are. `factor` 1 is none."""

    factor: float = 1.0
    low_freq: float = 1.0
    high_freq: float = 4.0
    original: int = 8192

    def options(self) -> dict[str, Any]:
        """As options of the entry "rotary"; none where nothing is scaled."""
        return {} if self.factor == 1.0 else {**self.__dict__}


UNSCALED = Scaling()


@dataclass(frozen=True)
class Anatomy:
    """A model of one of the families.

    Attributes:
        eps: of every norm.
        base: of rotary positions; 0 where there are none.
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
        """The ModelConfig: half-split rotary pairs, every gain and bias of the family.

        Raises:
            UserError: naming what we have no part for.
        """
        family = FAMILIES[self.family]
        if family.qk_norm and self.eps != QK_EPS:
            raise UserError(f"{where}: {self.family} with rms_norm_eps {self.eps:g}; our QK norm has {QK_EPS:g} only")
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
