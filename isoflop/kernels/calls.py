"""The kernels of kernels.c as functions of tensors.

Each takes contiguous tensors on the CPU. `dtype` is that of the matrix products, float32 or bfloat16; the residual
stream, scales and losses are float32. A function whose name ends in an underscore writes over its first argument. None
knows of autograd.

Letters: N tokens, D d_model, B batch, T queries, S keys, H heads, G key-value heads, K head_dim, A = B H or B G, C rows
of logits, V vocabulary.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from isoflop.kernels.compiled import library

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

# The arguments of each function of kernels.c: p a pointer, l a long, f a float, i an int.
ARGUMENTS = {
    "norm": "pppppllfi",
    "norm_back": "ppppppll" + "i",
    "add": "ppli",
    "relu2": "pli",
    "relu2_back": "ppli",
    "heads": "pppppppppp" + "lllllfi",
    "heads_back": "pppppppppppppp" + "llllli",
    "softmax": "pllllfi",
    "softmax_back": "ppllllfi",
    "centre": "ppllli",
    "cross_entropy": "pppll" + "fffii",
}
WITH_STATUS = ("softmax", "centre", "cross_entropy")  # they return 1 if they get no memory, else 0
TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "l": ctypes.c_long, "f": ctypes.c_float, "i": ctypes.c_int}


def norm(x_ND: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """y = r x in `dtype`, with r_N = 1 / sqrt(mean(x^2) + eps) in float32."""
    y_ND, r_N = torch.empty_like(x_ND, dtype=dtype), x_ND.new_empty(x_ND.shape[:-1])
    call("norm", dtype, at(x_ND), None, None, at(y_ND), at(r_N), r_N.numel(), x_ND.shape[-1], eps)
    return y_ND, r_N


def add_norm(x_ND: Tensor, added_ND: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x + added in float32, and `norm` of it in the dtype of `added`."""
    sum_ND, y_ND, r_N = torch.empty_like(x_ND), torch.empty_like(added_ND), x_ND.new_empty(x_ND.shape[:-1])
    N, D = r_N.numel(), x_ND.shape[-1]
    call("norm", added_ND.dtype, at(x_ND), at(added_ND), at(sum_ND), at(y_ND), at(r_N), N, D, eps)
    return sum_ND, y_ND, r_N


def norm_back(
    above_ND: Tensor | None, dy_ND: Tensor, y_ND: Tensor, r_N: Tensor, *, narrow: bool = False
) -> tuple[Tensor, Tensor]:
    """above + r (dy - y mean(dy y)): the gradient of `norm` with respect to x, added to that of the residual stream.

    Args:
        narrow: return it in the dtype of `dy` as well; else the second result is the first.
    """
    dx_ND = torch.empty_like(dy_ND, dtype=torch.float32)
    copy_ND = torch.empty_like(dy_ND) if narrow and dy_ND.dtype != torch.float32 else dx_ND
    copy = None if copy_ND is dx_ND else at(copy_ND)
    above = None if above_ND is None else at(above_ND)
    N, D = r_N.numel(), dy_ND.shape[-1]
    call("norm_back", dy_ND.dtype, above, at(dy_ND), at(y_ND), at(r_N), at(dx_ND), copy, N, D)
    return dx_ND, copy_ND


def add_(total: Tensor, more: Tensor) -> Tensor:
    """total += more, of float32 and of any dtype here."""
    call("add", more.dtype, at(total), at(more), total.numel())
    return total


def relu2_(u: Tensor) -> Tensor:
    """max(u, 0)^2."""
    call("relu2", u.dtype, at(u), u.numel())
    return u


def relu2_back_(grad: Tensor, h: Tensor) -> Tensor:
    """2 grad sqrt(h): the gradient of h = max(u, 0)^2 with respect to u."""
    call("relu2_back", grad.dtype, at(grad), at(h), grad.numel())
    return grad


def heads(
    qkv_BTC: Tensor,
    cos_TK: Tensor,
    sin_TK: Tensor,
    H: int,
    G: int,
    eps: float,
    table_BTC: Tensor | None = None,
    gate_BTG: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values split into heads, queries and keys normalised and rotated.

    Args:
        qkv_BTC: side by side, C = (H + 2 G) K.
        cos_TK, sin_TK: as blocks/position.py's Rotary has them, in halves.
        table_BTC: in float32, C = G K; gate * table is added to the values. None: nothing is added.
        gate_BTG: in float32; None: 1.

    Returns:
        q_BHTK, k_BGTK, v_BGTK, and the scales of queries and keys, (B, T, H) and (B, T, G).
    """
    B, T, K = *qkv_BTC.shape[:2], cos_TK.shape[1]
    q_BHTK, rq_BTH = qkv_BTC.new_empty(B, H, T, K), cos_TK.new_empty(B, T, H)
    k_BGTK, rk_BTG = qkv_BTC.new_empty(B, G, T, K), cos_TK.new_empty(B, T, G)
    v_BGTK = qkv_BTC.new_empty(B, G, T, K)
    given = (qkv_BTC, cos_TK, sin_TK, table_BTC, gate_BTG)
    made = (q_BHTK, k_BGTK, v_BGTK, rq_BTH, rk_BTG)
    call("heads", qkv_BTC.dtype, *map(at_or_null, given), *map(at, made), B, T, H, G, K, eps)
    return made


def heads_back(
    grads: tuple[Tensor, Tensor, Tensor],
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    scales: tuple[Tensor, Tensor],
    cos_TK: Tensor,
    sin_TK: Tensor,
    table_BTC: Tensor | None = None,
    gate_BTG: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradient of `heads` with respect to qkv_BTC, table_BTC and gate_BTG.

    Args:
        grads: with respect to its first three results.
        q_BHTK, k_BGTK, scales: its results.
    """
    (B, H, T, K), G = q_BHTK.shape, k_BGTK.shape[1]
    dqkv_BTC = q_BHTK.new_empty(B, T, (H + 2 * G) * K)
    dtable_BTC = None if table_BTC is None else torch.empty_like(table_BTC)
    dgate_BTG = None if gate_BTG is None else torch.empty_like(gate_BTG)
    tensors = (*grads, q_BHTK, k_BGTK, *scales, cos_TK, sin_TK, table_BTC, gate_BTG, dqkv_BTC, dtable_BTC, dgate_BTG)
    call("heads_back", q_BHTK.dtype, *map(at_or_null, tensors), B, T, H, G, K)
    return dqkv_BTC, dtable_BTC, dgate_BTG


def softmax_(scores_ATS: Tensor, T: int, scale: float, window: int = 0) -> Tensor:
    """The causal softmax of scale * scores over the last dimension.

    Args:
        T: queries; rows of several heads may be stacked, so that row i holds query i mod T.
        window: keys that each query sees, itself included; 0: all up to itself.
    """
    rows, S = scores_ATS.numel() // scores_ATS.shape[-1], scores_ATS.shape[-1]
    require_memory(call("softmax", scores_ATS.dtype, at(scores_ATS), rows, T, S, window, scale))
    return scores_ATS


def softmax_back_(grad_ATS: Tensor, p_ATS: Tensor, T: int, scale: float, window: int = 0) -> Tensor:
    """The gradient of `softmax_` with respect to the scores, from that of its result p."""
    rows, S = p_ATS.numel() // p_ATS.shape[-1], p_ATS.shape[-1]
    call("softmax_back", grad_ATS.dtype, at(grad_ATS), at(p_ATS), rows, T, S, window, scale)
    return grad_ATS


def centred(k_ASK: Tensor) -> Tensor:
    """Keys without their mean over the positions S."""
    A, S, K = k_ASK.shape
    result_ASK = torch.empty_like(k_ASK)
    require_memory(call("centre", k_ASK.dtype, at(k_ASK), at(result_ASK), A, S, K))
    return result_ASK


def cross_entropy_(
    logits_CV: Tensor, targets_C: Tensor, losses_C: Tensor, smoothing: float, z: float, cap: float, wanted: bool
) -> None:
    """Writes each row's loss to `losses_C`, see model/cross_entropy.py; if `wanted`, the gradient of their sum with
    respect to the logits over the logits. Rows with a negative target count nothing.

    Args:
        targets_C: int64, below V; the caller checks it.
    """
    (C, V), options = logits_CV.shape, (smoothing, z, cap, wanted)
    given = (at(logits_CV), at(targets_C), at(losses_C))
    require_memory(call("cross_entropy", logits_CV.dtype, *given, C, V, *options))


def product_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of matrix products with x, a part of the residual stream; None if the kernels cannot be used for it."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in DTYPES else None


def at(tensor: Tensor) -> int:
    """The address of a tensor's numbers."""
    assert tensor.is_contiguous(), "a kernel got a tensor whose numbers are not next to each other"
    return tensor.data_ptr()


def at_or_null(tensor: Tensor | None) -> int | None:
    return None if tensor is None else at(tensor)


def call(name: str, dtype: torch.dtype, *given: Any) -> Any:
    """Call a function of kernels.c for a dtype with this process's number of threads."""
    return functions()[name, dtype](*given, torch.get_num_threads())


def require_memory(status: int) -> None:
    if status:
        raise MemoryError("a kernel got no memory for one row of numbers per thread")


@cache
def functions() -> dict[tuple[str, torch.dtype], Callable[..., Any]]:
    """The functions of the library by name and dtype."""
    found = {}
    for name, arguments in ARGUMENTS.items():
        for dtype, suffix in DTYPES.items():
            found[name, dtype] = function_of(f"{name}_{suffix}", arguments, name in WITH_STATUS)
    return found


def function_of(name: str, arguments: str, with_status: bool) -> Callable[..., Any]:
    """A function of the library.

    Args:
        arguments: see ARGUMENTS.
        with_status: whether it returns an int, else nothing.
    """
    function = getattr(library(), name)
    function.argtypes = [TYPES[letter] for letter in arguments]
    function.restype = ctypes.c_int if with_status else None
    return function
