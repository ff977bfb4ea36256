"""ModelConfig: the shapes, and one Spec per slot."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from isoflop.config import Added
from isoflop.errors import UserError
from isoflop.model.registry import ATTENTIONS, FEED_FORWARDS, INITS, LARGEST, NORMS, POSITIONS, WIRINGS
from isoflop.model.spec import Spec as Spec

MOST_LAYERS = 10_000
# The fields of a ModelConfig that are sizes; the others are its blocks and options
SIZES = ("vocab_size", "context", "layers", "encoder_layers", "d_model", "heads", "head_dim")


@dataclass(frozen=True)
class ModelConfig:
    """A transformer, decoder-only or encoder-decoder. The defaults are the preset "modern" at its smallest.

    Five options belong to no slot, since they combine with nearly every entry of all slots; each is off by default:

        logit_cap c           logit soft cap: logits s become c tanh(s / c) in training, evaluation and decoding
                              (Gemma 2, 2408.00118, section 2: 30; modded-nanogpt and nanochat: 15)
        value_embedding n     v <- W_V h + 2 sigmoid(W_g h[:12]) E[token] in every n-th layer counted from the last
                              (after the value residuals of Zhou et al. 2024, 2410.17897; nanochat: n = 2); without
                              `value_gate` the factor is 1
        embedding_shortcut    x <- a x + b x0 in front of every block, x0 the embedding, a and b learned
                              (modded-nanogpt and nanochat)
        smear                 x_t <- x_t + a sigmoid(w x_t[:24]) x_(t-1) in front of the first block (the same)
        backout               x <- x - b x_mid behind the last block, x_mid the stream after half of the blocks (the
                              same)

    Raises:
        UserError: naming the field, for inconsistent shapes.
    """

    vocab_size: Annotated[int, "token ids"] = 1024
    context: Annotated[int, "largest number of positions in a sequence"] = 256
    layers: Annotated[int, "blocks (of an encoder-decoder: of its decoder)"] = 4
    encoder_layers: Annotated[int, "blocks of an encoder-decoder's encoder; 0: as many as the decoder's"] = 0
    d_model: Annotated[int, "width of the residual stream"] = 128
    heads: Annotated[int, "attention heads"] = 2
    head_dim: Annotated[int, "width of a head; 0: d_model / heads"] = 0
    norm: Annotated[Spec, ", ".join(NORMS)] = Spec("rms", gain=False)
    position: Annotated[Spec, ", ".join(POSITIONS)] = Spec("rotary")
    attention: Annotated[Spec, ", ".join(ATTENTIONS)] = Spec("full", qk_norm=True, qk_gain=False, bias=False)
    feed_forward: Annotated[Spec, ", ".join(FEED_FORWARDS)] = Spec("mlp", activation="relu2", bias=False)
    wiring: Annotated[Spec, ", ".join(WIRINGS)] = Spec("pre")
    init: Annotated[Spec, ", ".join(INITS)] = Spec("modern")
    embedding_norm: Annotated[bool, "normalise the embedding before the first block"] = False
    embedding_shortcut: Annotated[bool, "mix the embedding into every block's input, by learned scalars"] = False
    value_embedding: Annotated[int, "every n-th layer adds a learned vector per token to its values; 0: no layer"] = 0
    value_gate: Annotated[bool, "weight the value embedding by a gate per head"] = True
    final_norm: Annotated[bool, "normalise before the head"] = True
    tied_head: Annotated[bool, "the head's weight is the embedding's"] = False
    logit_cap: Annotated[float, "logit soft cap: logits s become cap tanh(s / cap); 0 disables it"] = 0.0
    shortcut_residual: Annotated[
        tuple[float, float],
        "first values of the shortcut's a in the first and last block, linear between (nanochat: 1.15, 1.05)",
        Added(),
    ] = (1.0, 1.0)
    shortcut_embedding: Annotated[
        tuple[float, float],
        "first values of the shortcut's b in the first and last block, linear between (nanochat: 0.2, 0.05)",
        Added(),
    ] = (0.0, 0.0)
    smear: Annotated[bool, "add the previous token's embedding, weighted by a learned gate", Added()] = False
    backout: Annotated[bool, "subtract a learned share of the middle block's output before the head", Added()] = False
    dropout: Annotated[float, "after the embedding, on attention weights and at the end of each branch"] = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "d_model", "heads"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise UserError(f"model.{name} = {getattr(self, name)} is not in 1 to {LARGEST}")
        for name in ("layers", "encoder_layers", "head_dim", "value_embedding"):
            largest = LARGEST if name == "head_dim" else MOST_LAYERS
            if not 0 <= getattr(self, name) <= largest:
                raise UserError(f"model.{name} = {getattr(self, name)} is not in 0 to {largest}")
        if not self.head_dim and self.d_model % self.heads:
            raise UserError(
                f"model.heads = {self.heads} does not divide model.d_model = {self.d_model}; "
                "change one of them or set model.head_dim"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout = {self.dropout} is not in [0, 1)")
        if not 0.0 <= self.logit_cap <= LARGEST:
            raise UserError(f"model.logit_cap = {self.logit_cap:g} is negative or not a number; 0 disables it")
        for name in ("shortcut_residual", "shortcut_embedding"):
            if not all(abs(value) <= LARGEST for value in getattr(self, name)):
                raise UserError(f"model.{name} = {list(getattr(self, name))} is too large; about 1 is usual")
        for field in dataclasses.fields(self):  # a name alone is a Spec: ModelConfig(norm="layer")
            value = getattr(self, field.name)
            if isinstance(field.default, Spec) and not isinstance(value, Spec):
                object.__setattr__(self, field.name, Spec.from_plain(value, f"model.{field.name}"))

    @property
    def head_width(self) -> int:
        """K: `head_dim`, or d_model / heads if that is 0."""
        return self.head_dim or self.d_model // self.heads
