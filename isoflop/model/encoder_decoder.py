"""An encoder-decoder transformer, top down: the same blocks as gpt.py, and attention from one sequence to the other.

    source_BS -> embedding (+ positions) -> L_e blocks, each: attention to and fro · feed_forward -> norm -> memory
    tokens_BT -> embedding (+ positions) -> L blocks, each: attention, causal · attention to the memory · feed_forward
              -> norm -> head -> logits_BTV

(Vaswani et al. 2017, 1706.03762, figure 1.) Source and target share one vocabulary, one embedding and, where positions
are added to it, one table of positions. The decoder's blocks are chosen by the same Specs as a GPT's. The encoder's
attention and that to the memory see everything, whatever `model.attention` hides: they take over those of its options
that they know (heads of keys and values, QK norm, biases).

Letters: as in gpt.py, with S the source's positions. This is single-device code. It knows no ranks, files or printing.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model.blocks.attend import soft_capped
from isoflop.model.blocks.cross_attention import Bidirectional, CrossAttention
from isoflop.model.blocks.norm import BatchNorm
from isoflop.model.blocks.part import Cache, Embedding, Linear, Part, mean_readings, reset_inside, take_auxiliary
from isoflop.model.blocks.position import Position
from isoflop.model.blocks.wiring import DeepNorm
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import branch_init, make_norm, make_position
from isoflop.model.init import INITS
from isoflop.model.registry import ATTENTIONS, FEED_FORWARDS, NORMS, POSITIONS, WIRINGS, make, resolve


@dataclass(frozen=True)
class Memory:
    """A source that was read: what the decoder looks at, made once however many tokens it writes.

    Attributes:
        layers: keys and values (k_BGSK, v_BGSK) for each block of the decoder.
        visible_BS: False where the source is padding; None: no padding.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    visible_BS: Tensor | None


class EncoderDecoder(Part):
    """The model. Like a GPT it builds on the meta device, and `reset_parameters` fills it as construction does.

    Raises:
        UserError: naming the field, for a configuration that cannot be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check(config)
        self.config = config
        encoding = replace(config, layers=config.encoder_layers or config.layers)
        init = make(INITS, config.init, "model.init", layers=config.layers)
        role = "tied" if config.tied_head else "embedding"
        self.embedding = Embedding(config.vocab_size, config.d_model, init=init, role=role)
        self.position = make_position(config, "input", init, config.head_width)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        encoder_init = make(INITS, config.init, "model.init", layers=encoding.layers)
        self.encoder: Any = nn.ModuleList(
            EncoderBlock(encoding, layer, encoder_init) for layer in range(encoding.layers)
        )
        self.memory_norm = make_norm(config) if config.final_norm else None
        self.decoder: Any = nn.ModuleList(DecoderBlock(config, layer, init) for layer in range(config.layers))
        self.norm = make_norm(config) if config.final_norm else None
        self.head = None
        if not config.tied_head:
            self.head = Linear(config.d_model, config.vocab_size, bias=False, init=init, role="head")

    def forward(self, source_BS: Tensor, visible_BS: Tensor | None, tokens_BT: Tensor) -> Tensor:
        """logits_BTV of the target's token after each one, given the source."""
        return self.logits(self.hidden(source_BS, visible_BS, tokens_BT))

    def hidden(self, source_BS: Tensor, visible_BS: Tensor | None, tokens_BT: Tensor) -> Tensor:
        """h_BTD, what the head reads."""
        return self.write(tokens_BT, self.read(source_BS, visible_BS))

    def read(self, source_BS: Tensor, visible_BS: Tensor | None = None) -> Memory:
        """The encoder's pass over a source. `visible_BS` is False at its padding, which may hold any ids."""
        x_BSD = self.embed(source_BS, 0)
        for block in self.encoder:
            x_BSD = block(x_BSD, visible_BS)
        if self.memory_norm is not None:
            x_BSD = self.memory_norm(x_BSD)
        return Memory(tuple(block.memory.remember(x_BSD) for block in self.decoder), visible_BS)

    def write(self, tokens_BT: Tensor, memory: Memory, cache: Cache | None = None) -> Tensor:
        """The decoder's pass: h_BTD. With a cache the tokens follow the `cache.length` ones that it holds."""
        x_BTD = self.embed(tokens_BT, cache.length if cache is not None else 0)
        for block, keys_values in zip(self.decoder, memory.layers, strict=True):
            x_BTD = block(x_BTD, *keys_values, memory.visible_BS, cache)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.norm(x_BTD) if self.norm is not None else x_BTD

    def embed(self, tokens_BT: Tensor, start: int) -> Tensor:
        """Raises:
        ValueError: if the tokens do not fit in the context.
        """
        if start + tokens_BT.shape[1] > self.config.context:
            raise ValueError(f"{start} + {tokens_BT.shape[1]} positions do not fit in {self.config.context}")
        x_BTD = self.position.embed(self.embedding(tokens_BT), start)
        return self.dropout(x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD))

    def logits(self, h_BTD: Tensor) -> Tensor:
        return soft_capped(F.linear(h_BTD, self.head_weight), self.logit_cap)

    @property
    def logit_cap(self) -> float:
        """What the head's products are bounded by; 0: nothing."""
        return self.config.logit_cap

    @property
    def head_weight(self) -> Tensor:
        """W_VD: the head's own weight, or the embedding's where the head is tied."""
        return self.head.weight if self.head is not None else self.embedding.weight

    def units(self) -> list[nn.Module]:
        """What distribution may wrap one by one, in the order of the forward."""
        return [*self.encoder, *self.decoder]

    def units_within(self) -> list[nn.Module]:
        """Parts of these that are entered apart from their block: `read` asks for keys and values (`remember`) long
        before the block's turn."""
        return [block.memory for block in self.decoder]

    def reset_parameters(self) -> None:
        """Fill every parameter and buffer anew from torch's global seed, in the order of construction."""
        reset_inside(self)

    def matmul_weights(self) -> int:
        return self.head_weight.numel() if self.head is None else 0  # an untied head counts itself

    def auxiliary_loss(self) -> Tensor | float:
        """The sum of what the parts' last training forward adds to the loss; each is given once."""
        return take_auxiliary(self)

    def mean_readings(self) -> dict[str, float]:
        """What the parts of the blocks say of the last forward (Part.readings), each name's mean over them."""
        return mean_readings(self.units())

    def weights_by_side(self) -> tuple[int, int]:
        """The weights that a token of the source is multiplied by, and those that one of the target is. The keys and
        values of the memory belong to the source."""
        source = multiplied(self.encoder) + sum(block.memory.memory_weights() for block in self.decoder)
        return source, multiplied(self) - source

    def pair_flops(self, source: int, target: int) -> float:
        """Forward FLOPs of the products for one pair of S and T tokens, no padding, causal attention at half."""
        read, written = self.weights_by_side()
        inside = sum(block.attention.score_flops(source) for block in self.encoder) * source
        across = sum(block.memory.score_flops(source) for block in self.decoder) * target
        back = sum(block.attention.score_flops(target) for block in self.decoder) * target
        return 2 * read * source + 2 * written * target + inside + across + back

    def flops(self, context: int) -> float:
        """Forward FLOPs a token in pairs of `context` tokens a side."""
        return self.pair_flops(context, context) / (2 * context)


class EncoderBlock(Part):
    """One layer of the encoder. It sees both ways."""

    causal = False

    def __init__(self, config: ModelConfig, layer: int, init: Any) -> None:
        super().__init__()
        shapes = shapes_of(config, layer, init)
        position = make_position(config, "attention", init, config.head_width)
        self.attention = look(Bidirectional, config, position, shapes)
        self.feed_forward = make(FEED_FORWARDS, config.feed_forward, "model.feed_forward", **shapes)
        self.wiring = make_wiring(config, 2 - self.feed_forward.absent)

    def forward(self, x_BSD: Tensor, visible_BS: Tensor | None = None) -> Tensor:
        branches = [lambda h_BSD: self.attention(h_BSD, visible_BS)]
        if not self.feed_forward.absent:
            branches.append(self.feed_forward)
        return self.wiring(x_BSD, *branches)


class DecoderBlock(Part):
    """One layer of the decoder: a GPT's, with a look at the memory between its branches."""

    def __init__(self, config: ModelConfig, layer: int, init: Any) -> None:
        super().__init__()
        shapes = shapes_of(config, layer, init)
        self.attention = make(
            ATTENTIONS,
            config.attention,
            "model.attention",
            position=lambda width: make_position(config, "attention", init, width),
            **shapes,
        )
        self.memory = look(CrossAttention, config, Position(), shapes)  # no distance is known between two sequences
        self.feed_forward = make(FEED_FORWARDS, config.feed_forward, "model.feed_forward", **shapes)
        self.wiring = make_wiring(config, 3 - self.attention.absent - self.feed_forward.absent)

    def forward(
        self, x_BTD: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_BS: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        branches = [lambda h_BTD: self.memory(h_BTD, k_BGSK, v_BGSK, visible_BS)]
        if not self.attention.absent:
            branches.insert(0, lambda h_BTD: self.attention(h_BTD, cache))
        if not self.feed_forward.absent:
            branches.append(self.feed_forward)
        return self.wiring(x_BTD, *branches)


def look(kind: type[CrossAttention], config: ModelConfig, position: Position, shapes: dict[str, Any]) -> Any:
    """An attention that hides nothing, with those of `model.attention`'s options that it knows."""
    known = inspect.signature(kind).parameters
    options = {name: value for name, value in config.attention.options if name in known}
    return make({"full": kind}, Spec("full", **options), "model.attention", position=position, **shapes)


def make_wiring(config: ModelConfig, branches: int) -> Any:
    shapes = {"branches": branches, "norm": lambda: make_norm(config), "layers": config.layers}
    return make(WIRINGS, config.wiring, "model.wiring", **shapes)


def shapes_of(config: ModelConfig, layer: int, init: Any) -> dict[str, Any]:
    """What a block tells its parts."""
    return {
        "d_model": config.d_model,
        "heads": config.heads,
        "head_dim": config.head_width,
        "context": config.context,
        "layer": layer,
        "layers": config.layers,
        "dropout": config.dropout,
        "init": branch_init(config, init),
    }


def multiplied(module: nn.Module) -> int:
    """The weights inside that a token is multiplied by."""
    return sum(part.matmul_weights() for part in module.modules() if isinstance(part, (Part, Linear)))


def check(config: ModelConfig) -> None:
    """Raises:
    UserError: for an entry that means nothing in an encoder, or an option that is for one sequence.
    """
    for name in ("value_embedding", "embedding_shortcut"):
        if getattr(config, name):
            value = str(getattr(config, name)).lower()
            raise UserError(f"model.{name} = {value} is for task causal_lm; leave it out with seq2seq")
    if not getattr(resolve(POSITIONS, config.position.name, "model.position"), "both_ways", True):
        raise UserError(
            f"model.position = {config.position.name!r} knows distances back alone; an encoder looks both ways: "
            "use rotary, learned or sinusoidal"
        )
    if resolve(WIRINGS, config.wiring.name, "model.wiring") is DeepNorm:
        raise UserError(
            "model.wiring = 'deepnorm' has the constants of a decoder-only model, and an encoder-decoder needs others; "
            "use pre, post or rezero"
        )
    if resolve(NORMS, config.norm.name, "model.norm") is BatchNorm:
        raise UserError("model.norm = 'batch' would count padding in its statistics; use layer or rms")
