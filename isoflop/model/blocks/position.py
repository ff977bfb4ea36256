"""How a model knows the order of its tokens.

One class a method. A position acts where its `level` says: "input" ones are built once and added to the embedding
(`embed`); "attention" ones are built once an attention and may turn queries and keys (`rotate`) or add to the scores
(`bias`, which is given the queries, so that it can depend on them). What a method does not do is inherited as nothing.
`start` is always the position of the first of the T tokens: 0 in training, the cache's length in decoding.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.model.blocks.part import Embedding, Init, Part


class Position(Part):
    """Does nothing: the entry "none", and the base of the others."""

    level: ClassVar[str] = "attention"

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        """Add the positions start ... start + T - 1 to the embeddings."""
        return x_BTD

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        """Turn queries or keys that stand at start ... start + T - 1. Keys are cached turned."""
        return x_BHTK

    def bias(self, q_BHTK: Tensor, start: int) -> Tensor | None:
        """What is added to the scores (scaled by 1/sqrt(K) already) of T queries with S = start + T keys: broadcasts to
        (B, H, T, S). None: nothing."""
        return None


class Learned(Position):
    """One learned vector a position, added to the embedding (GPT-1, GPT-2, GPT-3)."""

    level = "input"

    def __init__(self, *, d_model: int, context: int, init: Init) -> None:
        super().__init__()
        self.table = Embedding(context, d_model, init=init, role="position")

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD + self.table.weight[start : start + x_BTD.shape[1]]


class Sinusoidal(Position):
    """sin and cos of t / base^(2i/D), added to the embedding (Vaswani et al. 2017, 1706.03762, section 3.5).

    Even dimensions hold the sines, odd ones the cosines. The paper multiplies the embedding by sqrt(D) first; here
    `scale` multiplies the positions instead, so that they suit embeddings of another size.
    """

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
        angles_TF = angles(self.table_TD, self.base)
        with torch.no_grad():
            self.table_TD[:, 0::2] = angles_TF.sin() * self.scale
            self.table_TD[:, 1::2] = angles_TF.cos() * self.scale

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD + self.table_TD[start : start + x_BTD.shape[1]]


class Rotary(Position):
    """Turns each pair of a head's dimensions by an angle that grows with the position, so that scores depend on
    distances alone (Su et al. 2021, 2104.09864, equation 15).

    Options:
        base: pair i turns by t / base^(2i/K).
        interleaved: pairs are (0, 1), (2, 3), ... as in the paper and llama2.c; else (0, K/2), (1, K/2 + 1), ... as in
            Hugging Face's Llama. The two are the same up to a fixed permutation of each head's dimensions.
    """

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, *, head_dim: int, context: int, base: float = 10_000.0, interleaved: bool = False) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(f"model.head_dim = {head_dim} is odd; rotary turns pairs of dimensions, so make it even")
        self.base, self.interleaved = base, interleaved
        self.register_buffer("cos_TK", torch.empty(context, head_dim), persistent=False)
        self.register_buffer("sin_TK", torch.empty(context, head_dim), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        angles_TF = angles(self.cos_TK, self.base)
        cos_TF, sin_TF = angles_TF.cos(), angles_TF.sin()
        with torch.no_grad():
            if self.interleaved:
                self.cos_TK.copy_(cos_TF.repeat_interleave(2, dim=-1))
                self.sin_TK.copy_(torch.stack((-sin_TF, sin_TF), dim=-1).flatten(-2))
            else:
                self.cos_TK.copy_(torch.cat((cos_TF, cos_TF), dim=-1))
                self.sin_TK.copy_(torch.cat((-sin_TF, sin_TF), dim=-1))

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        # (a, b) -> (a cos - b sin, b cos + a sin): x * cos + swapped(x) * sin, the first sine of a pair being negative.
        T = x_BHTK.shape[2]
        cos_TK = self.cos_TK[start : start + T].to(x_BHTK.dtype)
        sin_TK = self.sin_TK[start : start + T].to(x_BHTK.dtype)
        if self.interleaved:
            swapped_BHTK = x_BHTK.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            swapped_BHTK = x_BHTK.roll(x_BHTK.shape[-1] // 2, dims=-1)
        return torch.addcmul(x_BHTK * cos_TK, swapped_BHTK, sin_TK)


def angles(table_TK: Tensor, base: float) -> Tensor:
    """t / base^(2i/K) for the T rows and K/2 pairs of a table, reduced to a turn while in float64: large angles in
    float32 have few digits left."""
    T, K = table_TK.shape
    positions_T = torch.arange(T, dtype=torch.float64, device=table_TK.device)
    pairs_F = torch.arange(0, K, 2, dtype=torch.float64, device=table_TK.device)
    return torch.outer(positions_T, base ** (-pairs_F / K)).remainder(2 * math.pi).float()
