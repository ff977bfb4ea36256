"""Multi-head latent attention: the cache holds one narrow vector per position, for any number of heads.

Letters: B batch, T queries, S keys, D d_model, H heads, K head_dim, C width of the latent, R width of the part of a
head that carries the position, V width of a value: K, or C if the latent itself is the value.
"""

import torch
from torch import Tensor, nn

from isoflop.errors import UserError
from isoflop.model.blocks.attend import attend, checked_cap, split_heads
from isoflop.model.blocks.attention import MakePosition
from isoflop.model.blocks.norm import RMSNorm
from isoflop.model.blocks.part import Cache, Init, Linear, Part


class Latent(Part):
    """Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1, equations 9 to 19): the keys and values of all
    heads are projections of one narrow latent, and a separate part, shared by the heads' keys, carries the position.

        c = norm(W_DKV x)      k = [W_UK c ; rotate(W_KR x)]      v = W_UV c
        q = [W_UQ c' ; rotate(W_QR c')],  c' = norm(W_DQ x), or x itself      scores = q k / sqrt(K + R)

    A cache holds only c and the rotated W_KR x: C + R numbers per position for any number of heads. With a cache W_UK
    and W_UV are applied to the queries and outputs instead (section 2.1.2), so that the cache is never expanded: the
    latents are then keys and values of one shared head. The norms are the paper's (section 3.1.2); there are no biases.

    Options:
        kv_rank: C, width of the latent; 0: 4 K as in the paper.
        q_rank: width of the queries' latent; 0: queries come from x (DeepSeek-V2-Lite).
        rope_dim: R; 0: K / 2 as in the paper, made even.
        soft_cap: as in full attention.
    """

    ragged = True
    takes_documents = True

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
        kv_rank: int = 0,
        q_rank: int = 0,
        rope_dim: int = 0,
        soft_cap: float = 0.0,
    ) -> None:
        super().__init__()
        C, R = kv_rank or 4 * head_dim, rope_dim or 2 * max(1, head_dim // 4)
        for name, value in (("kv_rank", C), ("q_rank", q_rank), ("rope_dim", R)):
            if value < 0:
                raise UserError(f"{name} = {value} is negative; 0 is the default")
        if R % 2:
            raise UserError(f"rope_dim = {R} is odd; rotary rotates pairs of dimensions, so make it even")

        self.layer, self.heads, self.head_dim = layer, heads, head_dim
        self.cache_width = C + R
        self.score_width = heads * (2 * head_dim + R) / 2
        self.soft_cap = checked_cap(soft_cap)
        self.position = position(R)
        if self.position.whole_heads:
            raise UserError(
                "it needs a position encoding for a part of each head, and this model.position needs complete heads; "
                "use another, such as rotary"
            )

        self.kv_down = Linear(d_model, C, bias=False, init=init)
        self.kv_norm = RMSNorm(dim=C)
        self.k_rope = Linear(d_model, R, bias=False, init=init, role="score")
        self.k_up = Linear(C, heads * head_dim, bias=False, init=init, role="score")
        self.v_up = Linear(C, heads * head_dim, bias=False, init=init)
        self.q_down = Linear(d_model, q_rank, bias=False, init=init) if q_rank else None
        self.q_norm = RMSNorm(dim=q_rank) if q_rank else None
        self.q_up = Linear(q_rank or d_model, heads * head_dim, bias=False, init=init, role="score")
        self.q_rope = Linear(q_rank or d_model, heads * R, bias=False, init=init, role="score")
        self.out = Linear(heads * head_dim, d_model, bias=False, init=init, role="residual")
        self.attention_dropout = dropout
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None, *, documents_BT: Tensor | None = None) -> Tensor:
        start, H = (cache.start(x_BTD.shape[1]) if cache is not None else 0), self.heads
        h_BTD = x_BTD
        if self.q_down is not None and self.q_norm is not None:
            h_BTD = self.q_norm(self.q_down(x_BTD))

        q_BHTK = split_heads(self.q_up(h_BTD), H)
        q_BHTR = self.position.query(split_heads(self.q_rope(h_BTD), H), start)
        c_B1TC = self.kv_norm(self.kv_down(x_BTD)).unsqueeze(1)
        k_B1TR = self.position.rotate(self.k_rope(x_BTD).unsqueeze(1), start)

        if cache is None:
            k_BHTK, v_BHSV = (split_heads(up(c_B1TC.squeeze(1)), H) for up in (self.k_up, self.v_up))
            query = torch.cat((q_BHTK, q_BHTR), -1)
            key = torch.cat((k_BHTK, k_B1TR.expand(-1, H, -1, -1)), -1)
        else:  # cached as one tensor, so that keys need no concatenation: values are the latents in it
            held_B1TW = torch.cat((c_B1TC, k_B1TR), -1)
            key, _ = cache.append(self.layer, held_B1TW, held_B1TW[..., :0])
            query = torch.cat((q_BHTK @ self.k_up.weight.unflatten(0, (H, -1)), q_BHTR), -1)
            v_BHSV = key[..., : c_B1TC.shape[-1]]

        y_BHTV = attend(
            query,
            key,
            v_BHSV,
            self.position.bias(q_BHTR, key.shape[2]),
            visible_BS=cache.visible(key.shape[2]) if cache is not None else None,
            documents_BS=documents_BT,
            soft_cap=self.soft_cap,
            dropout=self.attention_dropout if self.training else 0.0,
            scale=(self.head_dim + q_BHTR.shape[-1]) ** -0.5,
        )
        if cache is not None:
            y_BHTV = y_BHTV @ self.v_up.weight.unflatten(0, (H, -1)).transpose(-1, -2)
        return self.dropout(self.out(y_BHTV.transpose(1, 2).flatten(2)))
