"""Where the time of a training step goes, part by part, next to the least that the machine's two ceilings allow.

    python bench/where.py [--sizes S M L] [--dtype float32] [--steps 1] [--threads N] [--json]

For each part of a step: its time (each operation's own time by torch.profiler), its FLOPs and its bytes, both counted
from the inputs and outputs of every operation (TorchDispatchMode), and the time that it would take at the machine's
ceilings (ceilings.py, in the same run): FLOPs over the best matrix product, or bytes over the best memory bandwidth,
whichever is longer. A part whose data fit in a cache can be faster than that.

FLOPs are those of matrix products: 2 n k m each; attention without its masked part, and without what its backward pass
recomputes (the convention "executed" of model/count.py). Time that belongs to no operation is that of Python, autograd
and the dispatcher.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ceilings import DTYPES, bandwidth, peaks, shapes_of
from isoflop.allocator import keep_freed_memory
from isoflop.model.config import ModelConfig
from isoflop.model.count import flops_per_token
from isoflop.model.gpt import GPT
from isoflop.optim.build import build
from isoflop.optim.config import OptimConfig
from isoflop.processors import cores
from isoflop.runtime import Runtime, seed_everything
from isoflop.trainer.step import take_step
from isoflop.trainer.task import CausalLM
from record import record
from shapes import SIZES, Size, nanogpt_model

# part -> prefixes of the names of its operations; the first match counts
PARTS = {
    "products": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("_scaled_dot_product", "scaled_dot_product", "_softmax", "softmax"),
    "norm": ("native_layer_norm", "rsqrt"),
    "activation": ("gelu", "relu", "silu", "addcmul"),
    "loss": ("_log_softmax", "log_softmax", "exp", "gather", "scatter_add", "masked_fill", "ne", "ChunkedCrossEntropy"),
    "update": ("_fused_adamw", "Optimizer.step", "_foreach_lerp", "stack"),
    "clip": ("linalg_vector_norm", "_foreach_norm", "_foreach_mul", "reciprocal", "clamp"),
    "embedding": ("embedding", "index_select"),
    "sums and copies": (
        "add",
        "mul",
        "copy",
        "fill",
        "zero",
        "cat",
        "sum",
        "div",
        "neg",
        "sub",
        "mean",
        "clone",
        "ones",
    ),
}
REST = "Python and dispatch"
VIEWS = (  # operations that compute nothing
    *("view", "t", "transpose", "as_strided", "_unsafe_view", "expand", "slice", "select", "split", "split_with_sizes"),
    *("detach", "alias", "permute", "unsqueeze", "squeeze", "unbind", "unflatten", "resolve_conj", "is_same_size"),
    *("empty", "empty_like", "empty_strided", "new_empty", "_local_scalar_dense"),
)


def part_of(name: str) -> str:
    """The part that an operation belongs to, by its name with or without "aten::"."""
    bare = name.removeprefix("aten::")
    if bare in VIEWS or bare.startswith("autograd::") or "Backward" in bare:
        return REST
    return next((part for part, starts in PARTS.items() if bare.startswith(starts)), REST)


class Counted(TorchDispatchMode):
    """Sums FLOPs and bytes of all operations that run under it, by part."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            part = part_of(name)
            self.calls[part] += 1
            self.bytes[part] += sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
            self.operations[part] += operations(name, args)
        return out


def operations(name: str, args: Any) -> float:
    """The FLOPs of the matrix products in one operation."""
    if name in ("mm", "bmm"):
        a, b = args[:2]
        return 2 * a.numel() * b.shape[-1]
    if name in ("addmm", "addmm_", "baddbmm", "baddbmm_"):
        _, a, b = args[:3]
        return 2 * a.numel() * b.shape[-1]
    if name.startswith("_scaled_dot_product"):
        q = args[1] if name.endswith("backward") else args[0]  # causal: (T + 1) / 2 of T keys on average
        forward = 4 * q.numel() * (q.shape[-2] + 1) / 2
        return 2 * forward if name.endswith("backward") else forward
    return 0


def make(config: ModelConfig, size: Size, dtype: torch.dtype) -> Callable[[], None]:
    """A whole step on random tokens, without the loop around it."""
    seed_everything(0)
    model, task = GPT(config), CausalLM()
    optimizers = build(model, OptimConfig(name="adamw", lr=1e-4), torch.float32)
    runtime = Runtime(torch.device("cpu"), dtype)
    tokens = torch.randint(config.vocab_size, (size.batch, config.context + 1))
    batch = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def step() -> None:
        loss, _ = take_step(model, optimizers, task, batch, micro=size.batch, runtime=runtime, clip=1.0, scale=1.0)
        float(loss)

    return step


def timed(step: Callable[[], None], steps: int) -> float:
    """Seconds per step, the median of five turns; with one thread processor seconds, independent of other programs."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    turns = []
    for _ in range(5):
        started = clock()
        for _ in range(steps):
            step()
        turns.append((clock() - started) / steps)
    return statistics.median(turns)


def watched(step: Callable[[], None], steps: int) -> tuple[Counter[str], float]:
    """Seconds per step of each part's operations, and of the whole step, under the profiler."""
    started = time.perf_counter()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as watch:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        whole = (time.perf_counter() - started) / steps
    own: Counter[str] = Counter()
    for event in watch.key_averages():
        part = part_of(event.key)
        if part != REST:
            own[part] += event.self_cpu_time_total / 1e6 / steps
    return own, whole


def measure(name: str, given: argparse.Namespace, peak: float, memory: float) -> dict[str, Any]:
    size = SIZES[name]
    config = nanogpt_model(size)
    step = make(config, size, DTYPES[given.dtype])
    for _ in range(2):
        step()
    with Counted() as counted:
        step()
    repeat = given.steps * max(1, size.steps // 4)
    seconds = timed(step, max(1, repeat // given.steps))
    own, whole = watched(step, repeat)
    own[REST] = max(0.0, whole - sum(own.values()))
    parts = [
        {
            "part": part,
            "seconds": round(seconds * own[part] / whole, 7),
            "share": round(own[part] / whole, 4),
            "operations": counted.operations[part],
            "bytes": counted.bytes[part],
            "calls": counted.calls[part],
            "seconds_at_ceiling": round(max(counted.operations[part] / peak, counted.bytes[part] / memory), 7),
        }
        for part in (*PARTS, REST)
    ]
    flops = flops_per_token(config, convention="executed") * size.tokens
    return {
        "size": name,
        "shape": str(size),
        "seconds_per_step": round(seconds, 6),
        "watched_seconds_per_step": round(whole, 6),
        "flops_per_step": flops,
        "peak_share": round(flops / seconds / peak, 4),
        "parts": parts,
    }


def show(row: dict[str, Any]) -> None:
    print(
        f"\n{row['size']}  {row['shape']}: {1e3 * row['seconds_per_step']:.1f} ms per step, "
        f"{row['flops_per_step'] / 1e9:.2f} GFLOP, {row['peak_share']:.0%} of peak"
    )
    for part in row["parts"]:
        print(
            f"  {part['part']:20} {1e3 * part['seconds']:9.2f} ms {part['share']:>6.1%}  {part['calls']:5} operations "
            f"{part['operations'] / 1e9:9.2f} GFLOP {part['bytes'] / 1e6:9.1f} MB  "
            f"at the ceiling {1e3 * part['seconds_at_ceiling']:9.2f} ms",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="dtype of the matrix products")
    parser.add_argument("--steps", type=int, default=1, help="steps under the profiler (times ten at S)")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/")
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    shapes = dict.fromkeys(shape for name in given.sizes for shape in shapes_of(SIZES[name]))
    peak = max(peaks(shapes, (512, 1024, 2048))[given.dtype].values())
    memory = max(bandwidth().values())
    products = f"{peak / 1e9:.1f} GFLOP/s in {given.dtype} matrix products"
    print(f"{given.threads} threads: {products}, {memory / 1e9:.1f} GB/s of memory")
    rows = []
    for name in given.sizes:
        rows.append(measure(name, given, peak, memory))
        show(rows[-1])
    if given.json:
        about = {"threads": given.threads, "dtype": given.dtype, "flops_per_second": peak, "bytes_per_second": memory}
        record("where" if given.dtype == "float32" else f"where-{given.dtype}", {**about, "rows": rows})


if __name__ == "__main__":
    main()
