"""A decoder-only transformer, top down.

    tokens_BT -> embedding (+ learned or sinusoidal positions) -> [norm] -> dropout
              -> L blocks, each: [shortcut to the embedding], and the wiring joins two branches to the residual stream
                     attention     q, k, v -> [QK norm] -> [rotary] -> softmax(q k / sqrt(K) [+ bias]) v -> out
                     feed_forward  up -> activation -> down, or gated, or a few of many experts
              -> norm -> head -> [cap] -> logits_BTV

Every part is an entry of a table in registry.py, chosen by config.py's Specs; the default ("modern") is pre-norm, RMS
norm without gains, rotary positions, QK norm, squared ReLU, no biases, branches that start at zero and a head of its
own; presets.py has GPT-2 and others.

Letters: B batch, T time (queries), S source (keys), D d_model, H heads, G key-value heads, K head_dim, F d_ff, V
vocabulary, L layers. A tensor's name ends in its shape: q_BHTK.

Training may add heads for later tokens (`look_ahead`) and auxiliary losses of the parts; the forward is the same.

This is single-device code. It knows no ranks, files, trainers or printing.
"""

from typing import Any

from torch import Tensor, nn

from isoflop.errors import UserError
from isoflop.model.blocks.attend import soft_capped
from isoflop.model.blocks.norm import normalise
from isoflop.model.blocks.part import (
    Cache,
    Embedding,
    Init,
    Linear,
    Part,
    mean_readings,
    product,
    reset_inside,
    take_auxiliary,
)
from isoflop.model.blocks.position import Position
from isoflop.model.blocks.value import ValueEmbedding
from isoflop.model.blocks.wiring import Shortcut
from isoflop.model.config import ModelConfig
from isoflop.model.init import INITS
from isoflop.model.registry import ATTENTIONS, FEED_FORWARDS, NORMS, POSITIONS, WIRINGS, make, resolve

TRAINING_ONLY = "ahead."  # what the names of tensors begin with that no reader of a trained model needs


class GPT(Part):
    """The model. Build it under `torch.device("meta")` for its shapes alone; `to_empty` and `reset_parameters` then
    give what direct construction gives from the same seed.

    Raises:
        UserError: naming the field, for a configuration that cannot be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        init = make(INITS, config.init, "model.init", layers=config.layers)
        role = "tied" if config.tied_head else "embedding"
        self.embedding = Embedding(config.vocab_size, config.d_model, init=init, role=role)
        self.position = make_position(config, "input", init, config.head_width)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, init) for layer in range(config.layers))
        self.norm = make_norm(config) if config.final_norm else None
        self.head = None
        if not config.tied_head:
            self.head = Linear(config.d_model, config.vocab_size, bias=False, init=init, role="head")
        self.ahead = nn.ModuleList()  # last, as `look_ahead` fills it last

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """logits_BTV of the token after each one."""
        return self.logits(self.hidden(tokens_BT, cache))

    def hidden(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """h_BTD, what the head reads. With a cache the tokens follow the `cache.length` ones that it holds.

        Raises:
            ValueError: if they do not fit in the context.
        """
        start, T = (cache.length if cache is not None else 0), tokens_BT.shape[1]
        if start + T > self.config.context:
            raise ValueError(f"{start} + {T} positions do not fit in a context of {self.config.context}")
        x_BTD = self.embed(tokens_BT, start)
        beside = self.beside(tokens_BT, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, cache, **beside)
        if cache is not None:
            cache.advance(T)
        return normalise(self.norm, x_BTD, start) if self.norm is not None else x_BTD

    def embed(self, tokens_BT: Tensor, start: int) -> Tensor:
        """x_BTD, what the first block reads, of tokens that stand from `start` on."""
        x_BTD = self.position.embed(self.embedding(tokens_BT), start)
        if self.embedding_norm is not None:
            x_BTD = normalise(self.embedding_norm, x_BTD, start)
        dropped_BTD: Tensor = self.dropout(x_BTD)
        return dropped_BTD

    def beside(self, tokens_BT: Tensor, x0_BTD: Tensor) -> dict[str, Tensor]:
        """What every block is given beside its input: what the options ask for and nothing else, since what enters a
        unit costs distribution and recomputation something."""
        given = {}
        if self.config.value_embedding:
            given["tokens_BT"] = tokens_BT
        if self.config.embedding_shortcut:
            given["x0_BTD"] = x0_BTD
        return given

    def hidden_ahead(self, tokens_BT: Tensor) -> list[Tensor]:
        """h_BTD for the next token, as `hidden`, and for each token after it that `look_ahead` added a head for."""
        x_BTD = self.embed(tokens_BT, 0)
        beside = self.beside(tokens_BT, x_BTD)
        for block in self.blocks[:-1]:
            x_BTD = block(x_BTD, **beside)
        h_BTD = self.blocks[-1](x_BTD, **beside)
        if self.norm is not None:
            h_BTD = normalise(self.norm, h_BTD, 0)
        return [h_BTD, *(head(x_BTD, **beside) for head in self.ahead)]

    def look_ahead(self, heads: int) -> None:
        """Add heads for later tokens, each a block and a final norm: for training alone, no other path reads them."""
        init = make(INITS, self.config.init, "model.init", layers=self.config.layers)
        with self.embedding.weight.device:
            self.ahead = nn.ModuleList(Ahead(self.config, init) for _ in range(heads))

    def auxiliary_loss(self) -> Tensor | float:
        """The sum of what the parts' last training forward adds to the loss; each is given once."""
        return take_auxiliary(self)

    def mean_readings(self) -> dict[str, float]:
        """What the parts of the blocks say of the last forward (Part.readings), each name's mean over them."""
        return mean_readings(self.blocks)

    def logits(self, h_BTD: Tensor) -> Tensor:
        return soft_capped(product(h_BTD, self.head_weight), self.logit_cap)

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
        return [*self.blocks, *(head.block for head in self.ahead)]

    def units_within(self) -> list[nn.Module]:
        """Parts of these that are entered apart from their block: none."""
        return []

    def reset_parameters(self) -> None:
        """Fill every parameter and buffer anew from torch's global seed, in the order of construction."""
        reset_inside(self)

    def matmul_weights(self) -> int:
        uses = len(self.ahead) + (self.head is None)  # an untied head counts its first use itself
        return uses * self.head_weight.numel()


class Block(Part):
    """One layer: builds its parts and hands its branches to the wiring.

    With a value embedding its forward needs the tokens, with a shortcut x0_BTD, what the first block reads.
    """

    def __init__(self, config: ModelConfig, layer: int, init: Any) -> None:
        super().__init__()
        shapes: dict[str, Any] = {
            "d_model": config.d_model,
            "heads": config.heads,
            "head_dim": config.head_width,
            "context": config.context,
            "layer": layer,
            "layers": config.layers,
            "dropout": config.dropout,
            "init": branch_init(config, init),
        }
        self.attention = make(
            ATTENTIONS,
            config.attention,
            "model.attention",
            position=lambda width: make_position(config, "attention", init, width),
            **shapes,
        )
        self.values = make_values(config, layer, self.attention, shapes["init"])
        self.feed_forward = make(FEED_FORWARDS, config.feed_forward, "model.feed_forward", **shapes)
        branches = 2 - self.attention.absent - self.feed_forward.absent
        self.wiring = make(
            WIRINGS,
            config.wiring,
            "model.wiring",
            branches=branches,
            norm=lambda: make_norm(config),
            layers=config.layers,
        )
        self.shortcut = Shortcut() if config.embedding_shortcut else None

    def forward(
        self,
        x_BTD: Tensor,
        cache: Cache | None = None,
        *,
        tokens_BT: Tensor | None = None,
        x0_BTD: Tensor | None = None,
    ) -> Tensor:
        def attend(h_BTD: Tensor) -> Tensor:
            more = [] if self.values is None else [self.values(tokens_BT, h_BTD)]
            y_BTD: Tensor = self.attention(h_BTD, cache, *more)
            return y_BTD

        branches = []
        if not self.attention.absent:
            branches.append(attend)
        if not self.feed_forward.absent:
            branches.append(self.feed_forward)
        start = cache.length if cache is not None else 0
        if self.shortcut is not None:
            x_BTD = self.shortcut(x_BTD, x0_BTD)
        y_BTD: Tensor = self.wiring(x_BTD, *branches, start=start)
        return y_BTD


class Ahead(Part):
    """A head for a later token: what comes after the trunk once more, a last block and the final norm."""

    def __init__(self, config: ModelConfig, init: Init) -> None:
        super().__init__()
        self.block = Block(config, config.layers - 1, init)
        self.norm = make_norm(config) if config.final_norm else None

    def forward(self, x_BTD: Tensor, **beside: Tensor) -> Tensor:
        x_BTD = self.block(x_BTD, **beside)
        return normalise(self.norm, x_BTD, 0) if self.norm is not None else x_BTD


def make_norm(config: ModelConfig) -> nn.Module:
    return make(NORMS, config.norm, "model.norm", dim=config.d_model, context=config.context)


def make_values(config: ModelConfig, layer: int, attention: Part, init: Init) -> ValueEmbedding | None:
    """The value embedding of every n-th layer, of which the last is one.

    Raises:
        UserError: if the layer's attention has no values to add to.
    """
    every = config.value_embedding
    if not every or (config.layers - 1 - layer) % every:
        return None
    if not attention.value_width:
        raise UserError(
            f"model.value_embedding = {every} adds to the values of layer {layer}, and model.attention = "
            f"{config.attention.name!r} has none there that a vector a token can be added to; use full or banded, or 0"
        )
    return ValueEmbedding(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        heads=attention.value_width // config.head_width,
        head_dim=config.head_width,
        gate=config.value_gate,
        init=init,
    )


def branch_init(config: ModelConfig, init: Init) -> Init:
    """How the wiring wants the weights in its branches filled; a private wiring need not say."""
    chosen = getattr(resolve(WIRINGS, config.wiring.name, "model.wiring"), "branch_init", None)
    wanted: Init = chosen(init, config.layers) if chosen is not None else init
    return wanted


def make_position(config: ModelConfig, level: str, init: Any, head_dim: int) -> Position:
    """The chosen position, for heads of this width, if it acts at this level, else one that does nothing."""
    kind = resolve(POSITIONS, config.position.name, "model.position")
    if not issubclass(kind, Position):
        raise UserError(f"model.position = {config.position.name!r} is no position; use one of {', '.join(POSITIONS)}")
    if kind.level != level:
        return Position()
    shapes = {
        "d_model": config.d_model,
        "heads": config.heads,
        "head_dim": head_dim,
        "context": config.context,
    }
    return make(POSITIONS, config.position, "model.position", init=init, **shapes)
