"""The runs that a ladder would make, of a law that is known."""

import math

import numpy as np

from isoflop.ladder.rungs import Size, choose, pieces
from isoflop.plan.fitted import worth
from isoflop.plan.law.forms import Law
from isoflop.records.ladder import LadderRun

LAW = Law(0.7, 25.0, 60.0, 0.33, 0.33)
NOISE = 0.003
UNIQUE = 10**9


def law_runs(noise: float = NOISE, unique: int = UNIQUE, seconds: float = 20000) -> list[LadderRun]:
    """Bits per byte by LAW with some noise; 2 % more for each factor of two in the learning rates, squared."""
    rng = np.random.default_rng(0)
    sizes = [Size(1 + i // 2, 16 * (i + 1), 2e4 * 1.5**i, 1e10) for i in range(14)]
    made = []
    for work in pieces(choose(sizes, seconds, 2, 0.3, 1e5), 0.3, 2):
        for length in work.lengths:
            n, d = round(work.rung.size.parameters), round(work.rung.tokens * length)
            off = 0.02 * math.log2(work.factor) ** 2
            bits = float(LAW.loss(*worth(n, d, unique))) * math.exp(off + noise * rng.standard_normal())
            made.append(
                LadderRun(
                    key=f"{n}-{length}-{work.seed}-{work.factor}",
                    role=work.role,
                    layers=work.rung.size.layers,
                    d_model=work.rung.size.d_model,
                    parameters=n,
                    tokens=d,
                    flops=6.0 * n * d,
                    length=length,
                    unique_tokens=unique,
                    seed=work.seed,
                    factor=work.factor,
                    bits_per_byte=bits,
                    seconds=1.0,
                )
            )
    return made
