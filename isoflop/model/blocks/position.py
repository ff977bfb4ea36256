"""How a model knows the order of its tokens.

One class per method. A position acts where its `level` says: "input" ones are built once and added to the embedding
(`embed`); "attention" ones are built once an attention, which computes

    scores_BHTS = query(q_BHTK) . rotate(k_BGSK) / sqrt(K) + bias(q_BHTK, S)

so that they may turn queries and keys (`rotate`), change the queries alone (`query`) or add to the scores (`bias`,
which is given the plain queries, so that it can depend on them). What a method does not do is inherited as nothing.
`start` is always the position of the first of the T tokens: 0 in training, the cache's length in decoding; or
positions_BT of all of them, where rows of different lengths are decoded side by side. Keys of such rows end together,
so that distances, and with them `bias`, are the same for all.
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
        whole_heads: True where it must see every dimension of a head: it cannot act on a part of them, as latent
            attention asks.
        both_ways: False where `bias` means nothing for a key that comes after the query: no encoder can use it.
    """

    ragged = True
    level: ClassVar[str] = "attention"
    whole_heads: ClassVar[bool] = False
    both_ways: ClassVar[bool] = True

    def embed(self, x_BTD: Tensor, start: Start) -> Tensor:
        """Add the positions start ... start + T - 1 to the embeddings."""
        return x_BTD

    def rotate(self, x_BHTK: Tensor, start: Start) -> Tensor:
        """Turn queries or keys that stand at start ... start + T - 1. Keys are cached turned."""
        return x_BHTK

    def query(self, q_BHTK: Tensor, start: Start) -> Tensor:
        """What the turned keys are multiplied by."""
        return self.rotate(q_BHTK, start)

    def bias(self, q_BHTK: Tensor, S: int) -> Tensor | None:
        """What is added to the scores (scaled by 1/sqrt(K) already) of T queries with S keys, the last one at the last
        query: broadcasts to (B, H, T, S). None: nothing. Keys after the query are masked, whatever stands there."""
        return None


class Learned(Position):
    """One learned vector a position, added to the embedding (GPT-1, GPT-2, GPT-3)."""

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
    """Turns each pair of a head's dimensions by an angle that grows with the position, so that scores depend on
    distances alone (Su et al. 2021, 2104.09864, equation 15).

    Options:
        base: pair i turns by t / base^(2i/K).
        interleaved: pairs are (0, 1), (2, 3), ... as in the paper and llama2.c; else (0, K/2), (1, K/2 + 1), ... as in
            Hugging Face's Llama. The two are the same up to a fixed permutation of each head's dimensions.
        factor: Llama 3.1's way to longer texts than a model was first trained on: pairs that turn fewer than `low_freq`
            times within `original` positions turn `factor` times slower, those that turn more than `high_freq` times as
            before, those between in between; 1 changes none.
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
            raise UserError(f"model.head_dim = {head_dim} is odd; rotary turns pairs of dimensions, so make it even")
        if factor <= 0 or original < 1:
            raise UserError(
                f"factor = {factor:g} and original = {original} have to be positive; factor 1 scales nothing"
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
            return  # nothing to fill; arithmetic there would have torch import its compiler
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
        # (a, b) -> (a cos - b sin, b cos + a sin): x * cos + swapped(x) * sin, the first sine of a pair being negative.
        T = x_BHTK.shape[2]
        cos_TK, sin_TK = (rows_at(table, start, T).to(x_BHTK.dtype) for table in (self.cos_TK, self.sin_TK))
        if cos_TK.ndim == 3:  # (B, T, K): every row its own
            cos_TK, sin_TK = cos_TK.unsqueeze(1), sin_TK.unsqueeze(1)
        if self.interleaved:
            swapped_BHTK = x_BHTK.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            swapped_BHTK = x_BHTK.roll(x_BHTK.shape[-1] // 2, dims=-1)
        return torch.addcmul(x_BHTK * cos_TK, swapped_BHTK, sin_TK)


class Alibi(Position):
    """Takes m_h (t - s) off the score of query t and key s, m_h a fixed slope per head (Press et al. 2021, 2108.12409,
    section 3 and the released code for head counts that are no power of two)."""

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
    """2^(-8/n), 2^(-16/n), ... for n heads, n a power of two. For other numbers those of the next lower power of two,
    and then every second one of the next higher."""
    n = 2 ** (heads.bit_length() - 1)
    own = [2.0 ** (-8 * i / n) for i in range(1, n + 1)]
    between = [2.0 ** (-4 * i / n) for i in range(1, 2 * n + 1, 2)]
    return own + between[: heads - n]


class Relative(Position):
    """Transformer-XL's (Dai et al. 2019, 1901.02860, section 3.3), used by Gopher and Chinchilla: the score of query t
    and key s, before 1/sqrt(K), is

        (q_t + u) . k_s  +  (q_t + v) . W_R r_(t-s)

    with u and v learned, one vector per head each, W_R a d x H K matrix (the fifth of a layer) and r_j the sinusoidal
    vector of the distance j. W_R r is computed once for all sequences of a batch; where there are few queries, as in
    decoding, W_R moves to their side instead, which has fewer products.

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
        self.score_width = heads * head_dim / 2  # 2 H K a pair: a score and nothing that it weighs
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
        if B * T * D * (K + S) < S * K * (D + B * T):  # products of either way, over H
            q_BHTD = q_BHTK @ self.project.weight.unflatten(0, (H, K)).to(q_BHTK.dtype)
            x_BHTS = (q_BHTD @ r_SD.T).flip(-1)
        else:
            x_BHTS = q_BHTK @ self.project(r_SD.flip(0)).unflatten(-1, (H, K)).permute(1, 2, 0)
        # Column j of row i now holds distance S - 1 - j, and column s should hold start + i - s: row i goes T - 1 - i
        # to the left. One column of padding and a reshape do that for all rows at once (the paper's appendix B).
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
    """t / base^(2i/K) for the T rows and K/2 pairs of a table, reduced to a turn while in float64: large angles in
    float32 have few digits left. Divided by `slower_F` where it is given."""
    T, K = table_TK.shape
    positions_T = torch.arange(T, dtype=torch.float64, device=table_TK.device)
    pairs_F = torch.arange(0, K, 2, dtype=torch.float64, device=table_TK.device)
    turns_F = base ** (-pairs_F / K)
    if slower_F is not None:
        turns_F = turns_F / slower_F.to(turns_F.device)
    return torch.outer(positions_T, turns_F).remainder(2 * math.pi).float()


def slowed(K: int, base: float, factor: float, low_freq: float, high_freq: float, original: int) -> Tensor:
    """How many times slower each of K/2 pairs turns, (K/2,) float64, by Llama 3.1's rule (its released code, and
    `rope_type` "llama3" of transformers): by 1 / ((1 - s) / factor + s), s going from 0 to 1 with the turns that a pair
    takes within `original` positions, from `low_freq` to `high_freq`."""
    pairs_F = torch.arange(0, K, 2, dtype=torch.float64)
    turns_F = original * base ** (-pairs_F / K) / (2 * math.pi)
    s_F = ((turns_F - low_freq) / (high_freq - low_freq)).clamp(0.0, 1.0)
    return 1.0 / ((1.0 - s_F) / factor + s_F)
