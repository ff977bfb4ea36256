"""Next-token cross-entropy that never holds all logits.

At a vocabulary of 50,257 the logits of one batch take more memory than everything else in a step. Here the head, the
softmax and both gradients are computed for one chunk of tokens at a time, and only the gradients of the hidden states
and of the head are kept.

Letters: B batch, T time, N = B T tokens, C tokens of one chunk, D d_model, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isoflop.kernels import calls

IGNORED = -100
CHUNK_LOGITS = 2**19  # 2 MB in float32: on a CPU a chunk that stays in cache is up to twice as fast as all at once
# On a GPU each chunk costs one more pass over the head's gradient, V x D numbers in float32. 5,000 tokens of GPT-2's
# vocabulary have this many logits, 0.5 GB in bfloat16.
CHUNK_LOGITS_GPU = 2**28
WIDE_LOGITS = 2**21  # logits of a narrower dtype that are converted to float32 at once on a CPU: 8 MB
KERNEL_CHUNK, KERNEL_LOGITS, KERNEL_VOCABULARY = 128, 2**18, 8192  # see chunk_for_kernels
SMALLEST_CHUNK = 512  # each chunk adds V x D numbers to the head's gradient, which would dominate small chunks


@dataclass(frozen=True)
class LossOptions:
    """Terms added to plain cross-entropy, and how it is computed.

    Attributes:
        smoothing: e of -(1 - e) ln p(target) - e mean_v ln p(v).
        z: coefficient of the added term (ln sum_v exp(logit_v))^2.
        cap: logit soft cap: each logit s becomes cap tanh(s / cap) first; 0 disables it.
        chunk: tokens per chunk; 0: `chunk_for` decides.
        compiled: use one compiled kernel between the matrix products, if gradients are wanted.
        kernels: use the kernels of isoflop/kernels there, on a CPU, if gradients are wanted.
    """

    smoothing: float = 0.0
    z: float = 0.0
    cap: float = 0.0
    chunk: int = 0
    compiled: bool = False
    kernels: bool = False


PLAIN = LossOptions()


class HasHead(Protocol):
    """The interface of a model to a loss."""

    @property
    def head_weight(self) -> Tensor: ...

    @property
    def logit_cap(self) -> float: ...


def head_loss(
    model: HasHead, h_BTD: Tensor, targets_BT: Tensor, options: LossOptions = PLAIN, *, reduction: str = "mean"
) -> Tensor:
    """`cross_entropy` of h_BTD with a model's head weight and logit soft cap."""
    options = replace(options, cap=model.logit_cap)
    return cross_entropy(h_BTD, model.head_weight, targets_BT, options, reduction=reduction)


def cross_entropy(
    h_BTD: Tensor, head_weight_VD: Tensor, targets_BT: Tensor, options: LossOptions = PLAIN, *, reduction: str = "mean"
) -> Tensor:
    """-ln p(target), in nats, from the hidden states and the head's weight.

    Under autocast the matrix products are in autocast's dtype; the softmax, the loss and the head's gradient are
    float32. The gradients are computed in the forward pass; the backward pass only scales them.

    Args:
        targets_BT: token ids; -100 is not counted.
        reduction: "mean" over the counted tokens (0 if there are none), or "sum".

    Returns:
        A float32 scalar (float64 from float64 states).
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r} is not mean or sum")

    h_ND, targets_N = h_BTD.flatten(0, -2), targets_BT.flatten()
    if torch.is_grad_enabled() and (h_ND.requires_grad or head_weight_VD.requires_grad):
        total = ChunkedCrossEntropy.apply(h_ND, head_weight_VD, targets_N, options)
    else:
        total, _, _ = forward_backward(h_ND, head_weight_VD, targets_N, options, (False, False))

    if reduction == "sum":
        return total
    return total / (targets_N != IGNORED).sum().clamp(min=1)


def chunk_for(tokens: int, vocabulary: int, device: str) -> int:
    """Tokens per chunk, at least 512: on a CPU 2 MB of logits in float32, on other devices at most 2^28 logits, and
    chunks of equal size if that needs few more of them."""
    if device == "cpu":
        return max(SMALLEST_CHUNK, CHUNK_LOGITS // vocabulary)
    fewest = max(1, -(-tokens // max(SMALLEST_CHUNK, CHUNK_LOGITS_GPU // vocabulary)))
    return -(-tokens // next((n for n in range(fewest, 2 * fewest) if tokens % n == 0), fewest)) or SMALLEST_CHUNK


def chunk_for_kernels(tokens: int, vocabulary: int, product: torch.dtype) -> int:
    """Tokens per chunk for the kernels. In float32 the products of 128 rows are up to 1.5 times as fast as those of
    512, as their logits stay in a core's own cache; narrower ones add a copy of the head's gradient per chunk, and in
    large vocabularies that gradient is what leaves the cache."""
    if product == torch.float32 and vocabulary <= KERNEL_VOCABULARY:
        return max(KERNEL_CHUNK, KERNEL_LOGITS // vocabulary)
    return chunk_for(tokens, vocabulary, "cpu")


class ChunkedCrossEntropy(torch.autograd.Function):
    """The summed loss, with gradients computed in the forward pass. Backward scales them in place, so it runs once."""

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, options: LossOptions) -> Tensor:
        wants_h, wants_weight = ctx.needs_input_grad[:2]
        total, *ctx.grads = forward_backward(h_ND, weight_VD, targets_N, options, (wants_h, wants_weight))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("this loss keeps its gradients for one backward pass; compute it again for another")
        grads, ctx.grads = ctx.grads, None
        scaled = [None if grad is None else grad.mul_(grad_total.to(grad.dtype)) for grad in grads]
        return (*scaled, None, None)


def forward_backward(
    h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, options: LossOptions, wants: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The summed loss and its gradients with respect to h and the weight; each is None unless `wants` requests it."""
    wants_h, wants_weight = wants
    device = h_ND.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h_ND.dtype
    exact = torch.promote_types(h_ND.dtype, torch.float32)
    if options.kernels and any(wants) and device == "cpu" and exact == torch.float32 and product in calls.DTYPES:
        chunk = options.chunk or chunk_for_kernels(len(h_ND), len(weight_VD), product)
        return forward_backward_by_kernels(h_ND, weight_VD, targets_N, replace(options, chunk=chunk), wants, product)
    chunk = options.chunk or chunk_for(len(h_ND), len(weight_VD), device)
    kernel = compiled_kernel() if options.compiled and any(wants) else eager_kernel

    with torch.no_grad(), torch.autocast(device, enabled=False):
        weight = weight_VD.to(product)
        total = torch.zeros((), dtype=exact, device=h_ND.device)
        grad_h_ND = torch.empty_like(h_ND) if wants_h else None
        grad_weight_VD = None  # V x D, so passes over it are slow: the first chunk creates it, which saves zeroing

        for first in range(0, len(h_ND), chunk):
            rows = slice(first, first + chunk)
            h_CD, targets_C = h_ND[rows].to(product), targets_N[rows]
            counted_C = targets_C != IGNORED
            index_C1 = targets_C.masked_fill(~counted_C, 0).unsqueeze(1)
            loss, grad_CV = kernel(h_CD @ weight.T, index_C1, counted_C, exact, options, any(wants))
            total += loss
            if grad_CV is None:
                continue

            # Tokens that are not counted are masked in the factors of width D, not in those of width V.
            if grad_h_ND is not None:
                grad_h_ND[rows] = (grad_CV @ weight) * counted_C.unsqueeze(1)
            if wants_weight:
                h_CD = h_CD * counted_C.unsqueeze(1)
                if grad_weight_VD is None:
                    grad_weight_VD = (grad_CV.T @ h_CD).to(exact)
                elif product == exact:
                    grad_weight_VD.addmm_(grad_CV.T, h_CD)
                else:
                    add_narrower(grad_weight_VD, grad_CV.T @ h_CD)

    if grad_weight_VD is not None:
        grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
    return total, grad_h_ND, grad_weight_VD


def forward_backward_by_kernels(
    h_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    options: LossOptions,
    wants: tuple[bool, bool],
    product: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`forward_backward` with a compiled kernel between the matrix products, which reads each row of logits once and
    writes its gradient over it; rows that are not counted get a gradient of zeros.

    Raises:
        IndexError: for a target that is not an id.
    """
    wants_h, wants_weight = wants
    N, V = len(h_ND), len(weight_VD)
    low, high = targets_N.masked_fill(targets_N == IGNORED, 0).aminmax() if N else (torch.tensor(0), torch.tensor(0))
    if not 0 <= int(low) <= int(high) < V:
        raise IndexError(f"a target is {int(low if low < 0 else high)}, which is not an id from 0 to {V - 1}")

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        weight, h = weight_VD.to(product), h_ND.to(product)
        losses_N = torch.empty(N)
        logits = h.new_empty(min(options.chunk, N), V)
        grad_h_ND = torch.empty_like(h) if wants_h else None
        grad_weight_VD = None

        for first in range(0, N, options.chunk):
            rows = slice(first, first + options.chunk)
            h_CD = h[rows]
            logits_CV = torch.mm(h_CD, weight.t(), out=logits[: len(h_CD)])
            calls.cross_entropy_(
                logits_CV, targets_N[rows], losses_N[rows], options.smoothing, options.z, options.cap, wanted=True
            )
            if grad_h_ND is not None:
                torch.mm(logits_CV, weight, out=grad_h_ND[rows])
            if not wants_weight:
                continue
            if grad_weight_VD is None:
                grad_weight_VD = torch.mm(logits_CV.t(), h_CD).float()
            elif product == torch.float32:
                grad_weight_VD.addmm_(logits_CV.t(), h_CD)
            else:
                calls.add_(grad_weight_VD, torch.mm(logits_CV.t(), h_CD))

    grad_h_ND = None if grad_h_ND is None else grad_h_ND.to(h_ND.dtype)
    grad_weight_VD = None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype)
    return losses_N.sum(), grad_h_ND, grad_weight_VD


def eager_kernel(
    logits_CV: Tensor,
    index_C1: Tensor,
    counted_C: Tensor,
    exact: torch.dtype,
    options: LossOptions,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Everything between the matrix products of a chunk: the summed loss in dtype `exact`, and its gradient with
    respect to the logits, written over them. On a CPU narrower logits are converted to `exact` some rows at a time, so
    that no tensor is larger than the logits."""
    rows = rows_widened(logits_CV, exact)
    total = torch.zeros((), dtype=exact, device=logits_CV.device)
    for few_CV, few_C1, few_C in zip(*(x.split(rows) for x in (logits_CV, index_C1, counted_C)), strict=True):
        loss, grad_CV = rows_kernel(few_CV, few_C1, few_C, exact, options, wants_gradient)
        total += loss
        if grad_CV is not None and grad_CV is not few_CV:
            few_CV.copy_(grad_CV)
    return total, logits_CV if wants_gradient else None


def rows_kernel(
    logits_CV: Tensor,
    index_C1: Tensor,
    counted_C: Tensor,
    exact: torch.dtype,
    options: LossOptions,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """`eager_kernel` for rows that are converted together; the gradient is in dtype `exact`."""
    smoothing, z, cap = options.smoothing, options.z, options.cap

    tanh_CV = None
    if cap:  # tanh(x) = 2 sigmoid(2 x) - 1, and torch's sigmoid takes a third of its tanh's time
        tanh_CV = logits_CV.to(exact).mul_(2 / cap).sigmoid_().mul_(2).sub_(1)
        logits_CV = tanh_CV * cap

    logit_C1 = logits_CV.gather(1, index_C1).to(exact) if z else None
    log_p_CV = log_softmax_over(logits_CV, exact)
    log_p_C1 = log_p_CV.gather(1, index_C1)
    log_Z_C1 = logit_C1 - log_p_C1 if logit_C1 is not None else None

    loss_C = -(1 - smoothing) * log_p_C1.squeeze(1)
    if smoothing:
        loss_C -= smoothing * log_p_CV.mean(1)
    if log_Z_C1 is not None:
        loss_C += z * log_Z_C1.square().squeeze(1)
    loss = (loss_C * counted_C).sum()
    if not wants_gradient:
        return loss, None

    # d loss / d logits = softmax - target distribution, and softmax * 2 z ln Z
    grad_CV = log_p_CV.exp_()
    if log_Z_C1 is not None:
        grad_CV *= 1 + 2 * z * log_Z_C1
    if smoothing:
        grad_CV -= smoothing / grad_CV.shape[1]
    grad_CV.scatter_add_(1, index_C1, torch.full_like(index_C1, smoothing - 1, dtype=exact))
    if tanh_CV is not None:  # d cap tanh(s / cap) / d s = 1 - tanh^2
        grad_CV.addcmul_(grad_CV, tanh_CV.square_(), value=-1)
    return loss, grad_CV


def traceable_kernel(
    logits_CV: Tensor,
    index_C1: Tensor,
    counted_C: Tensor,
    exact: torch.dtype,
    options: LossOptions,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """`eager_kernel` written for a compiler: without in-place operations and scatters, so that it becomes one kernel
    which reads the logits twice and writes their gradient once."""
    smoothing, z, cap = options.smoothing, options.z, options.cap

    wide_CV, V = logits_CV.to(exact), logits_CV.shape[1]
    if cap:
        wide_CV = cap * (wide_CV / cap).tanh()
    log_Z_C1 = wide_CV.logsumexp(1, keepdim=True)
    logit_C1 = wide_CV.gather(1, index_C1)
    loss_C1 = log_Z_C1 - (1 - smoothing) * logit_C1 + z * log_Z_C1.square()
    if smoothing:
        loss_C1 = loss_C1 - smoothing * wide_CV.mean(1, keepdim=True)

    grad_CV = (wide_CV - log_Z_C1).exp() * (1 + 2 * z * log_Z_C1) - smoothing / V
    is_target_CV = torch.arange(V, device=logits_CV.device) == index_C1
    grad_CV = grad_CV - is_target_CV.to(exact) * (1 - smoothing)
    if cap:
        grad_CV = grad_CV * (1 - (wide_CV / cap).square())
    return (loss_C1.squeeze(1) * counted_C).sum(), grad_CV.to(logits_CV.dtype)


@cache
def compiled_kernel() -> Any:
    """`traceable_kernel`, compiled once per process."""
    return torch.compile(traceable_kernel, dynamic=False)


def log_softmax_over(logits_CV: Tensor, exact: torch.dtype) -> Tensor:
    """log_softmax(logits) in dtype `exact`, in place if the logits have that dtype and are on a CPU: at a large
    vocabulary no tensor is larger. (torch's CPU kernel reads a row's maximum and sum before it writes the row.)"""
    if logits_CV.dtype != exact or logits_CV.device.type != "cpu":
        return logits_CV.log_softmax(dim=-1, dtype=exact)
    return torch.log_softmax(logits_CV, dim=-1, out=logits_CV)


def add_narrower(total_VD: Tensor, more_VD: Tensor) -> None:
    """total += more, of a narrower dtype. torch would convert all of it first, so a CPU adds some rows at a time."""
    rows = rows_widened(more_VD, total_VD.dtype)
    for total_rows_VD, more_rows_VD in zip(total_VD.split(rows), more_VD.split(rows), strict=True):
        total_rows_VD += more_rows_VD


def rows_widened(narrow_CV: Tensor, wide: torch.dtype) -> int:
    """The number of rows to convert at once: all, but on a CPU at most WIDE_LOGITS numbers."""
    if narrow_CV.dtype == wide or narrow_CV.device.type != "cpu":
        return len(narrow_CV)
    return max(1, WIDE_LOGITS // narrow_CV.shape[1])
