"""Norms, feed-forward, attention and loss, forward and backward, next to torch's own function for each: a table for
docs/blocks.md.

    python bench/fused.py [--rounds 20] [--threads N] [--width 128 --context 256 --sequences 8 --vocabulary 1024]

The two are timed in turns, and the shortest time of each counts, as the one least disturbed.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.model.blocks.attend import attend
from isoflop.model.blocks.feed_forward import relu2
from isoflop.model.blocks.norm import LayerNorm, RMSNorm
from isoflop.model.cross_entropy import cross_entropy
from isoflop.processors import cores
from isoflop.runtime import describe_machine

Path = Callable[[], Tensor]


def seconds(path: Path) -> float:
    """Seconds of one forward and backward pass, with new gradients."""
    started = time.perf_counter()
    y = path()
    y.backward(torch.ones_like(y))
    return time.perf_counter() - started


def compare(ours: Path, theirs: Path, rounds: int) -> tuple[float, float]:
    """The shortest time of each, in turns, after a round to warm up."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds + 1)][1:]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[1024, 16384])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    B, T, D, K = given.sequences, given.context, given.width, 64
    H = max(1, D // K)
    x = torch.randn(B, T, D, requires_grad=True)
    wide = torch.randn(B, T, 4 * D, requires_grad=True)
    q, k, v = (torch.randn(B, H, T, K, requires_grad=True) for _ in range(3))
    layer, rms, bare = LayerNorm(dim=D), RMSNorm(dim=D), RMSNorm(dim=D, gain=False)
    attention = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    rows: list[tuple[str, str, Path, Path]] = [
        ("layer norm", "F.layer_norm", lambda: layer(x), lambda: F.layer_norm(x, (D,), layer.weight, layer.bias)),
        ("RMS norm", "F.rms_norm", lambda: rms(x), lambda: F.rms_norm(x, (D,), rms.weight, rms.eps)),
        ("RMS norm, no gain", "F.rms_norm", lambda: bare(x), lambda: F.rms_norm(x, (D,), None, bare.eps)),
        ("squared ReLU", "F.relu(x).square()", lambda: relu2(wide), lambda: F.relu(wide).square()),
        ("attention", "F.scaled_dot_product_attention", lambda: attend(q, k, v, None), attention),
    ]
    for V in given.vocabulary:
        head, targets = torch.randn(V, D, requires_grad=True), torch.randint(V, (B, T))
        ours = partial(cross_entropy, x, head, targets)
        theirs = partial(plain_loss, x, head, targets)
        rows.append((f"loss and head, V = {V:,}", "F.cross_entropy(F.linear(...))", ours, theirs))
    machine = describe_machine("cpu")["processor"]
    print(f"{machine}, {given.threads} threads, torch {torch.__version__}; {B} x {T} x {D}, float32\n")
    print("| what | torch's own | ours, ms | torch's, ms | ours / torch's |")
    print("|---|---|---:|---:|---:|")
    for name, call, ours, theirs in rows:
        one, other = compare(ours, theirs, given.rounds)
        print(f"| {name} | `{call}` | {1e3 * one:.2f} | {1e3 * other:.2f} | {one / other:.2f} |", flush=True)


def plain_loss(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, head).flatten(0, 1), targets.flatten())


if __name__ == "__main__":
    main()
