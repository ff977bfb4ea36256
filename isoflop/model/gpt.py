"""A decoder-only transformer, from tokens to logits.

    tokens_BT -> embedding (+ learned or sinusoidal positions) -> [norm] -> [smear] -> dropout
              -> L blocks, in each of which the wiring joins two branches to the residual stream:
                     attention     q, k, v -> [QK norm] -> [rotary] -> softmax(q k / sqrt(K) [+ bias]) v -> out
                     feed_forward  up -> activation -> down, or gated, or a few of many experts
              -> [backout] -> norm -> head -> [logit soft cap] -> logits_BTV

The default ("modern"): pre-norm, RMS norm without gains, rotary positions, QK norm, squared ReLU, no biases, branches
that start at zero, an untied head. Every part is an entry of a table in registry.py, chosen by config.py's Specs and
built by assemble.py; presets.py has GPT-2 and others.

Letters: B batch, T time (queries), S source (keys), D d_model, H heads, G key-value heads, K head_dim, F d_ff, V
vocabulary, L layers. A tensor's name ends in its shape: q_BHTK.

This is single-device code: it does not depend on ranks, files or trainers, and does not print.
"""

from torch import Tensor, nn

from isoflop.model.assemble import (
    make_attention,
    make_backout,
    make_feed_forward,
    make_final_norm,
    make_init,
    make_norm,
    make_position,
    make_shortcut,
    make_smear,
    make_value_embedding,
    make_wiring,
)
from isoflop.model.blocks.attend import soft_capped
from isoflop.model.blocks.norm import normalise
from isoflop.model.blocks.part import Cache, Embedding, Init, Linear, Start, Unit, mean_readings, product
from isoflop.model.config import ModelConfig
from isoflop.model.language_model import LanguageModel
from isoflop.model.mtp import MTPHead


class Block(Unit):
    """One layer: attention and feed-forward, which the wiring joins to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, init: Init) -> None:
        super().__init__()
        self.attention = make_attention(config, layer, init)
        self.values = make_value_embedding(config, layer, init, self.attention)  # None in most models
        self.feed_forward = make_feed_forward(config, layer, init)
        self.wiring = make_wiring(config, branches=2 - self.attention.absent - self.feed_forward.absent)
        self.shortcut = make_shortcut(config, layer)  # None in most models

    def compute(
        self,
        x_BTD: Tensor,
        cache: Cache | None = None,
        *,
        tokens_BT: Tensor | None = None,
        x0_BTD: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """x_BTD after this layer. The last three are inputs of `values`, `shortcut` and `attention` (see
        GPT.extra_inputs)."""
        masked = {} if documents_BT is None else {"documents_BT": documents_BT}
        start = cache.start(x_BTD.shape[1]) if cache is not None else 0

        def attend(h_BTD: Tensor) -> Tensor:
            added = () if self.values is None else (self.values(tokens_BT, h_BTD),)
            y_BTD: Tensor = self.attention(h_BTD, cache, *added, **masked)
            return y_BTD

        branches = []
        if not self.attention.absent:
            branches.append(attend)
        if not self.feed_forward.absent:
            branches.append(self.feed_forward)

        if self.shortcut is not None:
            x_BTD = self.shortcut(x_BTD, x0_BTD)
        y_BTD: Tensor = self.wiring(x_BTD, *branches, start=start)
        return y_BTD


class GPT(LanguageModel):
    """The model. It can be built under `torch.device("meta")`, for shapes only; `to_empty` and `reset_parameters` then
    give the same weights as direct construction from the same seed.

    Raises:
        UserError: naming the field, for a configuration that cannot be built.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        init = make_init(config)
        role = "tied" if config.tied_head else "embedding"
        self.embedding = Embedding(config.vocab_size, config.d_model, init=init, role=role)
        self.position = make_position(config, "input", init, config.head_width)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.smear = make_smear(config, init)  # None in most models, as is `backout`
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, init) for layer in range(config.layers))
        self.backout = make_backout(config)
        self.norm = make_final_norm(config)
        self.head = None
        if not config.tied_head:
            self.head = Linear(config.d_model, config.vocab_size, bias=False, init=init, role="head")
        self.ahead = nn.ModuleList()  # multi-token heads; last, as `add_mtp_heads` fills it last

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """logits_BTV: at each position those of the next token."""
        return self.logits(self.hidden(tokens_BT, cache))

    def hidden(self, tokens_BT: Tensor, cache: Cache | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """h_BTD, the head's input. With a cache the tokens follow the cached positions.

        Args:
            documents_BT: the number of each token's document; tokens attend to their own document only. Not with a
                cache. Positions continue across documents.

        Raises:
            ValueError: if they do not fit in the context.
        """
        cached, T = (cache.length if cache is not None else 0), tokens_BT.shape[1]
        if cached + T > self.config.context:
            raise ValueError(f"{cached} + {T} positions do not fit in a context of {self.config.context}")

        start = cache.start(T) if cache is not None else 0
        x_BTD = self.embed(tokens_BT, start, cache, documents_BT)
        _, x_BTD = self.run_blocks(x_BTD, cache, self.extra_inputs(tokens_BT, x_BTD, documents_BT))
        if cache is not None:
            cache.advance(T)
        return normalise(self.norm, x_BTD, start)

    def embed(
        self, tokens_BT: Tensor, start: Start, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Tensor:
        """x_BTD, the first block's input, for tokens from position `start` on, or at positions_BT."""
        x_BTD = self.position.embed(self.embedding(tokens_BT), start)
        x_BTD = normalise(self.embedding_norm, x_BTD, start)
        if self.smear is not None:
            x_BTD = self.smear(x_BTD, start, cache, documents_BT)
        dropped_BTD: Tensor = self.dropout(x_BTD)
        return dropped_BTD

    def run_blocks(self, x_BTD: Tensor, cache: Cache | None, extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The last block's input, and its output, from which `backout` has subtracted its share of the middle's."""
        before_BTD = middle_BTD = x_BTD
        for number, block in enumerate(self.blocks, 1):
            before_BTD, x_BTD = x_BTD, block(x_BTD, cache, **extra)
            if number == len(self.blocks) // 2:
                middle_BTD = x_BTD

        if self.backout is not None:
            x_BTD = self.backout(x_BTD, middle_BTD)
        return before_BTD, x_BTD

    def logits(self, h_BTD: Tensor) -> Tensor:
        """logits_BTV = h W_VD^T, soft-capped."""
        return soft_capped(product(h_BTD, self.head_weight), self.logit_cap)

    # --- Everything below serves options and training. The forward pass is complete above. ---

    def extra_inputs(self, tokens_BT: Tensor, x0_BTD: Tensor, documents_BT: Tensor | None = None) -> dict[str, Tensor]:
        """Further inputs of every block, only if value embeddings, shortcuts or a mask between documents need them,
        since sharding and recomputation handle each input of a unit. Empty in most models."""
        extra = {} if documents_BT is None else {"documents_BT": documents_BT}
        if self.config.value_embedding:
            extra["tokens_BT"] = tokens_BT
        if self.config.embedding_shortcut:
            extra["x0_BTD"] = x0_BTD
        return extra

    def add_mtp_heads(self, heads: int) -> None:
        """Add heads for later tokens (mtp.py). Only training uses them."""
        config, init = self.config, make_init(self.config)
        with self.embedding.weight.device:
            self.ahead = nn.ModuleList(
                MTPHead(Block(config, config.layers - 1, init), make_final_norm(config)) for _ in range(heads)
            )

    def hidden_mtp(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> list[Tensor]:
        """h_BTD for the next token, as `hidden`, and for each later token that has its own head (without backout)."""
        x_BTD = self.embed(tokens_BT, 0, None, documents_BT)
        extra = self.extra_inputs(tokens_BT, x_BTD, documents_BT)
        before_BTD, x_BTD = self.run_blocks(x_BTD, None, extra)
        h_BTD = normalise(self.norm, x_BTD, 0)
        return [h_BTD, *(head(before_BTD, **extra) for head in self.ahead)]

    def units(self) -> list[Unit]:
        return [*self.blocks, *(head.block for head in self.ahead)]

    def mean_readings(self) -> dict[str, float]:
        return mean_readings(self.blocks)

    def matmul_weights(self) -> int:
        uses = len(self.ahead) + (self.head is None)  # an untied head counts its first use itself
        return uses * self.head_weight.numel()
