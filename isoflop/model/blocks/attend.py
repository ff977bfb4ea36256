"""Attention kernels for softmax(q k^T) v: fused (torch's SDPA), compiled (FlexAttention), blocked, and unfused. Which
is fastest depends on the device, the dtype and the lengths; all give the same up to their dtype's rounding.

Letters: B batch, T queries, S keys, H heads, G key-value heads, K head_dim, V width of a value.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import flex_attention as flex

from isoflop.errors import UserError

BLOCK = 128  # the least number of queries per block of a band: below this, calls cost more than they save
NARROWEST = 16  # the least head_dim that torch's FlexAttention supports

# Up to this many keys two GEMMs and a softmax in bfloat16 are faster than torch's fused kernel on a CPU with bfloat16
# units: 2.2 times at 256 keys, 2 times at 512, 0.9 times at 1,024 (docs/where-the-time-goes.md), where the scores also
# take much memory.
FEW_KEYS = 512


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    bias: Tensor | None,
    *,
    visible_BS: Tensor | None = None,
    documents_BS: Tensor | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """y_BHTV = softmax(cap(scale q k^T + bias)) v for the last T of S positions, by the fastest kernel.

    A position attends to itself and the ones before it, at most `window` positions (0: all). Keys and values may have
    fewer heads than queries, and values another width.

    Args:
        bias: broadcasts to (B, H, T, S).
        visible_BS: False at padding, as in front of a row that is shorter than the others; None: no padding. A query
            in the padding attends to itself.
        documents_BS: the number of each position's document; positions of another document are not attended to. None:
            all are of one.
        scale: 1 / sqrt(K) if not given.
    """
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    sees_all = not window or window >= S
    unbiased = bias is None and visible_BS is None and not dropout
    plain = unbiased and documents_BS is None

    if (soft_cap or not sees_all) and T == S and plain and flexible(q_BHTK):
        return attend_flexibly(q_BHTK, k_BGSK, v_BGSV, window=min(window or T, T), soft_cap=soft_cap, scale=scale)
    if not sees_all and max(window, BLOCK) < T:
        masks = {"visible_BS": visible_BS, "documents_BS": documents_BS}
        return attend_in_blocks(
            q_BHTK, k_BGSK, v_BGSV, bias, masks, window=window, soft_cap=soft_cap, dropout=dropout, scale=scale
        )
    if unbiased and not soft_cap and unfused_is_faster(v_BGSV, T):
        H, G = q_BHTK.shape[1], k_BGSK.shape[1]
        visible = band(T, S, window, v_BGSV.device)
        if documents_BS is None:
            hidden_TS = hide(visible, v_BGSV)
            hidden = hidden_TS if H == G else hidden_TS.repeat(H // G, 1)
        else:  # of each row, for its G heads of keys
            hidden_BTS = hide(visible & same_document(documents_BS, T), v_BGSV)
            hidden = hidden_BTS.repeat(1, H // G, 1).repeat_interleave(G, 0)
        return attend_unfused(q_BHTK, k_BGSK, v_BGSV, hidden, scale)
    return attend_masked(
        q_BHTK,
        k_BGSK,
        v_BGSV,
        bias,
        visible_BS,
        documents_BS,
        window=window,
        soft_cap=soft_cap,
        dropout=dropout,
        scale=scale,
    )


def attend_masked(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    bias: Tensor | None,
    visible_BS: Tensor | None,
    documents_BS: Tensor | None = None,
    *,
    window: int,
    soft_cap: float,
    dropout: float,
    scale: float | None,
) -> Tensor:
    """`attend` by torch's fused kernel with a mask; with a soft cap by the unfused one."""
    (H, T), (G, S) = q_BHTK.shape[1:3], k_BGSK.shape[1:3]
    sees_all = not window or window >= S
    plain = bias is None and visible_BS is None and documents_BS is None and not dropout

    # torch's is_causal aligns the first query with the first key, so it is correct only without a cache. A single new
    # position attends to all keys and needs no mask; then the queries that share a head of keys take the dimension T,
    # so that no key is copied.
    is_causal = 1 < T == S and sees_all and plain and not soft_cap
    if T == 1 and sees_all and G < H:
        q_BHTK = q_BHTK.view(-1, G, H // G, q_BHTK.shape[-1])
        bias = None if bias is None else bias.unflatten(-3, (G, -1)).squeeze(-2)

    visible = None if is_causal or (T == 1 and sees_all) else band(T, S, window, q_BHTK.device)
    if visible_BS is not None:
        visible = own_positions(visible_BS, visible, T)
    if documents_BS is not None:
        same_B1TS = same_document(documents_BS, T).unsqueeze(1)
        visible = same_B1TS if visible is None else visible & same_B1TS

    if soft_cap:
        y_BHTV = attend_capped(q_BHTK, k_BGSK, v_BGSV, bias, visible, soft_cap, dropout, scale)
    else:
        y_BHTV = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSV,
            attn_mask=mask_of(bias, visible, q_BHTK.dtype),
            is_causal=is_causal,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=q_BHTK.shape[1] != G,
        )
    return y_BHTV.reshape(-1, H, T, y_BHTV.shape[-1])


def mask_of(bias: Tensor | None, visible: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask of torch's fused kernel: `visible` itself (boolean) without a bias, else additive in dtype `dtype`."""
    if bias is None:
        return visible
    mask = bias if visible is None else bias.masked_fill(~visible, -torch.inf)
    return mask.to(dtype)


def attend_in_blocks(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    bias: Tensor | None,
    masks: dict[str, Tensor | None],
    *,
    window: int,
    **how: Any,
) -> Tensor:
    """The blocked kernel for a band: one block of queries at a time, with the keys inside any of their windows. It
    computes T (block + window) scores instead of T S. `masks`: those of `attend` that belong to the keys."""
    T, S, block = q_BHTK.shape[2], k_BGSK.shape[2], max(window, BLOCK)

    parts = []
    for begin in range(0, T, block):
        end = min(begin + block, T)
        keys = slice(max(0, S - T + begin + 1 - window), S - T + end)
        bias_of_block = None if bias is None else bias[..., begin:end, keys]
        how |= {name: None if mask is None else mask[:, keys] for name, mask in masks.items()}
        parts.append(
            attend(q_BHTK[:, :, begin:end], k_BGSK[:, :, keys], v_BGSV[:, :, keys], bias_of_block, window=window, **how)
        )
    return torch.cat(parts, dim=2)


def attend_capped(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    bias: Tensor | None,
    visible: Tensor | None,
    soft_cap: float,
    dropout: float,
    scale: float | None,
) -> Tensor:
    """The unfused kernel with a soft cap on the scores, which no fused kernel of torch supports.

    The cap applies to the input of the softmax, including the bias of position encodings.
    """
    G = k_BGSK.shape[1]
    scale = q_BHTK.shape[-1] ** -0.5 if scale is None else scale
    q_BGNTK = q_BHTK.unflatten(1, (G, -1)) * scale
    scores_BHTS = (q_BGNTK @ k_BGSK.unsqueeze(2).transpose(-1, -2)).flatten(1, 2)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias

    scores_BHTS = soft_capped(scores_BHTS, soft_cap)
    if visible is not None:
        scores_BHTS = scores_BHTS.masked_fill(~visible, -torch.inf)

    weights_BHTS = F.dropout(scores_BHTS.softmax(-1), dropout).to(v_BGSV.dtype)
    return (weights_BHTS.unflatten(1, (G, -1)) @ v_BGSV.unsqueeze(2)).flatten(1, 2)


def unfused_is_faster(v_BGSV: Tensor, T: int) -> bool:
    """Whether `attend_unfused` is faster than torch's fused kernel. On a CPU that kernel processes tiles of 32 to 64
    queries for short sequences, and in bfloat16 the setup of a tile dominates its backward pass."""
    cpu, S = v_BGSV.device.type == "cpu", v_BGSV.shape[2]
    return cpu and v_BGSV.dtype == torch.bfloat16 and T > 1 and S <= FEW_KEYS and torch.is_grad_enabled()


def attend_unfused(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, hidden: Tensor | None, scale: float | None = None
) -> Tensor:
    """The unfused kernel: two GEMMs with a softmax between them, all in the values' dtype. The mask and the scale are
    part of the first GEMM; the heads that share keys are stacked as more queries.

    Scores are rounded before the softmax, so a common offset would cost digits. The softmax does not depend on it:
    the mean key is subtracted first, and its gradient is zero for the same reason.

    Args:
        hidden: added to the scores, which are (B G, H / G T, S): see `hide`.
    """
    B, H, T, K = q_BHTK.shape
    G, S, V = v_BGSV.shape[1:]

    q_AnK = q_BHTK.to(v_BGSV.dtype).reshape(B * G, H // G * T, K)
    k_BGSK = k_BGSK - k_BGSK.detach().mean(2, keepdim=True)
    k_AKS = k_BGSK.to(v_BGSV.dtype).reshape(B * G, S, K).transpose(1, 2)

    nothing = v_BGSV.new_zeros(())
    scores_AnS = torch.baddbmm(
        nothing if hidden is None else hidden, q_AnK, k_AKS, alpha=K**-0.5 if scale is None else scale
    )
    return torch.bmm(scores_AnS.softmax(-1), v_BGSV.reshape(B * G, S, V)).view(B, H, T, V)


def hide(visible: Tensor, like: Tensor) -> Tensor:
    """The additive mask: 0 where `visible`, else minus infinity, in the dtype of `like`."""
    return like.new_zeros(visible.shape).masked_fill_(~visible, -torch.inf)


def flexible(q_BHTK: Tensor) -> bool:
    """Whether to use torch's FlexAttention: on a GPU, in training. (Elsewhere every new length would be compiled.)"""
    return q_BHTK.device.type == "cuda" and torch.is_grad_enabled() and q_BHTK.shape[-1] >= NARROWEST


def attend_flexibly(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, *, window: int, soft_cap: float, scale: float | None
) -> Tensor:
    """The kernel compiled for this band and this cap (FlexAttention, Dong et al. 2024, 2412.05496). It holds no scores
    in memory and skips masked blocks. Under autocast, queries and keys may have a wider dtype than values."""

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return soft_capped(score, soft_cap)

    compiling = torch.compiler.is_compiling()  # a compiled block must not read the caches below
    attention: Any = flex.flex_attention if compiling else compiled_flex()
    make_mask = band_in_blocks if compiling else cached_band
    y_BHTV: Tensor = attention(
        q_BHTK.to(v_BGSV.dtype),
        k_BGSK.to(v_BGSV.dtype),
        v_BGSV,
        score_mod=capped if soft_cap else None,
        block_mask=make_mask(q_BHTK.shape[2], window, q_BHTK.device),
        scale=scale,
        enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
    )
    return y_BHTV


@cache
def compiled_flex() -> Any:
    """FlexAttention, compiled once per process."""
    return torch.compile(flex.flex_attention, dynamic=False)


def band_in_blocks(T: int, window: int, device: torch.device) -> flex.BlockMask:
    """`band(T, T, window)` as a block mask, in which empty and full blocks are marked."""

    def visible(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (s <= t) & (t - s < window)

    return flex.create_block_mask(visible, None, None, T, T, device=device)


@cache
def cached_band(T: int, window: int, device: torch.device) -> flex.BlockMask:
    """`band_in_blocks`, computed once per process."""
    return band_in_blocks(T, window, device)


def band(T: int, S: int, window: int, device: torch.device) -> Tensor:
    """visible_TS: whether query t, of the last T of S positions, attends to key s: one that is not after it, among the
    last `window` positions (0: all)."""
    visible_TS = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
    return visible_TS.triu(S - T - window + 1) if window else visible_TS


def own_positions(visible_BS: Tensor, visible_TS: Tensor | None, T: int) -> Tensor:
    """(B, 1, T, S): the mask without the padding of each row. A query always attends to itself, since a softmax over no
    keys is NaN."""
    visible_BTS = visible_BS.unsqueeze(1)
    if T > 1:
        S = visible_BS.shape[1]
        visible_BTS = visible_BTS | torch.eye(T, S, dtype=torch.bool, device=visible_BS.device).roll(S - T, dims=1)
    return (visible_BTS if visible_TS is None else visible_BTS & visible_TS).unsqueeze(1)


def same_document(documents_BS: Tensor, T: int) -> Tensor:
    """(B, T, S): whether query t, of the last T of S positions, and key s belong to one document."""
    return documents_BS[:, documents_BS.shape[1] - T :, None] == documents_BS[:, None, :]


def split_heads(x_BTC: Tensor, heads: int) -> Tensor:
    """(B, T, H * K) -> (B, H, T, K), a view."""
    return x_BTC.unflatten(-1, (heads, -1)).transpose(1, 2)


def soft_capped(x: Tensor, cap: float) -> Tensor:
    """Soft cap: cap tanh(x / cap), at most `cap` in size; 0 disables it."""
    return cap * (x / cap).tanh() if cap else x


def checked_cap(soft_cap: float) -> float:
    """`soft_cap` unchanged.

    Raises:
        UserError: if it is negative.
    """
    if soft_cap < 0:
        raise UserError(f"soft_cap = {soft_cap:g} is negative; 0 disables it")
    return soft_cap
