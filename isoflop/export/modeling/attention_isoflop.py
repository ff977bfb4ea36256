"""Attention in a GPT that isoflop trained, in plain torch: norms, positions, attention and value embeddings.

Part of network_isoflop.py, which has the legend of the letters. `described` is "network" in config.json; `spec` is one
entry of it: a name with all its options.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Options = dict[str, Any]


@dataclass
class Pass:
    """What the blocks need to know about a forward pass.

    Attributes:
        positions_BT: of the tokens, in their own sequences.
        S: columns of keys: the cached ones and the tokens.
        visible_BS: False at padding; None: there is none.
        cache: with `update(keys, values, layer)`, which appends and returns all; None: no cache.
    """

    positions_BT: Tensor
    S: int
    visible_BS: Tensor | None = None
    cache: Any = None
    masks: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, window: int) -> Tensor:
        """Which key each token attends to: no later one, of the last `window` (0: all), and no padding. Broadcasts to
        (B, 1, T, S). A token attends at least to itself."""
        if window not in self.masks:
            S, T, device = self.S, self.positions_BT.shape[1], self.positions_BT.device
            distance_TS = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)
            mask = (distance_TS >= 0) & ((distance_TS < window) if window else True)
            if self.visible_BS is not None:
                mask = mask & (self.visible_BS[:, None, None, :] | (distance_TS == 0))
            self.masks[window] = mask
        return self.masks[window]

    def is_plain(self, window: int) -> bool:
        """Whether causality alone decides, and torch's fused kernel needs no mask for it."""
        T = self.positions_BT.shape[1]
        return self.visible_BS is None and (not window or window >= self.S) and T in (1, self.S)


class Norm(nn.Module):
    """layer, rms, batch, none. Batch norm uses its running statistics, also in training."""

    mean: Tensor
    var: Tensor

    def __init__(self, spec: Options, width: int, context: int = 0) -> None:
        super().__init__()
        self.kind, self.eps = spec["name"], spec.get("eps", 0.0)
        self.weight = nn.Parameter(torch.ones(width)) if spec.get("gain", self.kind != "none") else None
        self.bias = nn.Parameter(torch.zeros(width)) if spec.get("bias", self.kind == "batch") else None
        self.by_position = spec.get("over") == "batch"
        if self.kind == "batch":
            shape = (context, width) if self.by_position else (width,)
            self.register_buffer("mean", torch.zeros(shape))
            self.register_buffer("var", torch.ones(shape))

    def forward(self, x: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        if self.kind == "none":
            return x
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.kind == "batch":
            mean, var = (s[positions_BT] if self.by_position else s for s in (self.mean, self.var))
            h = (h - mean) * (var + self.eps).rsqrt()
        else:
            h = h - h.mean(-1, keepdim=True) if self.kind == "layer" else h
            h = h * (h.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        h = h if self.weight is None else h * self.weight
        return (h if self.bias is None else h + self.bias).to(x.dtype)


@lru_cache(maxsize=16)
def sinusoids(
    rows: int, width: int, base: float, scaling: tuple[float, float, float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of t / base^(2i / width), (rows, width / 2) each, float32. Angles are reduced in float64.

    Args:
        scaling: Llama 3.1's (factor, low_freq, high_freq, original): pairs that turn fewer than low_freq times within
            `original` positions rotate `factor` times slower, those above high_freq as before; factor 1: none.
    """
    factor, low, high, original = scaling
    with torch.inference_mode(False), torch.device("cpu"):
        turns = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        if factor != 1.0:
            share = ((original * turns / (2 * math.pi) - low) / (high - low)).clamp(0.0, 1.0)
            turns = turns * ((1.0 - share) / factor + share)
        angles = torch.outer(torch.arange(rows, dtype=torch.float64), turns).remainder(2 * math.pi).float()
        return angles.cos().to(device), angles.sin().to(device)


UNSCALED = (1.0, 1.0, 4.0, 1.0)


class InputPosition(nn.Module):
    """Positions that are added to the embedding: learned, sinusoidal. Every other entry does nothing here."""

    def __init__(self, spec: Options, D: int, context: int) -> None:
        super().__init__()
        self.spec, self.context = spec, context
        if spec["name"] == "learned":
            self.table = nn.Embedding(context, D)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        if self.spec["name"] == "learned":
            return x_BTD + self.table(positions_BT)
        if self.spec["name"] == "sinusoidal":
            cos, sin = sinusoids(self.context, x_BTD.shape[-1], self.spec["base"], UNSCALED, x_BTD.device)
            table_TD = torch.stack((sin, cos), -1).flatten(-2) * self.spec["scale"]
            return x_BTD + table_TD[positions_BT].to(x_BTD.dtype)
        return x_BTD


class ScorePosition(nn.Module):
    """Positions in attention: rotary, alibi, relative (Transformer-XL's). Every other entry does nothing here."""

    def __init__(self, spec: Options, D: int, heads: int, width: int, context: int) -> None:
        super().__init__()
        self.spec, self.kind, self.heads, self.D, self.context = spec, spec["name"], heads, D, context
        if self.kind == "relative":
            self.project = nn.Linear(D, heads * width, bias=False)
            self.u = nn.Parameter(torch.zeros(heads * width))
            self.v = nn.Parameter(torch.zeros(heads * width))

    def rotate(self, x_BHTK: Tensor, positions_BT: Tensor) -> Tensor:
        """Queries or keys, rotated."""
        if self.kind != "rotary":
            return x_BHTK
        scaling = tuple(self.spec[name] for name in ("factor", "low_freq", "high_freq", "original"))
        tables = sinusoids(self.context, x_BHTK.shape[-1], self.spec["base"], scaling, x_BHTK.device)
        cos, sin = (table[positions_BT].unsqueeze(1).to(x_BHTK.dtype) for table in tables)
        if self.spec["interleaved"]:
            a, b = x_BHTK[..., 0::2], x_BHTK[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        a, b = x_BHTK.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def query(self, q_BHTK: Tensor, positions_BT: Tensor) -> Tensor:
        """The queries as they multiply the rotated keys."""
        if self.kind == "relative":
            return q_BHTK + self.u.view(self.heads, 1, -1)
        return self.rotate(q_BHTK, positions_BT)

    def bias(self, q_BHTK: Tensor, S: int) -> Tensor | None:
        """Added to the scaled scores of the last T of S positions."""
        T, device = q_BHTK.shape[2], q_BHTK.device
        if self.kind not in ("alibi", "relative"):
            return None
        distance_TS = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)
        if self.kind == "alibi":
            slopes_H = torch.tensor(slopes(self.heads), device=device)
            return -slopes_H[:, None, None] * distance_TS

        cos, sin = sinusoids(self.context, self.D, self.spec["base"], UNSCALED, device)
        table_SD = torch.stack((sin, cos), -1).flatten(-2)[:S].to(q_BHTK.dtype)
        r_HKS = self.project(table_SD).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
        by_distance = (q_BHTK + self.v.view(self.heads, 1, -1)) / math.sqrt(q_BHTK.shape[-1]) @ r_HKS
        return by_distance.gather(-1, distance_TS.clamp(min=0).expand(by_distance.shape))


def slopes(heads: int) -> list[float]:
    """ALiBi's: 2^(-8/n), 2^(-16/n), ... for n heads, n a power of two; for other numbers those of the next lower power,
    then every second one of the next higher."""
    n = 2 ** (heads.bit_length() - 1)
    between = [2.0 ** (-4 * i / n) for i in range(1, 2 * n + 1, 2)]
    return [2.0 ** (-8 * i / n) for i in range(1, n + 1)] + between[: heads - n]


def split_heads(x_BTC: Tensor, heads: int) -> Tensor:
    return x_BTC.unflatten(-1, (heads, -1)).transpose(1, 2)


class Attention(nn.Module):
    """softmax(c q k / sqrt(K) + bias) v over all earlier positions, or the last `window` of them."""

    def __init__(self, spec: Options, described: Options, slot: int) -> None:
        super().__init__()
        D, H, K = (described[name] for name in ("d_model", "heads", "head_dim"))
        self.slot, self.heads, self.kv_heads = slot, H, spec["kv_heads"]
        self.window, self.soft_cap, self.dropout = spec["window"] or 0, spec["soft_cap"], described["dropout"]
        self.scale = spec["qk_scale"] ** 2 / math.sqrt(K)
        self.position = ScorePosition(described["position"], D, H, K, described["context"])
        self.q = nn.Linear(D, H * K, bias=spec["bias"])
        self.k = nn.Linear(D, self.kv_heads * K, bias=spec["bias"])
        self.v = nn.Linear(D, self.kv_heads * K, bias=spec["bias"])
        self.out = nn.Linear(H * K, D, bias=spec["bias"])
        self.q_norm = self.k_norm = None
        if spec["qk_norm"]:
            norm = {"name": "rms", "eps": 1e-6, "gain": spec["qk_gain"]}
            self.q_norm, self.k_norm = Norm(norm, K), Norm(norm, K)

    def forward(self, h_BTD: Tensor, now: Pass, added_BTC: Tensor | None = None) -> Tensor:
        """`added_BTC`: value embeddings, added to the values."""
        q, k = split_heads(self.q(h_BTD), self.heads), split_heads(self.k(h_BTD), self.kv_heads)
        v = split_heads(self.v(h_BTD) if added_BTC is None else self.v(h_BTD) + added_BTC, self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        k = self.position.rotate(k, now.positions_BT)
        if now.cache is not None:
            k, v = now.cache.update(k, v, self.slot)
        bias = self.position.bias(q, now.S)
        q = self.position.query(q, now.positions_BT)
        dropout = self.dropout if self.training else 0.0
        y_BHTK = attend(q, k, v, bias, now, self.scale, self.window, self.soft_cap, dropout)
        return F.dropout(self.out(y_BHTK.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Latent(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, 2405.04434): keys and values are projections of one narrow vector per
    position, and a part that all heads share carries the position. These two are what is cached."""

    def __init__(self, spec: Options, described: Options, slot: int) -> None:
        super().__init__()
        D, H, K = (described[name] for name in ("d_model", "heads", "head_dim"))
        C, R, Q = spec["kv_rank"], spec["rope_dim"], spec["q_rank"]
        norm = {"name": "rms", "eps": 1e-6, "gain": True}
        self.slot, self.heads, self.soft_cap, self.dropout = slot, H, spec["soft_cap"], described["dropout"]
        self.position = ScorePosition(described["position"], D, H, R, described["context"])
        self.kv_down, self.kv_norm = nn.Linear(D, C, bias=False), Norm(norm, C)
        self.k_rope = nn.Linear(D, R, bias=False)
        self.k_up, self.v_up = nn.Linear(C, H * K, bias=False), nn.Linear(C, H * K, bias=False)
        self.q_down = nn.Linear(D, Q, bias=False) if Q else None
        self.q_norm = Norm(norm, Q) if Q else None
        self.q_up, self.q_rope = nn.Linear(Q or D, H * K, bias=False), nn.Linear(Q or D, H * R, bias=False)
        self.out = nn.Linear(H * K, D, bias=False)

    def forward(self, h_BTD: Tensor, now: Pass) -> Tensor:
        inner = h_BTD if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(h_BTD))
        q_BHTR = split_heads(self.q_rope(inner), self.heads)
        c_B1SC = self.kv_norm(self.kv_down(h_BTD)).unsqueeze(1)
        k_B1SR = self.position.rotate(self.k_rope(h_BTD).unsqueeze(1), now.positions_BT)
        if now.cache is not None:
            c_B1SC, k_B1SR = now.cache.update(c_B1SC, k_B1SR, self.slot)

        bias = self.position.bias(q_BHTR, now.S)
        q_BHTR = self.position.query(q_BHTR, now.positions_BT)
        k, v = (split_heads(up(c_B1SC.squeeze(1)), self.heads) for up in (self.k_up, self.v_up))
        q = torch.cat((split_heads(self.q_up(inner), self.heads), q_BHTR), -1)
        k = torch.cat((k, k_B1SR.expand(-1, self.heads, -1, -1)), -1)
        dropout = self.dropout if self.training else 0.0
        y_BHTK = attend(q, k, v, bias, now, q.shape[-1] ** -0.5, 0, self.soft_cap, dropout)
        return F.dropout(self.out(y_BHTK.transpose(1, 2).flatten(2)), self.dropout, self.training)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    now: Pass,
    scale: float,
    window: int,
    soft_cap: float,
    dropout: float,
) -> Tensor:
    """softmax(cap(scale q k + bias)) v for (B, H, T, K) queries; keys and values may have fewer heads."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k, v))
    if soft_cap:
        scores = q @ k.transpose(-1, -2) * scale
        scores = soft_cap * ((scores if bias is None else scores + bias) / soft_cap).tanh()
        weights = scores.masked_fill(~now.mask(window), -torch.inf).softmax(-1, dtype=torch.float32)
        return F.dropout(weights.to(v.dtype), dropout) @ v
    if bias is None and now.is_plain(window):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=q.shape[2] > 1, scale=scale)
    mask = now.mask(window) if bias is None else bias.masked_fill(~now.mask(window), -torch.inf).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


class ValueEmbedding(nn.Module):
    """g E[token], added to the values: a learned row per token, and g = 2 sigmoid(W h) per head on the first features
    of attention's input; without a gate g is 1."""

    def __init__(self, described: Options, kv_heads: int) -> None:
        super().__init__()
        self.kv_heads = kv_heads
        self.table = nn.Embedding(described["vocab_size"], kv_heads * described["head_dim"])
        inputs = min(12, described["d_model"])
        self.gate = nn.Linear(inputs, kv_heads, bias=False) if described["value_gate"] else None

    def forward(self, tokens_BT: Tensor, h_BTD: Tensor) -> Tensor:
        values_BTC: Tensor = self.table(tokens_BT)
        if self.gate is None:
            return values_BTC
        gate_BTG = 2 * self.gate(h_BTD[..., : self.gate.in_features]).sigmoid()
        return (values_BTC.unflatten(-1, (self.kv_heads, -1)) * gate_BTG.unsqueeze(-1)).flatten(-2)
