"""The machine's two ceilings: FLOP/s of matrix products, and memory bandwidth.

    python bench/ceilings.py [--json]

Matrix products: the best of 20 calls per size, for squares from 512 to 4096 and the shapes of a training step, in
float32, and in bfloat16 if the processor has units for it (elsewhere such a product takes a hundred times as long, and
only the first is measured). Memory: the best of 20 passes over arrays of 256 MB, far larger than any cache: a copy, the
sum of two arrays into a third, and reading alone. Bytes are those that the program reads and writes; a cache's own
reads before writing are not counted.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from isoflop.runtime import Runtime
from record import record
from shapes import SIZES, Size

CALLS = 20
SQUARES = (512, 1024, 2048, 4096)
HOPELESS = 0.5  # of float32's speed: without units for it bfloat16 has a hundredth to a tenth
ARRAY = 2**26  # numbers, 256 MB
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def best_seconds(call: Callable[[], object], calls: int = CALLS) -> float:
    call()
    best = float("inf")
    for _ in range(calls):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def product(n: int, k: int, m: int, dtype: torch.dtype, calls: int = CALLS, device: str = "cpu") -> float:
    """FLOP/s of (n, k) x (k, m), with the second matrix stored like a weight, (m, k)."""
    a, b = torch.randn(n, k, device=device).to(dtype), torch.randn(m, k, device=device).to(dtype)
    out = torch.empty(n, m, dtype=dtype, device=device)
    runtime = Runtime(torch.device(device), dtype)

    def call() -> None:
        torch.mm(a, b.T, out=out)
        runtime.synchronize()

    return 2.0 * n * k * m / best_seconds(call, calls)


def shapes_of(size: Size) -> list[tuple[int, int, int]]:
    """(n, k, m) of the matrix products of a forward pass; the head's for one chunk of the loss."""
    n, d = size.tokens, size.d_model
    return [(n, d, d), (n, d, 4 * d), (n, 4 * d, d), (min(n, 512), d, size.vocabulary)]


def peaks(
    shapes: Iterable[tuple[int, int, int]], squares: Iterable[int] = SQUARES, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """FLOP/s by dtype and shape; a dtype without units has only its first shape."""
    found: dict[str, dict[str, float]] = {}
    for name, dtype in DTYPES.items():
        found[name] = {}
        for n, k, m in [*((s, s, s) for s in squares), *shapes]:
            calls = CALLS
            if name != "float32" and not found[name]:
                calls = 1
            found[name][f"{n}x{k}x{m}"] = product(n, k, m, dtype, calls, device)
            if max(found[name].values()) < HOPELESS * max(found["float32"].values()):
                break
    return found


def units_for(peak: dict[str, dict[str, float]], dtype: str) -> bool:
    """Whether this processor has units for a dtype, judged by speed."""
    return max(peak[dtype].values()) >= HOPELESS * max(peak["float32"].values())


def bandwidth() -> dict[str, float]:
    """Bytes per second by kind of memory access."""
    a, b, c = torch.zeros(ARRAY), torch.ones(ARRAY), torch.empty(ARRAY)
    size = a.element_size() * ARRAY
    return {
        "copy": 2 * size / best_seconds(lambda: c.copy_(a)),
        "add": 3 * size / best_seconds(lambda: torch.add(a, b, out=c)),
        "read": size / best_seconds(lambda: a.sum()),
    }


def ceilings() -> dict[str, Any]:
    shapes = {name: shapes_of(size) for name, size in SIZES.items()}
    peak = peaks(dict.fromkeys(shape for some in shapes.values() for shape in some))
    return {"gemm_flops_per_second": peak, "bytes_per_second": bandwidth()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/")
    given = parser.parse_args()
    found = ceilings()
    for dtype, by_shape in found["gemm_flops_per_second"].items():
        for shape, flops in by_shape.items():
            print(f"{dtype:9} {shape:>16} {flops / 1e9:8.1f} GFLOP/s")
        if dtype != "float32" and not units_for(found["gemm_flops_per_second"], dtype):
            print(f"{dtype:9} left out from here on: this processor has no units for it")
    for name, rate in found["bytes_per_second"].items():
        print(f"memory    {name:>16} {rate / 1e9:8.1f} GB/s")
    if given.json:
        record("ceilings", found)


if __name__ == "__main__":
    main()
