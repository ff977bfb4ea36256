"""The kernels of decode.c and sample.c as functions of tensors, for one decoding step in float32 on the CPU.

Letters: R rows, D inputs, C outputs, V vocabulary, H heads, G key-value heads, K head_dim, N = H + G.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from isoflop.kernels import calls
from isoflop.kernels.calls import at, at_or_null, function_of, require_memory

# The arguments of each function: p a pointer, l a long, f a float, i an int.
ARGUMENTS = {
    "decode_product": "pppp" + "llll" + "ii",
    "decode_layer_norm": "pppp" + "ll" + "f" + "i",
    "decode_gelu_tanh": "pl" + "i",
    "decode_attend": "pp" + "f" + "pp" + "ii" + "pppppp" + "llllll" + "fi",
    "sample_tokens": "pppppp" + "p" + "ll" + "i",
}
WITH_STATUS = ("decode_attend", "sample_tokens")  # they return 1 if they get no memory, else 0


def product_(y_RC: Tensor, x_RD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, *, add: bool = False) -> Tensor:
    """y = x W^T + b, or y += x W^T + b. A row's bits do not depend on the other rows.

    Args:
        weight_CD: each row has its numbers next to each other.
    """
    (R, D), C = x_RD.shape, len(weight_CD)
    given = (at(x_RD), weight_CD.data_ptr(), at_or_null(bias_C), at(y_RC))
    call("decode_product", *given, R, D, C, weight_CD.stride(0), add)
    return y_RC


def norm_(y_RD: Tensor, x_RD: Tensor, eps: float, gain_D: Tensor | None) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps), times a gain."""
    R, D = x_RD.shape
    scales_R = x_RD.new_empty(R)
    calls.call("norm", torch.float32, at(x_RD), None, None, at(y_RD), at(scales_R), R, D, eps)
    return y_RD if gain_D is None else y_RD.mul_(gain_D)


def layer_norm_(y_RD: Tensor, x_RD: Tensor, eps: float, gain_D: Tensor, bias_D: Tensor | None) -> Tensor:
    """y = (x - mean(x)) / sqrt(variance(x) + eps), times a gain, plus a bias."""
    call("decode_layer_norm", at(x_RD), at(gain_D), at_or_null(bias_D), at(y_RD), *x_RD.shape, eps)
    return y_RD


def gelu_tanh_(x_RF: Tensor) -> Tensor:
    """gelu(x), by its approximation with tanh."""
    call("decode_gelu_tanh", at(x_RF), x_RF.numel())
    return x_RF


def attend_(
    y_RC: Tensor,
    qkv_RC: Tensor,
    keys: Tensor,
    values: Tensor,
    column: int,
    lengths_R: Tensor,
    *,
    heads: int,
    scale: float,
    eps: float | None = None,
    gain_NK: Tensor | None = None,
    angles: tuple[Tensor, Tensor] | None = None,
    interleaved: bool = False,
    added_RC: Tensor | None = None,
    gate_RG: Tensor | None = None,
) -> Tensor:
    """Attention of one new position per row to the last `lengths_R` positions, itself included. First it writes the
    keys and values of the new position to `column` of the cache.

    Args:
        y_RC: gets the result, C = H K.
        qkv_RC: queries, keys and values side by side, C = (H + 2 G) K.
        keys, values: the buffers of a cache, (slots, G, columns, K).
        lengths_R: int64.
        eps: of the norm of queries and keys; None: they have none. gain_NK: its gains.
        angles: cosines (R or 1, K) and sines (R or 1, K / 2) of the rotation; None: there is none.
        added_RC: added to the values, C = G K, times gate_RG.
    """
    R, (G, room, K) = len(qkv_RC), keys.shape[1:]
    cos, sin = angles if angles is not None else (None, None)
    each = cos is not None and len(cos) == R
    one = (at(qkv_RC), at_or_null(gain_NK), -1.0 if eps is None else eps, at_or_null(cos), at_or_null(sin), each)
    two = (interleaved, at_or_null(added_RC), at_or_null(gate_RG), at(keys), at(values), at(y_RC), at(lengths_R))
    require_memory(call("decode_attend", *one, *two, R, heads, G, K, room, column, scale))
    return y_RC


def choose(
    logits_RV: Tensor, drawn_R: Tensor, temperature_R: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor
) -> Tensor:
    """One token per row, (R,) int64. A row's token does not depend on the other rows.

    Args:
        drawn_R: a random number in (0, 1] per row, float64.
        temperature_R, top_k_R, top_p_R, min_p_R: see generate/rules.py; float32, and int64 for top-k.
    """
    R, V = logits_RV.shape
    tokens_R = torch.empty(R, dtype=torch.int64)
    rules = map(at, (temperature_R, top_k_R, top_p_R, min_p_R))
    require_memory(call("sample_tokens", at(logits_RV), *rules, at(drawn_R), at(tokens_R), R, V))
    return tokens_R


def call(name: str, *given: Any) -> Any:
    """Call a function with this process's number of threads."""
    return functions()[name](*given, torch.get_num_threads())


@cache
def functions() -> dict[str, Callable[..., Any]]:
    """The functions of the library by name."""
    return {name: function_of(name, arguments, name in WITH_STATUS) for name, arguments in ARGUMENTS.items()}
