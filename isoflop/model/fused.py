"""The usual block's training pass in few operations, for CPUs.

A step of a small model spends half of its time around its matrix products: in dispatching several hundred operations,
in casts of weights and activations, and in passes over memory. Here a block is two functions of autograd with attention
between them, whose forward and backward passes are written out:

    before attention   norm -> one product for queries, keys and values -> heads, QK norm, rotary positions
    attention          batched products with a causal softmax between them, up to FEW_KEYS positions
    after attention    out -> residual sum and norm -> up -> squared ReLU -> down -> residual sum

What is between the products are the compiled kernels (isoflop/kernels). The residual stream, its gradient, norms and
softmaxes are float32, products in the dtype of autocast, as in the plain path; intermediate results are rounded in
fewer places, so that the two differ in their last bits (tests/kernels/test_fused.py).

Blocks with other parts, evaluation and decoding use the plain path: `fusible` says which.

Letters: B batch, T time, N = B T, D d_model, H heads, G key-value heads, K head_dim, C = (H + 2 G) K, F d_ff.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from isoflop.kernels import calls
from isoflop.model.blocks.attend import attend
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.feed_forward import MLP, relu2
from isoflop.model.blocks.norm import RMSNorm
from isoflop.model.blocks.part import Linear
from isoflop.model.blocks.position import Rotary
from isoflop.model.blocks.value import ValueEmbedding
from isoflop.model.blocks.wiring import PreNorm
from isoflop.model.gpt import GPT, Block

FEW_KEYS = 512  # up to this many keys attention holds all scores; above, torch's fused kernel is used
FEATURES = 1024  # the widest head
QUERIES = {
    torch.float32: 64,
    torch.bfloat16: 128,
}  # in a block of attention: smaller ones skip more keys that are hidden

Compute = Callable[..., Tensor]


def fuse(model: nn.Module) -> int:
    """Let the training passes of a model's blocks and of its final norm use the kernels, where they can.

    Returns:
        The number of blocks that do.
    """
    if type(model) is not GPT:
        return 0
    if type(model.norm) is RMSNorm:
        model.norm.use_kernels()
    blocks = [block for block in model.blocks if isinstance(block, Block) and fusible(block)]
    for block in blocks:
        block.wrap(partial(FusedBlock, block))
    return len(blocks)


def fusible(block: nn.Module) -> bool:
    """Whether FusedBlock computes this block. Each part has to be exactly of a class that is written out here, since a
    subclass may compute something else."""
    if type(block) is not Block or type(block.wiring) is not PreNorm:
        return False
    attention, feed_forward = block.attention, block.feed_forward
    if type(attention) is not Attention or type(feed_forward) is not MLP or feed_forward.activation is not relu2:
        return False
    norms = [*block.wiring.norms, attention.q_norm, attention.k_norm]
    if not all(type(norm) is RMSNorm and norm.weight is None for norm in norms):
        return False
    linears = (attention.q, attention.k, attention.v, attention.out, feed_forward.up, feed_forward.down)
    if not all(type(linear) is Linear and linear.bias is None for linear in linears):
        return False
    rotary = attention.position
    if type(rotary) is not Rotary or rotary.interleaved or rotary.cos_TK.shape[1] > FEATURES:
        return False
    plain = not attention.soft_cap and not attention.attention_dropout
    quiet = all(module.p == 0.0 for module in block.modules() if isinstance(module, nn.Dropout))
    return plain and quiet and (block.values is None or type(block.values) is ValueEmbedding)


class FusedBlock:
    """The forward pass of a block in training; other passes are the plain `compute`."""

    def __init__(self, block: Block, compute: Compute) -> None:
        self.block, self.compute = block, compute
        self.inside = [module for module in block.modules() if module is not block]

    def __call__(
        self,
        x_BTD: Tensor,
        cache: Any = None,
        *,
        tokens_BT: Tensor | None = None,
        x0_BTD: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        dtype = calls.product_dtype(x_BTD)
        if cache is not None or not torch.is_grad_enabled() or dtype is None or self.observed():
            return self.compute(x_BTD, cache, tokens_BT=tokens_BT, x0_BTD=x0_BTD, documents_BT=documents_BT)

        block, attention = self.block, self.block.attention
        if block.shortcut is not None:
            x_BTD = block.shortcut(x_BTD, x0_BTD)
        table_BTC = gate_GD = None
        if block.values is not None:
            table_BTC = block.values.table(tokens_BT)
            gate_GD = None if block.values.gate is None else block.values.gate.weight

        T, rotary = x_BTD.shape[1], attention.position
        before = (attention.q.weight, attention.k.weight, attention.v.weight)
        after = (attention.out.weight, block.feed_forward.up.weight, block.feed_forward.down.weight)
        first, second = block.wiring.norms
        shape = (attention.heads, attention.kv_heads, first.eps, attention.q_norm.eps)
        q_BHTK, k_BGTK, v_BGTK, x_BTD = BeforeAttention.apply(
            x_BTD.contiguous(),
            *before,
            table_BTC,
            gate_GD,
            in_dtype(dtype, *before),
            (rotary.cos_TK[:T], rotary.sin_TK[:T]),
            shape,
        )
        how = (attention.window, attention.scale)
        if documents_BT is None:
            y_BHTK = attend_causally(q_BHTK, k_BGTK, v_BGTK, *how)
        else:
            y_BHTK = attend_apart(q_BHTK, k_BGTK, v_BGTK, documents_BT, *how)
        y_BTD: Tensor = AfterAttention.apply(
            x_BTD,
            y_BHTK,
            *after,
            tuple(in_dtype(dtype, weight) for weight in after),
            second.eps,
        )
        return y_BTD

    def observed(self) -> bool:
        """Whether a part of the block has hooks: the fused path would not call them."""
        return any(
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
            for module in self.inside
        )


def in_dtype(dtype: torch.dtype, *matrices: nn.Parameter) -> Tensor:
    """Matrices one below the other, in the dtype of the products. A copy is not kept for a later pass: fused AdamW
    changes weights without a trace in their version counters, so that no one could tell when it is out of date."""
    detached = [matrix.detach() for matrix in matrices]
    return (torch.cat(detached) if len(detached) > 1 else detached[0]).to(dtype)


def weight_gradient(dy_NC: Tensor, x_ND: Tensor) -> Tensor:
    """dy^T x, the gradient of W in y = x W^T, in float32. The first factor of the product is read across its rows, so
    that it is the narrower one: 1.5 times as fast in float32 at 384 x 96."""
    if dy_NC.shape[1] > x_ND.shape[1]:
        return torch.mm(x_ND.t(), dy_NC).t().float().contiguous()
    return torch.mm(dy_NC.t(), x_ND).float()


class BeforeAttention(torch.autograd.Function):
    """Queries, keys and values, and x again, so that the gradient of the residual stream is added in the same pass as
    that of the norm.

    Values get gate * table if there is a table, with gate = 2 sigmoid(W_g y[:12]) or 1 (blocks/value.py).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        q_CD: Tensor,
        k_CD: Tensor,
        v_CD: Tensor,
        table_BTC: Tensor | None,
        gate_GD: Tensor | None,
        weight_CD: Tensor,
        angles: tuple[Tensor, Tensor],
        shape: tuple[int, int, float, float],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        H, G, eps, qk_eps = shape
        y_BTD, r_BT = calls.norm(x_BTD, eps, weight_CD.dtype)
        qkv_BTC = torch.mm(y_BTD.flatten(0, 1), weight_CD.t()).unflatten(0, x_BTD.shape[:2])

        gate_BTG = None
        if table_BTC is not None:
            table_BTC = table_BTC.float().contiguous()
            if gate_GD is not None:
                inputs_BTD = y_BTD[..., : gate_GD.shape[1]]
                gate_BTG = F.linear(inputs_BTD, gate_GD.to(y_BTD.dtype)).float().sigmoid_().mul_(2)
        made = calls.heads(qkv_BTC, *angles, H, G, qk_eps, table_BTC, gate_BTG)
        q_BHTK, k_BGTK, v_BGTK, *scales = made

        ctx.rows = (len(q_CD), len(k_CD), len(v_CD))
        ctx.save_for_backward(y_BTD, r_BT, q_BHTK, k_BGTK, *scales, weight_CD, *angles, table_BTC, gate_BTG, gate_GD)
        return q_BHTK, k_BGTK, v_BGTK, x_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, dx: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        y_BTD, r_BT, q_BHTK, k_BGTK, rq, rk, weight_CD, cos_TK, sin_TK, table_BTC, gate_BTG, gate_GD = saved
        grads = (dq.contiguous(), dk.contiguous(), dv.contiguous())
        dqkv_BTC, dtable_BTC, dgate_BTG = calls.heads_back(
            grads, q_BHTK, k_BGTK, (rq, rk), cos_TK, sin_TK, table_BTC, gate_BTG
        )

        dqkv_NC, y_ND = dqkv_BTC.flatten(0, 1), y_BTD.flatten(0, 1)
        dweights = weight_gradient(dqkv_NC, y_ND).split(ctx.rows)
        dy_ND = torch.mm(dqkv_NC, weight_CD)
        dgate_GD = None
        if gate_GD is not None and gate_BTG is not None and dgate_BTG is not None:
            dlogit_NG = (dgate_BTG * gate_BTG * (1 - gate_BTG / 2)).flatten(0, 1).to(dy_ND.dtype)
            few = gate_GD.shape[1]
            dgate_GD = torch.mm(dlogit_NG.t(), y_ND[:, :few]).float()
            dy_ND[:, :few] += torch.mm(dlogit_NG, gate_GD.to(dy_ND.dtype))
        dx_ND, _ = calls.norm_back(dx.contiguous(), dy_ND, y_ND, r_BT)
        return dx_ND.view(dx.shape), *dweights, dtable_BTC, dgate_GD, None, None, None


class CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T) v by batched products that hold all scores, for a block of queries at a time, with the
    keys up to its last query. Queries that share a head of keys are stacked. In bfloat16 the mean key is subtracted
    before scores are rounded (blocks/attend.py)."""

    @staticmethod
    def forward(ctx: Any, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, window: int, scale: float) -> Tensor:
        B, H, T, K = q_BHTK.shape
        A = B * k_BGTK.shape[1]
        q_AMTK, k_ATK, v_ATK = q_BHTK.view(A, -1, T, K), k_BGTK.view(A, T, K), v_BGTK.view(A, T, K)
        if k_ATK.dtype != torch.float32:
            k_ATK = calls.centred(k_ATK)

        weights, parts = [], []
        for first, end in blocks_of(T, q_BHTK.dtype):
            q_AnK = q_AMTK[:, :, first:end].flatten(1, 2)
            scores_AnS = torch.bmm(q_AnK, k_ATK[:, :end].transpose(1, 2))
            weights.append(calls.softmax_(scores_AnS, end - first, scale, window))
            parts.append(torch.bmm(weights[-1], v_ATK[:, :end]).view(A, -1, end - first, K))
        ctx.window, ctx.scale = window, scale
        ctx.save_for_backward(q_AMTK, k_ATK, v_ATK, *weights)
        return in_one(parts).view(B, H, T, K)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BHTK: Tensor) -> tuple[Tensor | None, ...]:
        q_AMTK, k_ATK, v_ATK, *weights = ctx.saved_tensors
        (B, H, T, K), dy_AMTK = dy_BHTK.shape, dy_BHTK.reshape(q_AMTK.shape)
        dk_ATK, dv_ATK = torch.empty_like(k_ATK), torch.empty_like(v_ATK)
        parts = []
        for (first, end), p_AnS in zip(reversed(blocks_of(T, dy_BHTK.dtype)), reversed(weights), strict=True):
            q_AnK, dy_AnK = (x_AMTK[:, :, first:end].flatten(1, 2) for x_AMTK in (q_AMTK, dy_AMTK))
            dp_AnS = torch.bmm(dy_AnK, v_ATK[:, :end].transpose(1, 2))
            ds_AnS = calls.softmax_back_(dp_AnS, p_AnS, end - first, ctx.scale, ctx.window)
            parts.append(torch.bmm(ds_AnS, k_ATK[:, :end]).view(len(k_ATK), -1, end - first, K))
            for grad_ATK, a_AnS, b_AnK in ((dk_ATK, ds_AnS, q_AnK), (dv_ATK, p_AnS, dy_AnK)):
                if end == T:  # the last block, which comes first here and reaches all keys
                    torch.bmm(a_AnS.transpose(1, 2), b_AnK, out=grad_ATK)
                else:
                    grad_ATK[:, :end] += torch.bmm(a_AnS.transpose(1, 2), b_AnK)
        dq_BHTK = in_one(parts[::-1]).view(B, H, T, K)
        return dq_BHTK, dk_ATK.view(B, -1, T, K), dv_ATK.view(B, -1, T, K), None, None


def blocks_of(T: int, dtype: torch.dtype) -> list[tuple[int, int]]:
    """The first query of each block, and the one after its last."""
    size = QUERIES[dtype]
    return [(first, min(first + size, T)) for first in range(0, T, size)]


def in_one(parts: list[Tensor]) -> Tensor:
    """Blocks of queries as one tensor."""
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def attend_causally(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, window: int, scale: float | None) -> Tensor:
    """y_BHTK: attention of each position to itself and the ones before it, by the fastest kernel.

    Args:
        scale: of the scores; None: 1 / sqrt(K).
    """
    T, K = q_BHTK.shape[2:]
    if T > FEW_KEYS:
        return attend(q_BHTK, k_BGTK, v_BGTK, None, window=window, scale=scale)
    scale = K**-0.5 if scale is None else scale
    y_BHTK: Tensor = CausalAttention.apply(q_BHTK, k_BGTK, v_BGTK, window if window < T else 0, scale)
    return y_BHTK


def attend_apart(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, documents_BT: Tensor, window: int, scale: float | None
) -> Tensor:
    """`attend_causally`, of each position to those of its own document."""
    return attend(q_BHTK, k_BGTK, v_BGTK, None, documents_BS=documents_BT, window=window, scale=scale)


class AfterAttention(torch.autograd.Function):
    """x1 = x + W_out y, then x1 + W_down max(W_up norm(x1), 0)^2."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        y_BHTK: Tensor,
        out_DC: Tensor,
        up_FD: Tensor,
        down_DF: Tensor,
        weights: tuple[Tensor, Tensor, Tensor],
        eps: float,
    ) -> Tensor:
        out, up, down = weights
        ctx.shape = y_BHTK.shape
        a_NC = y_BHTK.transpose(1, 2).reshape(-1, out.shape[1])
        x_ND = x_BTD.view(-1, x_BTD.shape[-1])
        sum_ND, y_ND, r_N = calls.add_norm(x_ND, torch.mm(a_NC, out.t()), eps)
        h_NF = calls.relu2_(torch.mm(y_ND, up.t()))
        if h_NF.dtype == torch.float32:
            sum_ND.addmm_(h_NF, down.t())
        else:
            calls.add_(sum_ND, torch.mm(h_NF, down.t()))
        ctx.save_for_backward(a_NC, y_ND, r_N, h_NF, out, up, down)
        return sum_ND.view(x_BTD.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_BTD: Tensor) -> tuple[Tensor | None, ...]:
        a_NC, y_ND, r_N, h_NF, out, up, down = ctx.saved_tensors
        B, H, T, K = ctx.shape
        dx_ND = dx_BTD.reshape(-1, dx_BTD.shape[-1])
        dd_ND = dx_ND.to(h_NF.dtype)

        ddown_DF = weight_gradient(dd_ND, h_NF)
        du_NF = calls.relu2_back_(torch.mm(dd_ND, down), h_NF)
        dup_FD = weight_gradient(du_NF, y_ND)
        dx_ND, do_ND = calls.norm_back(dx_ND, torch.mm(du_NF, up), y_ND, r_N, narrow=True)
        dout_DC = weight_gradient(do_ND, a_NC)
        da_BHTK = torch.mm(do_ND, out).view(B, T, H, K).transpose(1, 2)
        return dx_ND.view(dx_BTD.shape), da_BHTK, dout_DC, dup_FD, ddown_DF, None, None
