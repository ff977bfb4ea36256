"""Our own step at the shapes of a plan, before and after: tokens per second and operations, by part.

    python bench/paths.py [--previous CHECKOUT] [--sizes 3x96 2x128 ...] [--dtypes float32 bfloat16] [--threads 2]
                          [--rounds 7] [--tokens 262144] [--processor] [--json]

Each way is a process of its own, and they take turns: `torch`, the step of torch's operations between the matrix
products; `blocks`, the fused blocks and the final norm (model/fused.py); `loss`, the head's kernel
(model/cross_entropy.py); `all`, as `runtime.kernels=compiled` trains; and with --previous another checkout's step.
The ratio is the median over rounds of the time of `torch` over a way's; with --previous, of that checkout's.

Seconds of the clock, on a quiet machine. On a busy one use --processor and --threads 1: then they are those of the
process, whose caches are still shared with others. "Operations" are calls of torch's operations that compute something
and of kernels, in one step, and depend on no load.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from isoflop.model.presets import modern
from isoflop.optim.config import OptimConfig
from isoflop.processors import cores
from isoflop.trainer.config import BatchConfig, RunConfig, RuntimeConfig
from isoflop.trainer.throughput import TimedStep, make_step
from record import commit, record
from shapes import PLANNED
from turns import Turns, take_turns
from where import Counted

WAYS: dict[str, tuple[str, ...]] = {
    "torch": (),
    "blocks": ("blocks",),
    "loss": ("loss",),
    "all": ("blocks", "loss"),
}


def whole_step(name: str, dtype: str, threads: int) -> RunConfig:
    """The configuration of a planned size, with torch's operations."""
    size = PLANNED[name]
    return RunConfig(
        model=modern(
            layers=size.layers,
            d_model=size.d_model,
            heads=size.heads,
            context=size.context,
            vocab_size=size.vocabulary,
        ),
        batch=BatchConfig(sequences=size.batch),
        optim=OptimConfig(),
        runtime=RuntimeConfig(device="cpu", dtype=dtype, threads=threads),
    )


def use(step: TimedStep, parts: Sequence[str]) -> None:
    """Let a step use some of the compiled parts."""
    if "blocks" in parts:
        from isoflop.model.fused import fuse  # an earlier checkout has none

        assert fuse(step.model) == len(step.model.blocks)
    if "loss" in parts:
        step.task.use_kernels()


def operations(name: str, dtype: str, parts: Sequence[str]) -> int:
    """The operations of one step that compute something: torch's, and calls of kernels."""
    from isoflop.kernels import calls

    step = make_step(whole_step(name, dtype, 1))
    use(step, parts)
    step()
    counted, call, count = Counted(), calls.call, 0

    def counting(*given: Any) -> Any:
        nonlocal count
        count += 1
        return call(*given)

    calls.call = counting
    try:
        with counted:
            step()
    finally:
        calls.call = call
    return sum(counted.calls.values()) + count


def measure(name: str, dtype: str, given: argparse.Namespace) -> dict[str, Any]:
    size = PLANNED[name]
    common = {"trainer": "parts", "size": name, "dtype": dtype}
    specs: dict[str, dict[str, Any]] = {way: {**common, "uses": WAYS[way]} for way in given.ways}
    environment = {"OMP_NUM_THREADS": str(given.threads)}
    environments = dict.fromkeys(specs, environment)
    base = given.ways[0]
    if given.previous:
        base = "previous"
        specs["previous"] = {**common, "uses": ()}
        environments["previous"] = {**environment, "PYTHONPATH": str(given.previous.resolve())}
    with tempfile.TemporaryDirectory() as scratch:
        steps = max(1, given.tokens // size.tokens)
        done, missing = take_turns(specs, steps, given.rounds, Path(scratch), environments)
    if missing:
        raise RuntimeError("\n".join(missing.values()))

    row: dict[str, Any] = {"size": name, "shape": str(size), "dtype": dtype, "base": base, "ways": {}}
    for way, turns in done.items():
        seconds = seconds_of(turns, given.processor)
        ratios = [b / a for a, b in zip(seconds, seconds_of(done[base], given.processor), strict=True)]
        row["ways"][way] = {
            "tokens_per_second": round(size.tokens / statistics.median(seconds)),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "operations": operations(name, dtype, WAYS[way]) if way in WAYS else None,
            "peak_bytes": turns.peak_bytes,
        }
    return row


def seconds_of(turns: Turns, processor: bool) -> list[float]:
    return turns.cpu_seconds if processor else turns.seconds


def show(row: dict[str, Any]) -> None:
    print(f"{row['size']} {row['dtype']}: {row['shape']}", flush=True)
    for way, found in row["ways"].items():
        count = "" if found["operations"] is None else f"{found['operations']:,} operations"
        memory, least, most = found["peak_bytes"] / 2**20, min(found["ratios"]), max(found["ratios"])
        print(
            f"  {way:10} {found['tokens_per_second']:>9,} tokens/s  {found['ratio']:.2f} times {row['base']} "
            f"({least:.2f} to {most:.2f})  {memory:6,.0f} MiB  {count}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--previous", type=Path, metavar="CHECKOUT", help="another checkout, which takes turns with ours"
    )
    parser.add_argument("--sizes", nargs="+", choices=list(PLANNED), default=list(PLANNED))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=2**18, help="that a way reads in each of its turns")
    parser.add_argument("--processor", action="store_true", help="seconds of the process instead of the clock's")
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/paths.json")
    given = parser.parse_args()
    torch.set_num_threads(1)  # this process only counts operations
    rows = []
    for name in given.sizes:
        for dtype in given.dtypes:
            rows.append(measure(name, dtype, given))
            show(rows[-1])
    if given.json:
        peers = {"previous": commit(given.previous)} if given.previous else {}
        clock = "processor" if given.processor else "wall"
        torch.set_num_threads(given.threads)  # for the record
        record("paths", {"threads": given.threads, "clock": clock, "rounds": given.rounds, "rows": rows}, peers)


if __name__ == "__main__":
    main()
