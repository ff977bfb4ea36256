"""Position encodings: they tell a model the order of its tokens.

There is one class per method. Its `level` is the place where it acts. "input": built once per model and added to the
embedding (`embed`). "attention": built once per attention, which computes

    scores_BHTS = query(q_BHTK) . rotate(k_BGSK) / sqrt(K) + bias(q_BHTK, S)

so that it may rotate queries and keys (`rotate`), change only the queries (`query`) or add to the scores (`bias`, which
gets the queries before `query`, so that it can depend on them). Each method does nothing unless it is overridden.

`start` is the position of the first of the T tokens: 0 in training, the cache's length in decoding. If rows of
different lengths are decoded together it is positions_BT of all tokens. The keys of such rows end in the same column,
so that distances, and so `bias`, are the same for all rows.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model.blocks.part import Embedding, Init, Linear, Part, Start, rows_at


class Position(Part):
    """Does nothing: the entry "none", and the base of the others.

    Attributes:
        level: "input" or "attention", where it acts.
        whole_heads: True if it needs all dimensions of a head, so that latent attention, which rotates a part of them,
            cannot use it.
        both_ways: False if `bias` is undefined for keys after the query, so that an encoder cannot use it.
    """

    ragged = True
    level: ClassVar[str] = "attention"
    whole_heads: ClassVar[bool] = False
    both_ways: ClassVar[bool] = True

    def embed(self, x_BTD: Tensor, start: Start) -> Tensor:
        """Add the positions start ... start + T - 1 to the embeddings."""
        return x_BTD

    def rotate(self, x_BHTK: Tensor, start: Start) -> Tensor:
        """Rotate queries or keys at the positions start ... start + T - 1. Keys are cached after the rotation."""
        return x_BHTK

    def query(self, q_BHTK: Tensor, start: Start) -> Tensor:
        """The queries as they multiply the rotated keys."""
        return self.rotate(q_BHTK, start)

    def bias(self, q_BHTK: Tensor, S: int) -> Tensor | None:
        """Added to the scores (after their scaling by 1/sqrt(K)) of T queries and S keys, the last key at the last
        query's position; broadcasts to (B, H, T, S). None: nothing. Keys after the query are masked in any case."""
        return None


class Learned(Position):
    """One learned vector per position, added to the embedding (GPT-1, GPT-2, GPT-3)."""

    ragged = True
    level = "input"

    def __init__(self, *, d_model: int, context: int, init: Init) -> None:
        super().__init__()
        self.table = Embedding(context, d_model, init=init, role="position")

    def embed(self, x_BTD: Tensor, start: Start) -> Tensor:
        return x_BTD + rows_at(self.table.weight, start, x_BTD.shape[1])


class Sinusoidal(Position):
    """sin and cos of t / base^(2i/D), added to the embedding (Vaswani et al. 2017, 1706.03762, section 3.5).

    Even dimensions hold the sines, odd ones the cosines. The paper multiplies the embedding by sqrt(D) first; here
    `scale` multiplies the positions instead, so that they suit embeddings of another size.
    """

    ragged = True
    level = "input"
    table_TD: Tensor

    def __init__(self, *, d_model: int, context: int, base: float = 10_000.0, scale: float = 1.0) -> None:
        super().__init__()
        if d_model % 2:
            raise UserError(f"model.d_model = {d_model} is odd; sinusoidal positions come in pairs, so make it even")
        self.base, self.scale = base, scale
        self.register_buffer("table_TD", torch.empty(context, d_model), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        fill_sinusoids(self.table_TD, self.base, self.scale)

    def embed(self, x_BTD: Tensor, start: Start) -> Tensor:
        return x_BTD + rows_at(self.table_TD, start, x_BTD.shape[1]).to(x_BTD.dtype)


class Rotary(Position):
    """RoPE: rotates each pair of a head's dimensions by an angle proportional to the position, so that scores depend on
    distances only (Su et al. 2021, 2104.09864, equation 15).

    Options:
        base: pair i is rotated by t / base^(2i/K).
        interleaved: pairs are (0, 1), (2, 3), ... as in the paper and llama2.c; else (0, K/2), (1, K/2 + 1), ... as in
            Hugging Face's Llama. The two are the same up to a fixed permutation of each head's dimensions.
        factor: Llama 3.1's extension to longer contexts than a model was first trained on. Pairs that turn fewer than
            `low_freq` times within `original` positions rotate `factor` times slower, those that turn more than
            `high_freq` times as before, with a smooth transition between; 1 disables it.
        low_freq, high_freq, original: see `factor`.
    """

    ragged = True
    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(
        self,
        *,
        head_dim: int,
        context: int,
        base: float = 10_000.0,
        interleaved: bool = False,
        factor: float = 1.0,
        low_freq: float = 1.0,
        high_freq: float = 4.0,
        original: int = 8192,
    ) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(f"model.head_dim = {head_dim} is odd; rotary rotates pairs of dimensions, so make it even")
        if factor <= 0 or original < 1:
            raise UserError(
                f"factor = {factor:g} and original = {original} have to be positive; factor 1 disables the scaling"
            )
        if not 0 < low_freq < high_freq:
            raise UserError(f"low_freq = {low_freq:g} is not between 0 and high_freq = {high_freq:g}")

        self.base, self.interleaved = base, interleaved
        self.factor, self.low_freq, self.high_freq, self.original = factor, low_freq, high_freq, original
        self.register_buffer("cos_TK", torch.empty(context, head_dim), persistent=False)
        self.register_buffer("sin_TK", torch.empty(context, head_dim), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.cos_TK.is_meta:
            return  # nothing to fill; arithmetic on the meta device would make torch import its compiler

        slower_F = None
        if self.factor != 1.0:
            K = self.cos_TK.shape[1]
            slower_F = slowed(K, self.base, self.factor, self.low_freq, self.high_freq, self.original)
        angles_TF = angles(self.cos_TK, self.base, slower_F)
        cos_TF, sin_TF = angles_TF.cos(), angles_TF.sin()
        with torch.no_grad():
            if self.interleaved:
                self.cos_TK.copy_(cos_TF.repeat_interleave(2, dim=-1))
                self.sin_TK.copy_(torch.stack((-sin_TF, sin_TF), dim=-1).flatten(-2))
            else:
                self.cos_TK.copy_(torch.cat((cos_TF, cos_TF), dim=-1))
                self.sin_TK.copy_(torch.cat((-sin_TF, sin_TF), dim=-1))

    def rotate(self, x_BHTK: Tensor, start: Start) -> Tensor:
        # (a, b) -> (a cos - b sin, b cos + a sin) = x * cos + swapped(x) * sin, with a negative first sine per pair
        T = x_BHTK.shape[2]
        cos_TK, sin_TK = (rows_at(table, start, T).to(x_BHTK.dtype) for table in (self.cos_TK, self.sin_TK))
        if cos_TK.ndim == 3:  # (B, T, K): each row has its own positions
            cos_TK, sin_TK = cos_TK.unsqueeze(1), sin_TK.unsqueeze(1)

        if self.interleaved:
            swapped_BHTK = x_BHTK.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            swapped_BHTK = x_BHTK.roll(x_BHTK.shape[-1] // 2, dims=-1)
        return torch.addcmul(x_BHTK * cos_TK, swapped_BHTK, sin_TK)


class Alibi(Position):
    """Subtracts m_h (t - s) from the score of query t and key s, m_h a fixed slope per head (Press et al. 2021,
    2108.12409, section 3; for head counts that are not a power of two, the released code)."""

    both_ways = False
    slopes_H: Tensor

    def __init__(self, *, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes_H", torch.empty(heads), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if not self.slopes_H.is_meta:
            self.slopes_H.copy_(torch.tensor(slopes(len(self.slopes_H))))

    def bias(self, q_BHTK: Tensor, S: int) -> Tensor:
        positions_S = torch.arange(S, device=q_BHTK.device, dtype=self.slopes_H.dtype)
        return self.slopes_H[:, None, None] * (positions_S - positions_S[S - q_BHTK.shape[2] :, None])


def slopes(heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ... for n heads, n a power of two. For other numbers the slopes of the next lower power of
    two, followed by every second one of the next higher."""
    n = 2 ** (heads.bit_length() - 1)
    own = [2.0 ** (-8 * i / n) for i in range(1, n + 1)]
    between = [2.0 ** (-4 * i / n) for i in range(1, 2 * n + 1, 2)]
    return own + between[: heads - n]


class Relative(Position):
    """Transformer-XL's relative positions (Dai et al. 2019, 1901.02860, section 3.3), used by Gopher and Chinchilla:
    the score of query t and key s, before 1/sqrt(K), is

        (q_t + u) . k_s  +  (q_t + v) . W_R r_(t-s)

    with u and v learned, one vector per head each, W_R a D x H K matrix (a layer's fifth) and r_j the sinusoidal vector
    of the distance j. W_R r is computed once for all sequences of a batch. With few queries, as in decoding, W_R is
    applied to the queries instead, which takes fewer FLOPs.

    Options: `base` of the sinusoids.
    """

    ragged = True
    whole_heads = True
    both_ways = False
    table_TD: Tensor

    def __init__(
        self, *, d_model: int, heads: int, head_dim: int, context: int, init: Init, base: float = 10_000.0
    ) -> None:
        super().__init__()
        if d_model % 2:
            raise UserError(f"model.d_model = {d_model} is odd; sinusoids come in pairs, so make it even")
        self.heads, self.base = heads, base
        self.score_width = heads * head_dim / 2  # 2 H K per pair: a score, without a weighted value
        self.project = Linear(d_model, heads * head_dim, bias=False, init=init, role="score")
        self.u = nn.Parameter(torch.empty(heads * head_dim))  # flat, since they are biases: no decay, no Muon
        self.v = nn.Parameter(torch.empty(heads * head_dim))
        self.register_buffer("table_TD", torch.empty(context, d_model), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        fill_sinusoids(self.table_TD, self.base)
        nn.init.zeros_(self.u)
        nn.init.zeros_(self.v)

    def query(self, q_BHTK: Tensor, start: Start) -> Tensor:
        return q_BHTK + self.u.view(self.heads, 1, -1).to(q_BHTK.dtype)

    def bias(self, q_BHTK: Tensor, S: int) -> Tensor:
        B, H, T, K = q_BHTK.shape
        D, r_SD = self.table_TD.shape[1], self.table_TD[:S].to(q_BHTK.dtype)
        q_BHTK = (q_BHTK + self.v.view(H, 1, -1).to(q_BHTK.dtype)) / math.sqrt(K)
        if B * T * D * (K + S) < S * K * (D + B * T):  # multiplications of the two orders, over H
            q_BHTD = q_BHTK @ self.project.weight.unflatten(0, (H, K)).to(q_BHTK.dtype)
            x_BHTS = (q_BHTD @ r_SD.T).flip(-1)
        else:
            x_BHTS = q_BHTK @ self.project(r_SD.flip(0)).unflatten(-1, (H, K)).permute(1, 2, 0)

        # Column j of row i now holds distance S - 1 - j, and column s should hold start + i - s, so row i is shifted to
        # the left by T - 1 - i. One column of padding and a reshape do that for all rows (the paper's appendix B).
        return F.pad(x_BHTS, (1, 0)).flatten(-2)[..., T:].unflatten(-1, (T, S))


def fill_sinusoids(table_TD: Tensor, base: float, scale: float = 1.0) -> None:
    """sin and cos of t / base^(2i/D) in the even and odd columns of row t."""
    if table_TD.is_meta:
        return
    angles_TF = angles(table_TD, base)
    with torch.no_grad():
        table_TD[:, 0::2] = angles_TF.sin() * scale
        table_TD[:, 1::2] = angles_TF.cos() * scale


def angles(table_TK: Tensor, base: float, slower_F: Tensor | None = None) -> Tensor:
    """t / base^(2i/K) for the T rows and K/2 pairs of a table, divided by `slower_F` if given. Reduced modulo 2 pi in
    float64, since large angles lose digits in float32."""
    T, K = table_TK.shape
    positions_T = torch.arange(T, dtype=torch.float64, device=table_TK.device)
    pairs_F = torch.arange(0, K, 2, dtype=torch.float64, device=table_TK.device)
    turns_F = base ** (-pairs_F / K)
    if slower_F is not None:
        turns_F = turns_F / slower_F.to(turns_F.device)
    return torch.outer(positions_T, turns_F).remainder(2 * math.pi).float()


def slowed(K: int, base: float, factor: float, low_freq: float, high_freq: float, original: int) -> Tensor:
    """How many times slower each of K/2 pairs rotates, (K/2,) float64, by Llama 3.1's rule (its released code, and
    `rope_type` "llama3" of transformers): 1 / ((1 - s) / factor + s), where s rises from 0 to 1 as the number of turns
    of a pair within `original` positions rises from `low_freq` to `high_freq`."""
    pairs_F = torch.arange(0, K, 2, dtype=torch.float64)
    turns_F = original * base ** (-pairs_F / K) / (2 * math.pi)
    s_F = ((turns_F - low_freq) / (high_freq - low_freq)).clamp(0.0, 1.0)
    return 1.0 / ((1.0 - s_F) / factor + s_F)
