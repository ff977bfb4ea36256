"""Our decoding next to transformers' `generate`: GPT-2's 124M shape, greedy, with a cache, in turns in one run.

    python bench/decode.py [--batches 1 16] [--prompt 64] [--tokens 64] [--rounds 5] [--threads N] [--json]

needs the extra `bench` (transformers). Both continue the same random prompts by the same number of tokens from random
weights (no text comes of it, and no end of text ends it), reading the prompt included. transformers is tried in float32
and bfloat16 and ours is held to the dtype in which it is faster; a dtype more than five times slower than the other in
a short trial is left out, and a line says so. In a round ours, theirs and the machine's read bandwidth take turns (that
of `sum` over 512 MB with the same threads); figures are medians over rounds.

Bytes a token: every weight that it is multiplied by, once a step, and the keys and values held at the middle of what is
written; share: those bytes a second over the read bandwidth of the same round. Our speed in each dtype is
printed as well.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from isoflop.generate.engine import stream_all
from isoflop.generate.layout import lay_out
from isoflop.model.count import parameters
from isoflop.model.gpt import GPT
from isoflop.model.presets import gpt2
from isoflop.processors import cores
from record import record

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HOPELESS = 5.0  # times slower
TRIAL = 4  # tokens

Write = Callable[[torch.Tensor, int], None]  # prompts (B, T), tokens to add to each


def ours(dtype: torch.dtype, device: str = "cpu") -> Write:
    torch.manual_seed(0)
    model = GPT(gpt2()).to(device, dtype)
    lay_out(model)

    def write(prompts_BT: torch.Tensor, tokens: int) -> None:
        written = sum(1 for _ in stream_all(model, prompts_BT.tolist(), tokens, temperature=0.0))
        assert written == len(prompts_BT) * tokens

    return write


def theirs(dtype: torch.dtype, device: str = "cpu") -> Write:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).to(device, dtype).eval()

    def write(prompts_BT: torch.Tensor, tokens: int) -> None:
        seen = torch.ones_like(prompts_BT)
        out = model.generate(
            prompts_BT,
            attention_mask=seen,
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
        )
        assert out.shape[1] == prompts_BT.shape[1] + tokens

    return write


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def bytes_a_step(batch: int, length: float, dtype: torch.dtype) -> float:
    """Read to add one token to each of `batch` sequences of `length`: weights that multiply, and keys and values."""
    config = gpt2()
    held = 2 * config.layers * config.d_model * length
    return dtype.itemsize * (parameters(config).matmul + batch * held)


def hopeful(makers: dict[str, Write], prompts_BT: torch.Tensor) -> list[str]:
    """The dtypes worth a longer look, by a short trial of each."""
    trial: dict[str, float] = {}
    for name, write in makers.items():
        write(prompts_BT, 1)
        trial[name] = seconds(lambda write=write: write(prompts_BT, TRIAL))  # type: ignore[misc]
    fastest = min(trial.values())
    for name, took in trial.items():
        if took > HOPELESS * fastest:
            print(f"batch {len(prompts_BT)}: transformers in {name} left out, {took / fastest:.0f} times slower here")
    return [name for name, took in trial.items() if took <= HOPELESS * fastest]


def measure(batch: int, given: argparse.Namespace, peers: dict[str, Write], own: dict[str, Write]) -> dict[str, Any]:
    prompts_BT = torch.randint(50_257, (batch, given.prompt))
    tried = hopeful(peers, prompts_BT)
    memory = torch.ones(2**27)
    turns: dict[str, Callable[[], object]] = {"read": memory.sum}
    for name in tried:
        turns[f"theirs {name}"] = lambda name=name: peers[name](prompts_BT, given.tokens)  # type: ignore[misc]
        turns[f"ours {name}"] = lambda name=name: own[name](prompts_BT, given.tokens)  # type: ignore[misc]
    took: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(given.rounds + 1):
        for name, call in turns.items():
            if name != "read":
                took[name].append(seconds(call))
            else:  # several passes: one is short
                took[name].append(statistics.median(seconds(call) for _ in range(5)))
        if number == 0:  # warms up
            took = {name: [] for name in turns}
    dtype = min(tried, key=lambda name: statistics.median(took[f"theirs {name}"]))
    rate = 4 * memory.numel() / statistics.median(took["read"])
    size = bytes_a_step(batch, given.prompt + given.tokens / 2, DTYPES[dtype])
    us, them = took[f"ours {dtype}"], took[f"theirs {dtype}"]
    row = {
        "batch": batch,
        "dtype": dtype,
        "prompt": given.prompt,
        "tokens": given.tokens,
        "threads": given.threads,
        "ours_tokens_per_second": batch * given.tokens / statistics.median(us),
        "theirs_tokens_per_second": batch * given.tokens / statistics.median(them),
        "ratio": statistics.median(b / a for a, b in zip(us, them, strict=True)),
        "read_bytes_per_second": rate,
        "bytes_a_step": size,
        "share_of_read_bandwidth": statistics.median(
            size * given.tokens / mine * read / (4 * memory.numel())
            for mine, read in zip(us, took["read"], strict=True)
        ),
        "by_dtype": {
            who: {
                name: batch * given.tokens / statistics.median(took[f"{who} {name}"])
                for name in DTYPES
                if f"{who} {name}" in took
            }
            for who in ("ours", "theirs")
        },
        "seconds": took,
    }
    print(
        f"batch {batch:>2}  {dtype}  ours {row['ours_tokens_per_second']:7.1f} tok/s  transformers "
        f"{row['theirs_tokens_per_second']:7.1f} tok/s  ratio {row['ratio']:.2f}  {size / 1e6:.0f} MB a step at "
        f"{row['share_of_read_bandwidth']:.2f} of {rate / 1e9:.1f} GB/s; ours "
        + ", ".join(f"{value:.1f} in {name}" for name, value in row["by_dtype"]["ours"].items()),
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=64, help="tokens that are read first")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument(
        "--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="tried for transformers"
    )
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/decode.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    peers = {name: theirs(DTYPES[name]) for name in given.dtypes}
    own = {name: ours(DTYPES[name]) for name in given.dtypes}
    rows = [measure(batch, given, peers, own) for batch in given.batches]
    if given.json:
        record("decode", {"rows": rows}, {"transformers": version("transformers")})


if __name__ == "__main__":
    main()
