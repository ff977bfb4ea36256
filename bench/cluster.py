"""Calculate training on a cluster: tokens/s, memory and the parts of a step's time, for ddp, fsdp and hsdp.

    python bench/cluster.py --model gpt3-13b [--gpus 8 64 512] [--cluster h100] [--batch 2e6] [--share 0.45]
    python bench/cluster.py --check      # published runs next to their predictions
    python bench/cluster.py --fit        # fit its one constant again

A calculation, not a measurement: the model is in isoflop/plan/cluster, and docs/many-machines.md says how far to trust
it. `--batch` is the number of tokens per optimiser step over all GPUs; each pass takes as many sequences as fit.
`--share` is the share of the peak that a single GPU reaches without communication: measure it on one node. hsdp shards
within whole nodes, as many as are fastest. Parameters, gradients and moments are in float32, matrix products in
bfloat16, and reductions in float32. By default a step is that of isoflop/parallel/shard.py: parameters are gathered in
float32, gradients are reduced after the last pass (until then fsdp holds them unsharded), and the model is built whole
on every GPU before it is sharded. `--gather 2`, `--sum every` and `--pieces` calculate the alternatives.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from isoflop.model.count import build_on_meta, count, palm
from isoflop.model.presets import PRESETS
from isoflop.parallel.cost import Parallelism
from isoflop.plan.cluster.layouts import Row, Shape, Way, rows
from isoflop.plan.cluster.machines import CLUSTERS, Cluster
from isoflop.plan.cluster.timing import PAID, Work, step

GPUS = [8, 16, 32, 64, 128, 256, 512, 1024]


def shape_of(name: str) -> Shape:
    """The quantities of a preset that the calculation needs."""
    config = PRESETS[name]()
    model = build_on_meta(config)
    n = count(model)
    return Shape(
        parameters=n.total,
        flops=palm(model, config.context),
        layers=config.layers,
        d_model=config.d_model,
        context=config.context,
        largest_unit=max(n.embedding, n.blocks // config.layers),
    )


def show(name: str, cluster: Cluster, sizes: list[int], batch: float, way: Way) -> None:
    model = shape_of(name)
    print(
        f"{name}: {model.parameters / 1e9:.2f}e9 parameters, {batch:,.0f} tokens per step, context {model.context:,}, "
        f"{way.share:.0%} of the peak when alone"
    )
    print("| GPUs | mode | shards | sequences x passes | tokens/s | MFU | step | compute | exposed | memory |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for gpus in sizes:
        found = list(rows(model, cluster, gpus, batch, way))
        best = max((row.tokens_per_second(model) for row in found if isinstance(row, Row)), default=0.0)
        marked = False
        for row in found:
            if isinstance(row, str):
                mode, reason = row.split(maxsplit=1)
                print(f"| {gpus:,} | {mode} | {reason} |")
                continue
            speed, took = row.tokens_per_second(model), row.step
            chosen = not marked and speed >= 0.99 * best  # of equals, the simplest
            marked |= chosen
            mode = f"**{row.layout.mode}**" if chosen else row.layout.mode
            print(
                f"| {gpus:,} | {mode} | {row.layout.shards:,} | {row.sequences} x {row.passes} | {speed:,.0f} "
                f"| {speed * model.flops / gpus / cluster.peak:.1%} | {took.seconds:.3g} s | {took.compute:.3g} s "
                f"| {took.exposed:.3g} s ({took.exposed / took.seconds:.0%}) | {row.held.total / 1e9:.0f} GB |"
            )


@dataclass(frozen=True)
class Published:
    """A published run. `of`: the run from which the share of the peak is taken, the smallest of its kind; speeds are in
    tokens/s per GPU."""

    source: str
    model: str
    parameters: float
    layers: int
    d_model: int
    context: int
    gpus: int
    sequences: int
    passes: int
    recompute: bool
    speed: float
    embedding: float = 0.0  # parameters that the source's FLOPs leave out
    reduce_bytes: float = 4

    @property
    def kind(self) -> tuple[str, str]:
        return self.source, self.model

    @property
    def work(self) -> Work:
        flops = 6 * (self.parameters - self.embedding) + 12 * self.layers * self.d_model * self.context
        tokens = self.sequences * self.context
        return Work(self.parameters, flops, tokens, self.layers + 1, self.passes, self.recompute)

    def predicted(self, share: float, paid: float = PAID) -> float:
        layout = Parallelism("fsdp", self.gpus)
        taken = step(self.work, layout, MACHINES[self.source], share, reduce_bytes=self.reduce_bytes, paid=paid)
        return self.work.tokens * self.passes / taken.seconds

    def share(self, paid: float = PAID) -> float:
        """The share of the peak that follows from this run's speed."""
        return bisect(lambda share: self.predicted(share, paid) - self.speed, 0.01, 10.0)


# torchtitan: H100 with 2.4 TB/s at 500 W, 400 Gb/s per GPU, FSDP2, Llama 3.1 8B at 8,192, selective recomputation (not
# counted here: it is small and in the share). benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3, which the
# paper has too (2410.06511). 8.03e9 parameters, 525e6 of them in the embedding.
# MosaicML: github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md, MPT at 2,048, FULL_SHARD; H100 80GB
# BF16 ("amp_bf16, DEFAULT": sums in float32; its network is not given, 400 Gb/s per GPU is assumed), and A100 40GB
# with 1600 Gb/s per node ("bf16, PURE": sums in bfloat16).
# Kempner: KempnerInstitute/KempnerForge, benchmarks/mfu_scaling/mfu_scaling_2026-04-05.md, H200 in nodes of 4, the
# rows of the 7B with FSDP alone, compiled.
# IBM: pytorch.org/blog/maximizing-training (2024-03-13), table 1, Llama 2 at 4,096 on 128 A100 with 400 Gb/s a
# node; one size of machine only.
_H100, _A100 = CLUSTERS["h100"], CLUSTERS["a100"]
MACHINES = {
    "torchtitan": replace(_H100, memory_rate=2.4e12),
    "torchtitan, compiled": replace(_H100, memory_rate=2.4e12),
    "MosaicML H100": _H100,
    "MosaicML A100": _A100,
    "Kempner H200": replace(_H100, memory_rate=4.8e12, node=4, network=200e9),
    "IBM A100": replace(_A100, network=50e9),
}
MPT = {  # layers, width, parameters
    "760m": (24, 1536, 760470528),
    "1b": (24, 2048, 1315950592),
    "3b": (32, 2560, 2651837440),
    "7b": (32, 4096, 6658859008),
    "13b": (40, 5120, 12853954560),
    "30b": (48, 7168, 29975214080),
    "70b": (80, 8192, 64862437376),
}
MPT_H100 = [  # model, GPUs, sequences, passes, recomputation, tokens/s per GPU
    ("1b", 8, 14, 1, False, 45455),
    ("1b", 16, 20, 1, False, 46037),
    ("1b", 32, 20, 1, False, 45130),
    ("1b", 64, 20, 1, False, 44402),
    ("3b", 16, 10, 3, False, 24142),
    ("3b", 32, 6, 3, False, 23021),
    ("3b", 64, 6, 3, False, 22525),
    ("7b", 8, 6, 1, False, 10643),
    ("13b", 8, 2, 1, False, 4792),
    ("13b", 16, 2, 1, False, 4767),
    ("13b", 32, 2, 1, False, 4811),
    ("13b", 64, 2, 1, False, 4800),
    ("30b", 8, 3, 21, True, 2002),
    ("30b", 16, 10, 3, True, 2263),
    ("30b", 32, 14, 3, True, 2308),
    ("70b", 32, 2, 16, True, 882),
    ("70b", 64, 8, 4, True, 1039),
]
MPT_A100 = [
    ("760m", 8, 12, 4, False, 30173),
    ("760m", 16, 12, 1, False, 29607),
    ("760m", 32, 12, 1, False, 29648),
    ("760m", 64, 12, 1, False, 29344),
    ("760m", 128, 12, 1, False, 28940),
    ("1b", 8, 8, 8, False, 19271),
    ("1b", 16, 8, 1, False, 19085),
    ("1b", 32, 10, 1, False, 15555),
    ("1b", 64, 10, 1, False, 19001),
    ("1b", 128, 10, 1, False, 18647),
    ("3b", 8, 5, 8, False, 10065),
    ("3b", 16, 5, 1, False, 9750),
    ("3b", 32, 6, 1, False, 9914),
    ("3b", 64, 6, 1, False, 9736),
    ("3b", 128, 6, 1, False, 9538),
    ("7b", 8, 12, 4, True, 3679),
    ("7b", 16, 16, 1, True, 3645),
    ("7b", 32, 18, 1, True, 3725),
    ("7b", 64, 18, 1, True, 3665),
    ("7b", 128, 18, 1, True, 3623),
    ("13b", 8, 4, 16, True, 1668),
    ("13b", 16, 10, 1, True, 1993),
    ("13b", 32, 14, 1, True, 1998),
    ("13b", 64, 16, 1, True, 1976),
    ("13b", 128, 16, 1, True, 1972),
    ("30b", 32, 4, 1, True, 857),
    ("30b", 128, 6, 1, True, 865),
    ("70b", 64, 2, 1, True, 276),
    ("70b", 128, 4, 1, True, 376),
]


def titan(source: str, gpus: int, speed: float) -> Published:
    return Published(source, "8b", 8.03e9, 32, 4096, 8192, gpus, 2, 1, False, speed, embedding=525e6)


def mpt(source: str, row: tuple[str, int, int, int, bool, float], reduce_bytes: float) -> Published:
    name, gpus, sequences, passes, recompute, speed = row
    layers, d_model, parameters = MPT[name]
    return Published(
        source, name, parameters, layers, d_model, 2048, gpus, sequences, passes, recompute, speed, 0.0, reduce_bytes
    )


PUBLISHED = [
    titan("torchtitan", 8, 5762),
    titan("torchtitan", 128, 5605),
    titan("torchtitan, compiled", 8, 6667),
    titan("torchtitan, compiled", 128, 6514),
    *(mpt("MosaicML H100", row, 4) for row in MPT_H100),
    *(mpt("MosaicML A100", row, 2) for row in MPT_A100),
    *(
        Published("Kempner H200", "7b", 8.03e9, 32, 4096, 4096, gpus, 4, 2, True, speed)
        for gpus, speed in ((1, 10471), (2, 18728 / 2), (4, 38983 / 4))
    ),
    Published("IBM A100", "7b", 6.738e9, 32, 4096, 4096, 128, 2, 1, False, 3700, 0.0, 2),
]
FITTED = "MosaicML H100"


def check() -> list[tuple[Published, float, float]]:
    """(run, share used, error of the prediction) of every published run.

    The share is that of the first run of its kind, whose error is therefore 0. IBM's run has no smaller one: its share
    is that of MosaicML's 7b on A100, another program on the same GPU.
    """
    first: dict[tuple[str, str], float] = {}
    found = []
    for run in PUBLISHED:
        if run.source == "IBM A100":
            first[run.kind] = first["MosaicML A100", "7b"]
        share = first.setdefault(run.kind, run.share())
        found.append((run, share, run.predicted(share) / run.speed - 1))
    return found


def unfitted() -> list[tuple[Published, float]]:
    """The runs that no constant was fitted to, and the error of each."""
    return [(run, error) for run, _, error in check() if run.source != FITTED and abs(error) > 1e-6]


def summary() -> str:
    errors = sorted(abs(error) for _, error in unfitted())
    return (
        f"{len(errors)} runs that nothing was fitted to: half are within {errors[len(errors) // 2]:.1%}, "
        f"{sum(error < 0.03 for error in errors)} within 3%, the worst is off by {errors[-1]:.0%}"
    )


def fit() -> tuple[float, float]:
    """(PAID, root mean square error), with one share per model on FITTED's rows: 7 constants, 17 rows."""
    runs = [run for run in PUBLISHED if run.source == FITTED]

    def misses(paid: float) -> float:
        """Mean squared log error, with each model's share at its best, where the errors of its runs have mean 0."""
        total = 0.0
        for name in {run.model for run in runs}:
            mine = [run for run in runs if run.model == name]
            share = bisect(lambda s: sum(math.log(r.predicted(s, paid) / r.speed) for r in mine), 0.01, 10.0)  # noqa: B023
            total += sum(math.log(r.predicted(share, paid) / r.speed) ** 2 for r in mine)
        return total / len(runs)

    coarse = min(range(0, 160, 10), key=lambda percent: misses(percent / 100))
    paid = min(range(coarse - 9, coarse + 10), key=lambda percent: misses(percent / 100)) / 100
    return paid, math.sqrt(misses(paid))


def bisect(f: Callable[[float], float], low: float, high: float) -> float:
    """The zero of an increasing function."""
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(PRESETS), default="gpt3-13b")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--cluster", choices=list(CLUSTERS), default="h100")
    parser.add_argument("--batch", type=float, default=2**21, help="tokens per optimiser step")
    parser.add_argument(
        "--share", type=float, default=0.41, help="share of the peak without communication (0.41: torchtitan's)"
    )
    parser.add_argument("--recompute", action="store_true", help="recompute the blocks in the backward pass")
    parser.add_argument("--gather", type=int, choices=[2, 4], default=4, help="bytes per gathered parameter")
    parser.add_argument(
        "--sum", choices=["last", "every"], default="last", help="the pass after which gradients are reduced"
    )
    parser.add_argument("--pieces", action="store_true", help="as if the model were built sharded")
    parser.add_argument("--network", type=float, help="Gb/s per node, all adapters together")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--fit", action="store_true")
    given = parser.parse_args()
    if given.fit:
        paid, error = fit()
        print(f"PAID = {paid:.2f}, root mean square error {error:.1%} on {FITTED}")
    elif given.check:
        for run, share, error in check():
            note = "gives the share" if abs(error) < 1e-6 else f"{error:+.1%}"
            print(
                f"{run.source:21} {run.model:5} {run.gpus:4} GPUs {run.sequences:3} x {run.passes:<3} "
                f"{run.speed:>8,.0f} tok/s per GPU   share {share:.3f}   {note}"
            )
        print(summary())
    else:
        cluster = CLUSTERS[given.cluster]
        if given.network:
            cluster = replace(cluster, network=given.network * 1e9 / 8)
        way = Way(given.share, given.recompute, given.gather, given.sum == "every", given.pieces)
        show(given.model, cluster, given.gpus, given.batch, way)


if __name__ == "__main__":
    main()
