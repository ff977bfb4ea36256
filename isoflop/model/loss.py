"""Next-token cross-entropy that never holds all the logits.

At a vocabulary of 50,257 the logits of one batch outweigh everything else in a step. Here a chunk of tokens at a time
goes through head, softmax and both gradients, and only the gradients of the hidden states and of the head are kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100
CHUNK_LOGITS = 2**19  # 2 MB in float32: on a CPU a chunk that stays in cache is up to twice as fast as all at once
CHUNK_LOGITS_GPU = 2**25  # 128 MB: fewer and larger kernels
SMALLEST_CHUNK = 512  # each chunk adds V x D numbers to the head's gradient: thin ones spend their time on that


def cross_entropy(
    h_BTD: Tensor,
    head_weight_VD: Tensor,
    targets_BT: Tensor,
    *,
    reduction: str = "mean",
    chunk: int = 0,
) -> Tensor:
    """-ln p(target), in nats, from the hidden states and the head's weight.

    Under autocast the products are in autocast's type; the softmax, the loss and the head's gradient are float32. The
    gradients are computed in the forward pass: backward only scales them.

    Args:
        targets_BT: token ids; -100 is not counted.
        reduction: "mean" over the counted tokens (0 if there are none), or "sum".
        chunk: tokens whose logits are held at once; 0: as many as make 2 MB of them (128 MB on a GPU), at least 512.

    Returns:
        A float32 scalar (float64 from float64 states).
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r} is not mean or sum")
    h_ND, targets_N = h_BTD.flatten(0, -2), targets_BT.flatten()
    if chunk == 0:
        room = CHUNK_LOGITS if h_ND.device.type == "cpu" else CHUNK_LOGITS_GPU
        chunk = max(SMALLEST_CHUNK, room // head_weight_VD.shape[0])
    differentiate = torch.is_grad_enabled() and (h_ND.requires_grad or head_weight_VD.requires_grad)
    if differentiate:
        total = ChunkedCrossEntropy.apply(h_ND, head_weight_VD, targets_N, chunk)
    else:
        total, _, _ = forward_backward(h_ND, head_weight_VD, targets_N, chunk, False, False)
    if reduction == "sum":
        return total
    return total / (targets_N != IGNORED).sum().clamp(min=1)


class ChunkedCrossEntropy(torch.autograd.Function):
    """The summed loss, with its gradients made on the way. Backward scales them where they lie, so it runs once."""

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        wants_h, wants_weight = ctx.needs_input_grad[:2]
        total, *ctx.grads = forward_backward(h_ND, weight_VD, targets_N, chunk, wants_h, wants_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("this loss keeps its gradients for one backward; compute it again for another")
        grads, ctx.grads = ctx.grads, None
        scaled = [None if grad is None else grad.mul_(grad_total.to(grad.dtype)) for grad in grads]
        return (*scaled, None, None)


def forward_backward(
    h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int, wants_h: bool, wants_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The summed loss and its gradients by h and by the weight (None where not wanted), `chunk` tokens at a time."""
    device = h_ND.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h_ND.dtype
    exact = torch.promote_types(h_ND.dtype, torch.float32)
    with torch.no_grad(), torch.autocast(device, enabled=False):
        weight = weight_VD.to(product)
        total = torch.zeros((), dtype=exact, device=h_ND.device)
        grad_h_ND = torch.empty_like(h_ND) if wants_h else None
        grad_weight_VD = None  # V x D: with a large vocabulary each pass over it shows, so none is made for nothing
        for first in range(0, len(h_ND), chunk):
            rows = slice(first, first + chunk)
            h_CD, targets_C = h_ND[rows].to(product), targets_N[rows]
            counted_C = targets_C != IGNORED
            index_C1 = targets_C.masked_fill(~counted_C, 0).unsqueeze(1)
            log_p_CV = (h_CD @ weight.T).log_softmax(dim=-1, dtype=exact)
            total -= (log_p_CV.gather(1, index_C1).squeeze(1) * counted_C).sum()
            if not (wants_h or wants_weight):
                continue
            grad_CV = log_p_CV.exp_()  # d loss / d logits = softmax - one-hot
            grad_CV.scatter_add_(1, index_C1, torch.full_like(index_C1, -1, dtype=exact))
            grad_CV = grad_CV.to(product)
            # A token that is not counted is taken out of the narrow factors, which are D wide and not V.
            if grad_h_ND is not None:
                grad_h_ND[rows] = (grad_CV @ weight) * counted_C.unsqueeze(1)
            if wants_weight:
                h_CD = h_CD * counted_C.unsqueeze(1)
                if grad_weight_VD is None:
                    grad_weight_VD = (grad_CV.T @ h_CD).to(exact)
                elif product == exact:
                    grad_weight_VD.addmm_(grad_CV.T, h_CD)
                else:
                    grad_weight_VD += grad_CV.T @ h_CD
    if grad_weight_VD is not None:
        grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
    return total, grad_h_ND, grad_weight_VD
