"""Attention: each position gathers from itself and the ones before it.

Letters: B batch, T queries, S keys, D d_model, H heads, G key-value heads, K head_dim.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model.blocks.norm import RMSNorm
from isoflop.model.blocks.part import Cache, Init, Linear, Part
from isoflop.model.blocks.position import Position


class Attention(Part):
    """softmax(q k^T / sqrt(K)) v over all earlier positions (Vaswani et al. 2017, 1706.03762, equation 1).

    Queries, keys and values have a weight each and not one fused one: Muon orthogonalises a matrix as a whole, and the
    three are three maps. Key-value heads may be fewer and importers find the names they know.

    Options:
        kv_heads: heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al. 2023, 2305.13245);
            1 is multi-query (Shazeer 2019, 1911.02150), 0 means as many as heads.
        qk_norm: RMS norm over each head's queries and keys before position (Henry et al. 2020, 2010.04245).
        qk_gain: a learned gain in that norm (Qwen3 has one).
        bias: on the four products.
    """

    def __init__(
        self,
        *,
        d_model: int,
        heads: int,
        head_dim: int,
        layer: int,
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
        self.layer, self.heads, self.kv_heads, self.head_dim = layer, heads, kv_heads, head_dim
        self.score_width = heads * head_dim
        self.position = position
        self.q = Linear(d_model, heads * head_dim, bias=bias, init=init, role="score")
        self.k = Linear(d_model, kv_heads * head_dim, bias=bias, init=init, role="score")
        self.v = Linear(d_model, kv_heads * head_dim, bias=bias, init=init)
        self.q_norm = RMSNorm(dim=head_dim, gain=qk_gain) if qk_norm else None
        self.k_norm = RMSNorm(dim=head_dim, gain=qk_gain) if qk_norm else None
        self.out = Linear(heads * head_dim, d_model, bias=bias, init=init, role="residual")
        self.attention_dropout = dropout
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        start = cache.length if cache is not None else 0
        q_BHTK = split_heads(self.q(x_BTD), self.heads)
        k_BGTK = split_heads(self.k(x_BTD), self.kv_heads)
        v_BGTK = split_heads(self.v(x_BTD), self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTK, k_BGTK = self.q_norm(q_BHTK), self.k_norm(k_BGTK)
        q_BHTK, k_BGTK = self.position.rotate(q_BHTK, start), self.position.rotate(k_BGTK, start)
        k_BGSK, v_BGSK = (k_BGTK, v_BGTK) if cache is None else cache.append(self.layer, k_BGTK, v_BGTK)
        mask, is_causal = self.mask(q_BHTK, start)
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            attn_mask=mask,
            is_causal=is_causal,
            dropout_p=self.attention_dropout if self.training else 0.0,
            enable_gqa=self.kv_heads != self.heads,
        )
        return self.dropout(self.out(y_BHTK.transpose(1, 2).flatten(2)))

    def mask(self, q_BHTK: Tensor, start: int) -> tuple[Tensor | None, bool]:
        """What scaled_dot_product_attention gets as (attn_mask, is_causal).

        torch's is_causal lines up the first query with the first key, so it is right only where nothing is cached; a
        single new position sees every key and needs no mask at all.
        """
        bias = self.position.bias(q_BHTK, start)
        T = q_BHTK.shape[2]
        if bias is None and start == 0:
            return None, T > 1
        if bias is None and T == 1:
            return None, False
        visible_TS = torch.ones(T, start + T, dtype=torch.bool, device=q_BHTK.device).tril(start)
        if bias is None:
            return visible_TS, False
        return bias.masked_fill(~visible_TS, float("-inf")).to(q_BHTK.dtype), False


def split_heads(x_BTC: Tensor, heads: int) -> Tensor:
    """(B, T, H * K) -> (B, H, T, K), a view."""
    return x_BTC.unflatten(-1, (heads, -1)).transpose(1, 2)
