"""What to train on machines that are not at hand: N, D, shape, mode, tokens per second, loss and dollars.

A calculation: nothing is timed. For every shape of a ladder, finer than the planner's, the fastest way to train it on
the cluster is found (layouts.py), the time that there is turned into tokens, and the tokens into a loss by a scaling
law; the shape of least loss is taken. So equal seconds decide, not equal FLOPs: what a larger model loses to
communication and memory counts against it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isoflop.errors import UserError
from isoflop.plan.cluster.layouts import MODES, Row, Shape, Way, rows
from isoflop.plan.cluster.machines import CLUSTERS
from isoflop.plan.law.bootstrap import Interval
from isoflop.plan.law.counting import Counts
from isoflop.plan.law.forms import Published
from isoflop.plan.law.predict import Basis, run_loss
from isoflop.plan.law.repeated import DataConstrained
from isoflop.plan.settings import batch_tokens_for, bytes_per_token_for, context_for, vocabulary_for
from isoflop.trainer.causal_lm import LADDER

SHARE = 0.45  # of the peak that one GPU reaches alone: 0.425 at 124M and 0.46 at 1.5B on an H100 (docs/on-a-gpu.md)
SHARES = (0.35, 0.61)  # that published runs on H100 reach (timing.py)
NARROWEST = 768  # the width below which nothing of that was measured
WIDTHS = (*range(256, 2048, 128), *range(2048, 4096, 256), *range(4096, 8193, 512))  # nobody rents a cluster for less
FEWEST_STEPS = 100
MISS = 0.019  # how far converged fits miss held-out budgets, mean of five studies (docs/scaling-laws.md), of the loss
Z = 1.645  # standard deviations to either side that hold 90 %


@dataclass(frozen=True)
class Job:
    """What is asked.

    Attributes:
        gpus, machine: how many of which, a name of machines.CLUSTERS.
        seconds: of training.
        price: dollars per GPU hour; 0: not asked.
        share: of the peak that a GPU reaches alone.
        text_bytes: of text that there is; infinite: more than is read.
    """

    gpus: int
    machine: str
    seconds: float
    price: float = 0.0
    share: float = SHARE
    text_bytes: float = math.inf

    @property
    def dollars(self) -> float:
        return self.price * self.gpus * self.seconds / 3600

    def times(self, factor: float) -> "Job":
        return Job(self.gpus, self.machine, factor * self.seconds, self.price, self.share, self.text_bytes)


@dataclass(frozen=True)
class Advice:
    """One model, and what a job makes of it.

    Attributes:
        n: parameters as the law counts them; parameters: all.
        tokens: D; unique: those that are not repeats.
        speed: tokens per second of all GPUs together.
        flops: 6 N D, N the weights of blocks and head.
        loss: as the law has it, in its unit, for one run.
    """

    job: Job
    shape: Shape
    vocabulary: int
    n: float
    tokens: float
    unique: float
    batch: float
    row: Row
    way: Way
    speed: float
    flops: float
    loss: Interval

    @property
    def parameters(self) -> int:
        return self.shape.parameters

    @property
    def utilisation(self) -> float:
        """MFU: the model's FLOPs by PaLM's count over the data sheet's peak."""
        return self.speed * self.shape.flops / (self.job.gpus * CLUSTERS[self.job.machine].peak)


def advise(job: Job, basis: Basis, counts: Counts, published: Published | None = None) -> Advice:
    """The model of least loss.

    Args:
        basis, counts: the law and what its N counts; published: the paper that it is from, if it is.

    Raises:
        UserError: if no shape can be trained on these GPUs in this time.
    """
    found = list(options(job, basis, counts, published))
    if not found:
        raise UserError(
            f"{job.gpus} x {job.machine} for {job.seconds:,.0f} s take fewer than {FEWEST_STEPS} steps of any shape "
            "that fits them: give more time"
        )
    return min(found, key=lambda one: one.loss.value)


def options(job: Job, basis: Basis, counts: Counts, published: Published | None = None) -> Iterator[Advice]:
    """Every shape of the ladder that these GPUs can train, each in the fastest way that was found."""
    cluster = CLUSTERS[job.machine]
    flops = job.seconds * job.gpus * cluster.peak * job.share
    context, vocabulary = context_for(flops), vocabulary_for(flops, job.text_bytes)
    law = DataConstrained(basis.law)
    for layers, width in ladder():
        shape = shape_of(layers, width, vocabulary, context)
        batch = max(batch_tokens_for(flops / shape.flops), float(job.gpus * context))
        best = fastest_of_all(shape, job, batch)
        if best is None:
            continue
        row, way = best
        speed = row.tokens_per_second(shape)
        tokens = speed * job.seconds
        batch = float(job.gpus * row.sequences * row.passes * context)
        if tokens < FEWEST_STEPS * batch:
            continue
        unique = min(tokens, job.text_bytes / bytes_per_token_for(vocabulary))
        n = counted(layers, width, vocabulary, counts.parameters)
        value = float(law.loss(n, tokens, unique))
        matmul = counted(layers, width, vocabulary, "matmul")
        loss = interval(value, n, tokens, basis, published)
        yield Advice(job, shape, vocabulary, n, tokens, unique, batch, row, way, speed, 6 * matmul * tokens, loss)


def ladder() -> Iterator[tuple[int, int]]:
    """Layers and width: the planner's ladder with widths in between, the layers interpolated by log width."""
    depths, widths = np.array(LADDER, dtype=np.float64).T
    for width in WIDTHS:
        yield round(float(np.interp(math.log(width), np.log(widths), depths))), width


def fastest_of_all(shape: Shape, job: Job, batch: float) -> tuple[Row, Way] | None:
    """The fastest of ddp, fsdp and hsdp, with and without recomputation; of equals the simplest. None: none fits."""
    modes = MODES if job.gpus > 1 else ("none",)
    found = [
        (row, way)
        for way in (Way(job.share), Way(job.share, recompute=True))
        for row in rows(shape, CLUSTERS[job.machine], job.gpus, batch, way, modes)
        if isinstance(row, Row)
    ]
    if not found:
        return None
    quickest = min(row.step.seconds for row, _ in found)
    return next(pair for pair in found if pair[0].step.seconds <= 1.01 * quickest)


def shape_of(layers: int, width: int, vocabulary: int, context: int) -> Shape:
    """The default model in a shape, by its formulas: blocks of 12 L d^2, an embedding and a head of V d each; 6 FLOPs
    per weight that multiplies, and attention's 12 L d T."""
    blocks, table = 12 * layers * width**2, vocabulary * width
    return Shape(
        parameters=blocks + 2 * table,
        flops=6.0 * (blocks + table) + 12.0 * layers * width * context,
        layers=layers,
        d_model=width,
        context=context,
        largest_unit=max(table, blocks // layers),
    )


def counted(layers: int, width: int, vocabulary: int, convention: str) -> float:
    """N by a convention of counting.PARAMETERS; "unstated" is taken for isoflop's own."""
    tables = {"blocks": 0, "matmul": 1, "total": 2}.get(convention, 1)
    return 12.0 * layers * width**2 + tables * vocabulary * width


def interval(value: float, n: float, d: float, basis: Basis, published: Published | None) -> Interval:
    """90 % about the loss of one run.

    A stored fit brings its bootstrap, noise and what it misses beyond its points. Of a published law only standard
    errors are known. They are taken for independent, which is wider than their correlations would have it, and each
    exponent's error turns its term about the middle of the runs that it was fitted to; then MISS is added.
    """
    if published is None:
        one = run_loss(basis, n, d)
        scale = value / one.value  # repeated text: the law's own doubt, of the loss that it leads to
        return Interval(value, scale * one.low, scale * one.high, one.error)

    law = published.law
    of_e, of_alpha, of_beta = published.errors or (0.0, 0.0, 0.0)
    n_0, d_0 = float(law.n_star(published.middle)), float(law.d_star(published.middle))
    parts = (
        of_e,
        float(law.n_term(n)) * math.log(n / n_0) * of_alpha,
        float(law.d_term(d)) * math.log(d / d_0) * of_beta,
        MISS * value,
    )
    error = float(np.sqrt(np.sum(np.square(parts))))
    return Interval(value, value - Z * error, value + Z * error, error)
