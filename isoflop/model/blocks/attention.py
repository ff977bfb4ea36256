"""Causal self-attention: each position attends to itself and the ones before it.

Letters: B batch, T queries, S keys, D d_model, H heads, G key-value heads, K head_dim, V width of a
value.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model.blocks.attend import attend, checked_cap, split_heads
from isoflop.model.blocks.norm import RMSNorm
from isoflop.model.blocks.part import Cache, Init, Linear, Part
from isoflop.model.blocks.position import Position

MakePosition = Callable[[int], Position]  # given the width of the vectors that it acts on


class Attention(Part):
    """softmax(q k^T / sqrt(K)) v over all earlier positions (Vaswani et al. 2017, 1706.03762, equation 1).

    Queries, keys and values have separate weights, not one fused one: Muon orthogonalises a matrix as a whole, and the
    three are different maps. It also allows fewer key-value heads, and importers find the names that they know.

    With a window each position attends to itself and the window - 1 positions before it (sliding window: Child et al.
    2019, 1904.10509; Mistral), so that L layers reach L (window - 1) positions back. A cache then holds at most two
    windows, and long sequences are processed in blocks: memory and time per token grow with the window.

    Options:
        window: positions that each one attends to, itself included; None: all earlier ones.
        kv_heads: heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al. 2023, 2305.13245);
            1 is multi-query (Shazeer 2019, 1911.02150), 0 means as many as heads.
        qk_norm: RMS norm over each head's queries and keys before position (Henry et al. 2020, 2010.04245).
        qk_gain: a learned gain in that norm (Qwen3 has one).
        qk_scale: a constant that multiplies queries and keys after that norm, so their product by its square: sharper
            attention than norms of 1 allow (nanochat: 1.2).
        soft_cap: scores s become cap tanh(s / cap) (Gemma 2, 2408.00118, section 2; its cap is 50); 0 disables it.
            torch's fused kernels do not support it, so this is slower and holds all scores in memory.
        bias: on the four matrix products.
    """

    ragged: ClassVar[bool] = True
    takes_values: ClassVar[bool] = True
    takes_documents: ClassVar[bool] = True

    def __init__(
        self,
        *,
        d_model: int,
        heads: int,
        head_dim: int,
        layer: int,
        dropout: float,
        position: MakePosition,
        init: Init,
        window: int | None = None,
        kv_heads: int = 0,
        qk_norm: bool = False,
        qk_gain: bool = True,
        qk_scale: float = 1.0,
        soft_cap: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if kv_heads < 0 or heads % kv_heads:
            raise UserError(f"kv_heads = {kv_heads} does not divide model.heads = {heads}")
        if window is not None and window < 1:
            raise UserError(f"window = {window} is not positive; a position attends at least to itself")

        if qk_scale != 1.0 and not qk_norm:
            raise UserError(
                f"qk_scale = {qk_scale:g} multiplies normalised queries and keys; set qk_norm to true, or qk_scale to 1"
            )
        if not qk_scale > 0:
            raise UserError(f"qk_scale = {qk_scale:g} is not above 0; 1 changes nothing")

        self.layer, self.heads, self.kv_heads = layer, heads, kv_heads
        self.score_width = heads * head_dim
        self.value_width = kv_heads * head_dim
        self.cache_width = 2 * kv_heads * head_dim
        self.soft_cap = checked_cap(soft_cap)
        self.scale = None if qk_scale == 1.0 else qk_scale**2 * head_dim**-0.5  # None: 1 / sqrt(K)
        self.position = position(head_dim)
        self.window = self.position.window = window or 0

        self.q = Linear(d_model, heads * head_dim, bias=bias, init=init, role="score")
        self.k = Linear(d_model, kv_heads * head_dim, bias=bias, init=init, role="score")
        self.v = Linear(d_model, kv_heads * head_dim, bias=bias, init=init)
        self.q_norm = RMSNorm(dim=head_dim, gain=qk_gain) if qk_norm else None
        self.k_norm = RMSNorm(dim=head_dim, gain=qk_gain) if qk_norm else None
        self.out = Linear(heads * head_dim, d_model, bias=bias, init=init, role="residual")
        self.attention_dropout = dropout
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        cache: Cache | None = None,
        added_BTC: Tensor | None = None,
        *,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """y_BTD.

        Args:
            added_BTC: added to the values, C = G K (blocks/value.py); the sum is cached.
            documents_BT: the number of each position's document, to attend to no other one; without a cache.
        """
        start = cache.start(x_BTD.shape[1]) if cache is not None else 0

        q_BTC, k_BTC, v_BTC = self.project(x_BTD)
        q_BHTK = split_heads(q_BTC, self.heads)
        k_BGTK = split_heads(k_BTC, self.kv_heads)
        if added_BTC is not None:
            v_BTC = v_BTC + added_BTC.to(v_BTC.dtype)
        v_BGTK = split_heads(v_BTC, self.kv_heads)

        if self.q_norm is not None and self.k_norm is not None:
            q_BHTK, k_BGTK = self.q_norm(q_BHTK), self.k_norm(k_BGTK)

        k_BGSK, v_BGSK = self.position.rotate(k_BGTK, start), v_BGTK
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(self.layer, k_BGSK, v_BGSK, self.window)

        y_BHTK = attend(
            self.position.query(q_BHTK, start),
            k_BGSK,
            v_BGSK,
            self.position.bias(q_BHTK, k_BGSK.shape[2]),
            visible_BS=cache.visible(k_BGSK.shape[2]) if cache is not None else None,
            documents_BS=documents_BT,
            window=self.window,
            soft_cap=self.soft_cap,
            scale=self.scale,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return self.dropout(self.out(y_BHTK.transpose(1, 2).flatten(2)))

    def project(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (B, T, C) each. Under autocast one product computes all three: the weights are
        cast anyway, so concatenating them costs no more, and the product sums the gradients with respect to x_BTD."""
        linears, device = (self.q, self.k, self.v), x_BTD.device.type
        if not torch.is_autocast_enabled(device):
            return tuple(linear(x_BTD) for linear in linears)

        dtype = torch.get_autocast_dtype(device)
        weight_CD = torch.cat([linear.weight.to(dtype) for linear in linears])
        biases = [linear.bias.to(dtype) for linear in linears if linear.bias is not None]
        qkv_BTC = F.linear(x_BTD, weight_CD, torch.cat(biases) if biases else None)
        return qkv_BTC.split([linear.out_features for linear in linears], dim=-1)
