"""Attention: each position gathers from itself and the ones before it.

Letters: B batch, T queries, S keys, D d_model, H heads, G key-value heads, K head_dim, V width of a
value.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import flex_attention as flex

from isoflop.errors import UserError
from isoflop.model.blocks.norm import RMSNorm
from isoflop.model.blocks.part import ByDepth, Cache, Init, Linear, Part
from isoflop.model.blocks.position import Position

MakePosition = Callable[[int], Position]  # from the width of what it acts on
BLOCK = 128  # queries of a band worked through at once, at least: below this, calls cost more than they save
NARROWEST = 16  # head_dim that torch's FlexAttention can do
# Keys up to which products and a softmax in bfloat16 beat torch's fused kernel on a CPU with units for them: 2.2 times
# as fast at 256, 2 at 512, 0.9 at 1,024 (docs/where-the-time-goes.md). Beyond, scores would weigh more than they win.
FEW_KEYS = 512


class Attention(Part):
    """softmax(q k^T / sqrt(K)) v over all earlier positions (Vaswani et al. 2017, 1706.03762, equation 1).

    Queries, keys and values have a weight each and not one fused one: Muon orthogonalises a matrix as a whole, and the
    three are three maps. Key-value heads may be fewer and importers find the names they know.

    Options:
        kv_heads: heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al. 2023, 2305.13245);
            1 is multi-query (Shazeer 2019, 1911.02150), 0 means as many as heads.
        qk_norm: RMS norm over each head's queries and keys before position (Henry et al. 2020, 2010.04245).
        qk_gain: a learned gain in that norm (Qwen3 has one).
        soft_cap: scores s become cap tanh(s / cap), so that none is larger (Gemma 2, 2408.00118, section 2; its cap is
            50); 0: as they are. Torch's fused kernels cannot, so this is slower and holds all the scores.
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
        position: MakePosition,
        init: Init,
        kv_heads: int = 0,
        qk_norm: bool = False,
        qk_gain: bool = True,
        soft_cap: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if kv_heads < 0 or heads % kv_heads:
            raise UserError(f"kv_heads = {kv_heads} does not divide model.heads = {heads}")
        self.layer, self.heads, self.kv_heads = layer, heads, kv_heads
        self.score_width = heads * head_dim
        self.value_width = kv_heads * head_dim
        self.soft_cap = checked_cap(soft_cap)
        self.position = position(head_dim)
        self.q = Linear(d_model, heads * head_dim, bias=bias, init=init, role="score")
        self.k = Linear(d_model, kv_heads * head_dim, bias=bias, init=init, role="score")
        self.v = Linear(d_model, kv_heads * head_dim, bias=bias, init=init)
        self.q_norm = RMSNorm(dim=head_dim, gain=qk_gain) if qk_norm else None
        self.k_norm = RMSNorm(dim=head_dim, gain=qk_gain) if qk_norm else None
        self.out = Linear(heads * head_dim, d_model, bias=bias, init=init, role="residual")
        self.attention_dropout = dropout
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None, added_BTC: Tensor | None = None) -> Tensor:
        """`added_BTC`: added to the values, C = G K (blocks/value.py); the sum is what is cached."""
        start = cache.length if cache is not None else 0
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
            window=self.window,
            soft_cap=self.soft_cap,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return self.dropout(self.out(y_BHTK.transpose(1, 2).flatten(2)))

    def project(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of (B, T, C) each. Under autocast by one product: the weights are copied to another
        dtype in any case, and side by side costs no more; the gradients by x_BTD are then added up inside of it."""
        maps, device = (self.q, self.k, self.v), x_BTD.device.type
        if not torch.is_autocast_enabled(device):
            return tuple(each(x_BTD) for each in maps)
        dtype = torch.get_autocast_dtype(device)
        weight_CD = torch.cat([each.weight.to(dtype) for each in maps])
        biases = [each.bias.to(dtype) for each in maps if each.bias is not None]
        together_BTC = F.linear(x_BTD, weight_CD, torch.cat(biases) if biases else None)
        return together_BTC.split([each.out_features for each in maps], dim=-1)


class Banded(Attention):
    """Full attention's formula over a sliding band: each position sees itself and the window - 1 before it (Child et
    al. 2019, 1904.10509; Mistral). L layers see L (window - 1) positions back.

    A cache holds two windows at most, and long sequences are worked through in blocks, so that both memory and time go
    with the window.

    Options: `window`, in positions; GPT-Neo, the open replication of GPT-3's alternation, has 256. The others are those
    of full attention.
    """

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
        window: int = 256,
        kv_heads: int = 0,
        qk_norm: bool = False,
        qk_gain: bool = True,
        soft_cap: float = 0.0,
        bias: bool = True,
    ) -> None:
        if window < 1:
            raise UserError(f"window = {window} is not positive; a position sees at least itself")
        super().__init__(
            d_model=d_model,
            heads=heads,
            head_dim=head_dim,
            layer=layer,
            dropout=dropout,
            position=position,
            init=init,
            kv_heads=kv_heads,
            qk_norm=qk_norm,
            qk_gain=qk_gain,
            soft_cap=soft_cap,
            bias=bias,
        )
        self.window = self.position.window = window


class Alternating(ByDepth):
    """A pattern over depth: layer l has attention l mod n of the pattern. The default is GPT-3's (Brown et al. 2020,
    2005.14165, section 2.1): dense and locally banded layers in turn.

    Options: `pattern`, a list of entries, each a name or {"name": ..., option: value}.
    """

    def __init__(self, *, layer: int, pattern: tuple[Any, ...] = ("full", "banded")) -> None:
        super().__init__(layer=layer, pattern=pattern)


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    bias: Tensor | None,
    *,
    window: int = 0,
    soft_cap: float = 0.0,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """y_BHTV = softmax(cap(scale q k^T + bias)) v, for the last T of S positions, each of which sees itself and those
    before it, `window` of them at most (0: all). Keys and values may have fewer heads than queries and another width.

    Args:
        bias: broadcasts to (B, H, T, S).
        scale: 1 / sqrt(K) if not given.
    """
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    everything = not window or window >= S
    if (soft_cap or not everything) and T == S and bias is None and not dropout and flexible(q_BHTK):
        return attend_flexibly(q_BHTK, k_BGSK, v_BGSV, window=min(window or T, T), soft_cap=soft_cap, scale=scale)
    if not everything and max(window, BLOCK) < T:
        return attend_in_blocks(
            q_BHTK, k_BGSK, v_BGSV, bias, window=window, soft_cap=soft_cap, dropout=dropout, scale=scale
        )
    H, G = q_BHTK.shape[1], k_BGSK.shape[1]
    if bias is None and not (soft_cap or dropout) and unfused_is_faster(v_BGSV, T):
        hidden_TS = hide(band(T, S, window, v_BGSV.device), v_BGSV)
        hidden_nS = hidden_TS if H == G else hidden_TS.repeat(H // G, 1)
        return attend_unfused(q_BHTK, k_BGSK, v_BGSV, hidden_nS, scale)
    # torch's is_causal lines up the first query with the first key, so it is right only where nothing is cached; a
    # single new position sees every key and needs no mask at all.
    is_causal = 1 < T == S and everything and bias is None and not soft_cap
    if T == 1 and everything and G < H:  # the queries that share a head of keys are its T then, and nothing is copied
        q_BHTK = q_BHTK.view(-1, G, H // G, q_BHTK.shape[-1])
        bias = None if bias is None else bias.unflatten(-3, (G, -1)).squeeze(-2)
    visible_TS = None if is_causal or (T == 1 and everything) else band(T, S, window, q_BHTK.device)
    if soft_cap:
        y_BHTV = attend_capped(q_BHTK, k_BGSK, v_BGSV, bias, visible_TS, soft_cap, dropout, scale)
    else:
        mask = visible_TS
        if bias is not None:
            mask = bias if visible_TS is None else bias.masked_fill(~visible_TS, -torch.inf)
            mask = mask.to(q_BHTK.dtype)
        y_BHTV = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSV,
            attn_mask=mask,
            is_causal=is_causal,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=q_BHTK.shape[1] != G,
        )
    return y_BHTV.reshape(-1, H, T, y_BHTV.shape[-1])


def attend_in_blocks(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, bias: Tensor | None, *, window: int, **how: Any
) -> Tensor:
    """The same over a band, some queries at a time with the keys that any of them sees: T (block + window) products and
    not T S."""
    T, S, block = q_BHTK.shape[2], k_BGSK.shape[2], max(window, BLOCK)
    parts = []
    for begin in range(0, T, block):
        end = min(begin + block, T)
        seen = slice(max(0, S - T + begin + 1 - window), S - T + end)
        near = None if bias is None else bias[..., begin:end, seen]
        parts.append(
            attend(q_BHTK[:, :, begin:end], k_BGSK[:, :, seen], v_BGSV[:, :, seen], near, window=window, **how)
        )
    return torch.cat(parts, dim=2)


def attend_capped(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    bias: Tensor | None,
    visible_TS: Tensor | None,
    soft_cap: float,
    dropout: float,
    scale: float | None,
) -> Tensor:
    """The same product by product, since no fused kernel bounds the scores on the way. The cap is on what enters the
    softmax, the bias of positions included."""
    G = k_BGSK.shape[1]
    scale = q_BHTK.shape[-1] ** -0.5 if scale is None else scale
    q_BGNTK = q_BHTK.unflatten(1, (G, -1)) * scale
    scores_BHTS = (q_BGNTK @ k_BGSK.unsqueeze(2).transpose(-1, -2)).flatten(1, 2)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    scores_BHTS = soft_capped(scores_BHTS, soft_cap)
    if visible_TS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~visible_TS, -torch.inf)
    weights_BHTS = F.dropout(scores_BHTS.softmax(-1), dropout).to(v_BGSV.dtype)
    return (weights_BHTS.unflatten(1, (G, -1)) @ v_BGSV.unsqueeze(2)).flatten(1, 2)


def unfused_is_faster(v_BGSV: Tensor, T: int) -> bool:
    """Whether `attend_unfused` is faster than torch's fused kernel, which on a CPU works through 32 to 64 queries at a
    time where there are few, and in bfloat16 spends its backward pass on setting those up."""
    cpu, S = v_BGSV.device.type == "cpu", v_BGSV.shape[2]
    return cpu and v_BGSV.dtype == torch.bfloat16 and T > 1 and S <= FEW_KEYS and torch.is_grad_enabled()


def attend_unfused(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, hidden: Tensor | None, scale: float | None = None
) -> Tensor:
    """The same as two products with a softmax between them, all of it in the values' dtype. The mask and the scale ride
    on the first product; heads that share keys are more queries of these.

    Args:
        hidden: added to the scores, which are (B G, H / G T, S): see `hide`.
    """
    B, H, T, K = q_BHTK.shape
    G, S, V = v_BGSV.shape[1:]
    q_AnK = q_BHTK.to(v_BGSV.dtype).reshape(B * G, H // G * T, K)
    k_AKS = k_BGSK.to(v_BGSV.dtype).reshape(B * G, S, K).transpose(1, 2)
    nothing = v_BGSV.new_zeros(())
    scores_AnS = torch.baddbmm(
        nothing if hidden is None else hidden, q_AnK, k_AKS, alpha=K**-0.5 if scale is None else scale
    )
    return torch.bmm(scores_AnS.softmax(-1), v_BGSV.reshape(B * G, S, V)).view(B, H, T, V)


def hide(visible: Tensor, like: Tensor) -> Tensor:
    """0 where something is visible, else minus infinity, in the dtype of `like`."""
    return like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)


def flexible(q_BHTK: Tensor) -> bool:
    """Whether torch's FlexAttention is at hand: on a GPU, in training. (Elsewhere every length would be compiled.)"""
    return q_BHTK.device.type == "cuda" and torch.is_grad_enabled() and q_BHTK.shape[-1] >= NARROWEST


def attend_flexibly(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, *, window: int, soft_cap: float, scale: float | None
) -> Tensor:
    """The same by a kernel that is compiled for this band and this cap (FlexAttention, Dong et al. 2024, 2412.05496):
    it holds no scores, and blocks of them that are masked are not worked out. Under autocast queries and keys may come
    wider than values."""

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return soft_capped(score, soft_cap)

    inside = torch.compiler.is_compiling()  # of a block: what is remembered between calls is no part of that
    attention: Any = flex.flex_attention if inside else compiled_flex()
    in_blocks = band_in_blocks if inside else remembered_band
    y_BHTV: Tensor = attention(
        q_BHTK.to(v_BGSV.dtype),
        k_BGSK.to(v_BGSV.dtype),
        v_BGSV,
        score_mod=capped if soft_cap else None,
        block_mask=in_blocks(q_BHTK.shape[2], window, q_BHTK.device),
        scale=scale,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
    )
    return y_BHTV


@cache
def compiled_flex() -> Any:
    """FlexAttention, compiled; once a process."""
    return torch.compile(flex.flex_attention, dynamic=False)


def band_in_blocks(T: int, window: int, device: torch.device) -> flex.BlockMask:
    """`band(T, T, window)`, and which blocks of it are empty or full."""

    def visible(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (s <= t) & (t - s < window)

    return flex.create_block_mask(visible, None, None, T, T, device=device)


@cache
def remembered_band(T: int, window: int, device: torch.device) -> flex.BlockMask:
    return band_in_blocks(T, window, device)


def band(T: int, S: int, window: int, device: torch.device) -> Tensor:
    """visible_TS: whether query t, of the last T of S positions, sees key s: not after it, and among the last `window`
    up to it (0: any)."""
    visible_TS = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
    return visible_TS.triu(S - T - window + 1) if window else visible_TS


def split_heads(x_BTC: Tensor, heads: int) -> Tensor:
    """(B, T, H * K) -> (B, H, T, K), a view."""
    return x_BTC.unflatten(-1, (heads, -1)).transpose(1, 2)


def soft_capped(x: Tensor, cap: float) -> Tensor:
    """cap tanh(x / cap), so that nothing is larger than `cap`; 0: x as it is."""
    return cap * (x / cap).tanh() if cap else x


def checked_cap(soft_cap: float) -> float:
    """`soft_cap` as it is.

    Raises:
        UserError: if it is negative.
    """
    if soft_cap < 0:
        raise UserError(f"soft_cap = {soft_cap:g} is negative; 0 caps nothing")
    return soft_cap
