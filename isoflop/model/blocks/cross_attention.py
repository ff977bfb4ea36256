"""Attention without a causal mask: to another sequence (cross-attention), or bidirectional self-attention.

Letters: B batch, T queries, S keys, D d_model, H heads, G key-value heads, K head_dim.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model.blocks.attend import attend_unfused, hide, split_heads, unfused_is_faster
from isoflop.model.blocks.norm import RMSNorm
from isoflop.model.blocks.part import Init, Linear, Part
from isoflop.model.blocks.position import Position


class CrossAttention(Part):
    """softmax(q k^T / sqrt(K)) v over all positions of a memory, which may be another sequence (Vaswani et al. 2017,
    1706.03762, section 3.2.3: "encoder-decoder attention").

    `remember` computes keys and values once for all queries: a decoder caches nothing else of its encoder. The options
    are those of attention.Attention.
    """

    def __init__(
        self,
        *,
        d_model: int,
        heads: int,
        head_dim: int,
        dropout: float,
        position: Position,
        init: Init,
        kv_heads: int = 0,
        qk_norm: bool = False,
        qk_gain: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if kv_heads < 0 or heads % kv_heads:
            raise UserError(f"kv_heads = {kv_heads} does not divide model.heads = {heads}")

        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.position = position

        self.q = Linear(d_model, heads * head_dim, bias=bias, init=init, role="score")
        self.k = Linear(d_model, kv_heads * head_dim, bias=bias, init=init, role="score")
        self.v = Linear(d_model, kv_heads * head_dim, bias=bias, init=init)
        self.q_norm = RMSNorm(dim=head_dim, gain=qk_gain) if qk_norm else None
        self.k_norm = RMSNorm(dim=head_dim, gain=qk_gain) if qk_norm else None
        self.out = Linear(heads * head_dim, d_model, bias=bias, init=init, role="residual")
        self.attention_dropout = dropout
        self.dropout = nn.Dropout(dropout)

    def remember(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (k_BGSK, v_BGSK) of the memory."""
        k_BGSK = split_heads(self.k(memory_BSD), self.kv_heads)
        if self.k_norm is not None:
            k_BGSK = self.k_norm(k_BGSK)
        return self.position.rotate(k_BGSK, 0), split_heads(self.v(memory_BSD), self.kv_heads)

    def forward(self, x_BTD: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_BS: Tensor | None = None) -> Tensor:
        """y_BTD, the attention's output for each of the T positions. `visible_BS`, boolean, is False at padding; each
        row must have at least one position that is not padding."""
        q_BHTK = split_heads(self.q(x_BTD), self.heads)
        if self.q_norm is not None:
            q_BHTK = self.q_norm(q_BHTK)
        q_BHTK = self.position.query(q_BHTK, 0)

        dropout = self.attention_dropout if self.training else 0.0
        if not dropout and unfused_is_faster(v_BGSK, q_BHTK.shape[2]):
            hidden_A1S = None
            if visible_BS is not None:  # A = B G
                hidden_A1S = hide(visible_BS, v_BGSK).repeat_interleave(self.kv_heads, 0).unsqueeze(1)
            y_BHTK = attend_unfused(q_BHTK, k_BGSK, v_BGSK, hidden_A1S)
        else:
            y_BHTK = F.scaled_dot_product_attention(
                q_BHTK,
                k_BGSK,
                v_BGSK,
                attn_mask=None if visible_BS is None else visible_BS[:, None, None, :],
                dropout_p=dropout,
                enable_gqa=self.kv_heads != self.heads,
            )

        return self.dropout(self.out(y_BHTK.transpose(1, 2).flatten(2)))

    def memory_weights(self) -> int:
        """The number of its children's weights that multiply a position of the memory, rather than a query's."""
        return self.k.matmul_weights() + self.v.matmul_weights()

    def score_flops(self, context: int) -> float:
        """Forward FLOPs per query of the matrix products with `context` positions of the memory, none of which is
        masked: 2 H K for each score and 2 H K for each weighted value."""
        return 4 * self.heads * self.head_dim * context


class Bidirectional(CrossAttention):
    """Bidirectional self-attention, as in an encoder: each position attends to all of its own sequence."""

    causal = False

    def forward(self, x_BTD: Tensor, visible_BS: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x_BTD, *self.remember(x_BTD), visible_BS)
