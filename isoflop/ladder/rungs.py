"""Which runs a ladder makes: sizes, lengths, learning rates and seeds that say most about a larger run.

A law L(N, D) needs runs that differ in N and in D apart from each other: runs on one ray D = k N do not tell the two
terms from each other (arXiv 2605.08541). So each size has lengths of 1, 2, 4 and 8 times its shortest, from about 5 to
40 tokens per parameter, and the lengths are set so that compute falls on a grid of powers of two: at most budgets there
are several sizes, as on an isoFLOP curve. The largest size, which costs about half of everything, has no longest run.

Runs of one size share their beginning: with a schedule that is constant up to its decay, the run of twice the length
starts where the decay of the shorter one began (Hu et al. 2024; Hägele et al. 2024). With a decay of 30 % four lengths
cost 10.1 times the shortest and not 15. Other schedules have a run of its own for each length.

Two sizes, the smallest and the middle one, are also run at half and twice the learning rates and with other seeds.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from isoflop.errors import UserError

LENGTHS = (1, 2, 4, 8)  # times the tokens of a size's shortest run
SHORTEST = 5.0  # tokens per parameter of the shortest run, about
MOST_SIZES, FEWEST_SIZES = 6, 3
APART = 1.35  # times the parameters of the next smaller size, at least
FACTORS = (0.5, 1.0, 2.0)  # of the learning rates, tried at two sizes
AT = 2  # length of the runs with other rates and seeds
OWN_SEED, RATE_SEED = 0, 1  # of the runs of several lengths, and of those with other rates
REPEATS = ((2, 3), (2,))  # further seeds at the smallest and the middle size
AROUND = 1.5  # seconds of a run outside its steps: starting, measuring, checkpoints
FILLED = 0.9  # of a budget that is planned for: the estimates are what they are


@dataclass(frozen=True)
class Size:
    """A size that may become a rung.

    Attributes:
        layers, d_model: its shape.
        parameters: N of 6ND.
        speed: 6ND per second of one worker.
    """

    layers: int
    d_model: int
    parameters: float
    speed: float


@dataclass(frozen=True)
class Rung:
    """A size with the tokens of its shortest run, and the lengths of its runs as multiples of that."""

    size: Size
    tokens: float
    lengths: tuple[int, ...] = LENGTHS

    @property
    def flops(self) -> float:
        """Of its shortest run."""
        return 6.0 * self.size.parameters * self.tokens


@dataclass(frozen=True)
class Planned:
    """A piece of a ladder that one worker does: runs of one size that share their beginning, or a single run.

    Attributes:
        role: "rung", "rate" or "repeat".
        factor: of the learning rates.
    """

    rung: Rung
    lengths: tuple[int, ...]
    role: str = "rung"
    factor: float = 1.0
    seed: int = OWN_SEED


def shortest(parameters: float) -> float:
    """Tokens of a size's shortest run: about SHORTEST per parameter, so that its FLOPs are a power of two."""
    return float(2.0 ** round(math.log2(6.0 * SHORTEST * parameters**2)) / (6.0 * parameters))


def trained(lengths: Sequence[int], decay: float | None) -> float:
    """Steps that runs of these lengths take together, over those of the shortest.

    Args:
        decay: the share of a run in which the rate falls; None: the runs share nothing.
    """
    if decay is None:
        return float(sum(lengths))
    before = [0.0, *((1 - decay) * length for length in lengths[:-1])]
    return sum(length - start for length, start in zip(lengths, before, strict=True))


def seconds_of(planned: Planned, decay: float | None, measured: float) -> float:
    """Seconds that one worker takes for a piece.

    Args:
        measured: held-out tokens at the end of each run, whose forward pass costs a third of a step's.
    """
    rung, steps = planned.rung, trained(planned.lengths, decay)
    tokens = steps * rung.tokens + len(planned.lengths) * measured / 3
    return 6.0 * rung.size.parameters * tokens / rung.size.speed + AROUND * len(planned.lengths)


def pieces(rungs: Sequence[Rung], decay: float | None, workers: int) -> list[Planned]:
    """Everything that a ladder of these rungs runs at first, the shortest piece first, so that a budget that turns out
    too small costs the most expensive runs and not the cheap ones. With several workers the longest piece is begun
    first of all, next to the others, as it takes about as long as all of these together.
    """
    made = [
        Planned(rung, lengths)
        for rung in rungs
        for lengths in ([rung.lengths] if decay is not None else [(length,) for length in rung.lengths])
    ]
    for rung in tuned(rungs):
        made += [Planned(rung, (AT,), "rate", factor, RATE_SEED) for factor in FACTORS]
    for rung, seeds in zip(tuned(rungs), REPEATS, strict=True):
        made += [Planned(rung, (AT,), "repeat", 1.0, seed) for seed in seeds]
    cost = [trained(one.lengths, decay) * one.rung.flops for one in made]
    ordered = [one for _, one in sorted(zip(cost, made, strict=True), key=lambda pair: pair[0])]
    return [ordered[-1], *ordered[:-1]] if workers > 1 else ordered


def tuned(rungs: Sequence[Rung]) -> list[Rung]:
    """The rungs whose learning rates are tried: the smallest and the middle one."""
    return [rungs[0], rungs[len(rungs) // 2]]


def wall(works: Sequence[float], workers: int) -> float:
    """Seconds until some pieces are done, each taken by the next worker that is free, in order."""
    free = [0.0] * max(1, workers)
    for seconds in works:
        free[free.index(min(free))] += seconds
    return max(free)


def sets_of(sizes: Sequence[Size]) -> Iterator[list[Rung]]:
    """The ladders that there are, in ascending order of the largest size: of each largest size the next smaller ones,
    APART from each other, at most MOST_SIZES."""
    ordered = sorted(sizes, key=lambda size: size.parameters)
    for last in range(len(ordered)):
        chosen = [ordered[last]]
        for size in reversed(ordered[:last]):
            if len(chosen) < MOST_SIZES and chosen[-1].parameters >= APART * size.parameters:
                chosen.append(size)
        if len(chosen) < FEWEST_SIZES:
            continue
        rungs = [Rung(size, shortest(size.parameters)) for size in reversed(chosen)]
        yield [*rungs[:-1], Rung(rungs[-1].size, rungs[-1].tokens, LENGTHS[:-1])]


def choose(
    sizes: Sequence[Size], seconds: float, workers: int, decay: float | None, measured: float, given: str = ""
) -> list[Rung]:
    """The ladder with the largest sizes that a budget pays for, smallest rung first.

    Args:
        sizes: that there are, in any order.
        seconds: of the budget.
        workers: at a time.
        decay, measured: see `trained` and `seconds_of`.
        given: the budget as it was written, for the message.

    Raises:
        UserError: if it pays for none, with what would.
    """
    best: list[Rung] | None = None
    least = math.inf
    for rungs in sets_of(sizes):
        takes = wall([seconds_of(one, decay, measured) for one in pieces(rungs, decay, workers)], workers)
        least = min(least, takes)
        if takes <= FILLED * seconds:
            best = rungs
    if best is None:
        if not math.isfinite(least):
            raise UserError(
                f"a ladder needs at least {FEWEST_SIZES} sizes and there are {len(sizes)}: leave model.layers and "
                "model.d_model to it"
            )
        needs = math.ceil(least / FILLED / 60)
        raise UserError(
            f"budget {given or f'{seconds:.0f}s'!s} is too small for a ladder here: the smallest one needs about "
            f"{least / FILLED:.0f} s; give it --budget {needs}m"
        )
    return best


def budgets(rungs: Sequence[Rung]) -> dict[float, int]:
    """How many sizes a ladder has at each compute, FLOPs in ascending order."""
    flops = sorted(rung.flops * length for rung in rungs for length in rung.lengths)
    return {value: len(list(group)) for value, group in itertools.groupby(flops, key=lambda one: float(f"{one:.6g}"))}
