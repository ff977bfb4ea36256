"""An encoder-decoder transformer: the same blocks as gpt.py, with cross-attention from target to source.

    source_BS -> embedding (+ positions) -> L_e blocks, each: bidirectional attention · feed_forward -> norm -> memory
    tokens_BT -> embedding (+ positions) -> L blocks, each: causal attention · cross-attention · feed_forward
              -> norm -> head -> logits_BTV

(Vaswani et al. 2017, 1706.03762, figure 1.) Source and target share one vocabulary, one embedding and, if positions are
added to it, one table of positions. The decoder's blocks are chosen by the same Specs as a GPT's. The encoder's
attention and cross-attention are unmasked and ignore the window of `model.attention`; of its other options they use
those that they have (key-value heads, QK norm, biases).

Letters: as in gpt.py, with S the source's positions. This is single-device code: it does not depend on ranks or files.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model.assemble import (
    layer_shapes,
    make_attention,
    make_feed_forward,
    make_final_norm,
    make_init,
    make_norm,
    make_position,
    make_wiring,
)
from isoflop.model.blocks.attend import soft_capped
from isoflop.model.blocks.cross_attention import Bidirectional, CrossAttention
from isoflop.model.blocks.part import Cache, Embedding, Init, Linear, Part, Start, Unit
from isoflop.model.blocks.position import Position
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.language_model import LanguageModel
from isoflop.model.registry import NORMS, POSITIONS, WIRINGS, entries_with, make, resolve


@dataclass(frozen=True)
class EncodedSource:
    """Keys and values of a source for the decoder's cross-attention, computed once per source.

    Attributes:
        layers: keys and values (k_BGSK, v_BGSK) for each block of the decoder.
        visible_BS: False where the source is padding; None: no padding.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    visible_BS: Tensor | None


class EncoderDecoder(LanguageModel):
    """The model. Like a GPT it can be built on the meta device; `reset_parameters` initialises it as construction does.

    Raises:
        UserError: naming the field, for a configuration that cannot be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check(config)
        self.config = config
        encoding = replace(config, layers=config.encoder_layers or config.layers)
        init = make_init(config)
        role = "tied" if config.tied_head else "embedding"
        self.embedding = Embedding(config.vocab_size, config.d_model, init=init, role=role)
        self.position = make_position(config, "input", init, config.head_width)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)

        encoder_init = make_init(config, encoding.layers)
        self.encoder: Any = nn.ModuleList(
            EncoderBlock(encoding, layer, encoder_init) for layer in range(encoding.layers)
        )
        self.memory_norm = make_final_norm(config)

        self.decoder: Any = nn.ModuleList(DecoderBlock(config, layer, init) for layer in range(config.layers))

        self.norm = make_final_norm(config)
        self.head = None
        if not config.tied_head:
            self.head = Linear(config.d_model, config.vocab_size, bias=False, init=init, role="head")

    def forward(self, source_BS: Tensor, visible_BS: Tensor | None, tokens_BT: Tensor) -> Tensor:
        """logits_BTV: at each position those of the target's next token, given the source."""
        return self.logits(self.hidden(source_BS, visible_BS, tokens_BT))

    def hidden(self, source_BS: Tensor, visible_BS: Tensor | None, tokens_BT: Tensor) -> Tensor:
        """h_BTD, the head's input."""
        return self.write(tokens_BT, self.read(source_BS, visible_BS))

    def read(self, source_BS: Tensor, visible_BS: Tensor | None = None) -> EncodedSource:
        """The encoder's pass over a source. `visible_BS` is False at its padding, which may hold any ids."""
        self.check_room(0, source_BS.shape[1])

        x_BSD = self.embed(source_BS, 0)
        for block in self.encoder:
            x_BSD = block(x_BSD, visible_BS)
        if self.memory_norm is not None:
            x_BSD = self.memory_norm(x_BSD)
        return EncodedSource(tuple(block.memory.remember(x_BSD) for block in self.decoder), visible_BS)

    def write(self, tokens_BT: Tensor, source: EncodedSource, cache: Cache | None = None) -> Tensor:
        """The decoder's pass: h_BTD. With a cache the tokens follow the cached positions."""
        cached, T = (cache.length if cache is not None else 0), tokens_BT.shape[1]
        self.check_room(cached, T)

        x_BTD = self.embed(tokens_BT, cache.start(T) if cache is not None else 0)
        for block, keys_values in zip(self.decoder, source.layers, strict=True):
            x_BTD = block(x_BTD, *keys_values, source.visible_BS, cache)
        if cache is not None:
            cache.advance(T)
        return self.norm(x_BTD) if self.norm is not None else x_BTD

    def check_room(self, cached: int, T: int) -> None:
        """Raises:
        ValueError: if T tokens after the cached ones do not fit in the context.
        """
        if cached + T > self.config.context:
            raise ValueError(f"{cached} + {T} positions do not fit in a context of {self.config.context}")

    def embed(self, tokens_BT: Tensor, start: Start) -> Tensor:
        """x_BTD, the first block's input, for tokens from position `start` on, or at positions_BT."""
        x_BTD = self.position.embed(self.embedding(tokens_BT), start)
        return self.dropout(x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD))

    def logits(self, h_BTD: Tensor) -> Tensor:
        return soft_capped(F.linear(h_BTD, self.head_weight), self.logit_cap)

    def units(self) -> list[Unit]:
        return [*self.encoder, *self.decoder]

    def units_within(self) -> list[nn.Module]:
        """Parts that are also called outside their block: `read` computes keys and values (`remember`) before the block
        runs."""
        return [block.memory for block in self.decoder]

    def matmul_weights(self) -> int:
        return self.head_weight.numel() if self.head is None else 0  # an untied head counts itself

    def weights_by_side(self) -> tuple[int, int]:
        """The numbers of weights that multiply a source token, and that multiply a target token. The projections to
        keys and values of cross-attention count for the source."""
        source = multiplied(self.encoder) + sum(block.memory.memory_weights() for block in self.decoder)
        return source, multiplied(self) - source

    def pair_flops(self, source: int, target: int) -> float:
        """Forward FLOPs of the matrix products for one pair of S and T tokens, without padding; causal attention counts
        half."""
        source_weights, target_weights = self.weights_by_side()
        encoder = sum(block.attention.score_flops(source) for block in self.encoder) * source
        cross = sum(block.memory.score_flops(source) for block in self.decoder) * target
        decoder = sum(block.attention.score_flops(target) for block in self.decoder) * target
        return 2 * source_weights * source + 2 * target_weights * target + encoder + cross + decoder

    def flops(self, context: int) -> float:
        """Forward FLOPs per token in pairs of `context` tokens per side."""
        return self.pair_flops(context, context) / (2 * context)


class EncoderBlock(Unit):
    """One layer of the encoder, with bidirectional self-attention."""

    causal = False

    def __init__(self, config: ModelConfig, layer: int, init: Init) -> None:
        super().__init__()
        position = make_position(config, "attention", init, config.head_width)
        self.attention = make_unmasked(Bidirectional, config, layer, init, position)
        self.feed_forward = make_feed_forward(config, layer, init)
        self.wiring = make_wiring(config, 2 - self.feed_forward.absent)

    def compute(self, x_BSD: Tensor, visible_BS: Tensor | None = None) -> Tensor:
        branches: list[Any] = [lambda h_BSD: self.attention(h_BSD, visible_BS)]
        if not self.feed_forward.absent:
            branches.append(self.feed_forward)
        y_BSD: Tensor = self.wiring(x_BSD, *branches)
        return y_BSD


class DecoderBlock(Unit):
    """One layer of the decoder: a GPT's, with cross-attention between its branches."""

    def __init__(self, config: ModelConfig, layer: int, init: Init) -> None:
        super().__init__()
        self.attention = make_attention(config, layer, init)
        # Without positions: there is no distance between positions of two sequences.
        self.memory = make_unmasked(CrossAttention, config, layer, init, Position())
        self.feed_forward = make_feed_forward(config, layer, init)
        self.wiring = make_wiring(config, 3 - self.attention.absent - self.feed_forward.absent)

    def compute(
        self, x_BTD: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_BS: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        branches: list[Any] = [lambda h_BTD: self.memory(h_BTD, k_BGSK, v_BGSK, visible_BS)]
        if not self.attention.absent:
            branches.insert(0, lambda h_BTD: self.attention(h_BTD, cache))
        if not self.feed_forward.absent:
            branches.append(self.feed_forward)
        y_BTD: Tensor = self.wiring(x_BTD, *branches)
        return y_BTD


def make_unmasked(
    kind: type[CrossAttention], config: ModelConfig, layer: int, init: Init, position: Position
) -> CrossAttention:
    """An attention without a mask, with those options of `model.attention` that its constructor takes."""
    accepted = inspect.signature(kind).parameters
    options = {name: value for name, value in config.attention.options if name in accepted}
    spec, shapes = Spec("full", **options), layer_shapes(config, layer, init)
    attention: CrossAttention = make({"full": kind}, spec, "model.attention", position=position, **shapes)
    return attention


def multiplied(module: nn.Module) -> int:
    """The number of weights of a module that multiply a token."""
    return sum(part.matmul_weights() for part in module.modules() if isinstance(part, (Part, Linear)))


def check(config: ModelConfig) -> None:
    """Raises:
    UserError: for an entry that is undefined in an encoder, or an option of decoder-only models.
    """
    for name in ("value_embedding", "embedding_shortcut", "smear", "backout"):
        if getattr(config, name):
            value = str(getattr(config, name)).lower()
            raise UserError(f"model.{name} = {value} is for task causal_lm; remove it for seq2seq")
    if not getattr(resolve(POSITIONS, config.position.name, "model.position"), "both_ways", True):
        raise UserError(
            f"model.position = {config.position.name!r} is defined for earlier keys only, and an encoder is "
            f"bidirectional; use {alternatives(entries_with(POSITIONS, 'both_ways'))}"
        )
    if getattr(resolve(WIRINGS, config.wiring.name, "model.wiring"), "decoder_only", False):
        raise UserError(
            f"model.wiring = {config.wiring.name!r} has the constants of a decoder-only model, and an encoder-decoder "
            f"needs others; use {alternatives(entries_with(WIRINGS, 'decoder_only', False))}"
        )
    if not getattr(resolve(NORMS, config.norm.name, "model.norm"), "separate", True):
        raise UserError(
            f"model.norm = {config.norm.name!r} would count padding in its statistics; "
            f"use {alternatives(entries_with(NORMS, 'separate'))}"
        )


def alternatives(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
