"""How far a run is from a baseline, and which difference chance alone would make: numbers for the comparing page.

Two kinds of chance are kept apart. The held-out text is a sample: how much the difference would change on other text of
its kind is read off stretches of it that both runs were measured on (heldout.json). And each run is one of many that
other seeds would have given: how far those lie apart is known from runs among those compared that differ in nothing
else, or from measurements at about this size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from isoflop.records import Run
from isoflop.report.facts import Facts

FEWEST_PIECES = 8  # stretches that an interval is made from
Z = 1.96  # two-sided 95 %
# Two runs that differ in the seed alone: root mean square of the difference, as a share of the loss, over the eight
# pairs of isoflop/plan/prior.json, 57,344 and 104,448 parameters N; and up to which N that is taken for known
SEED_SHARE, SEED_PAIRS, SEED_KNOWN_TO = 0.0085, 8, 1_000_000
# fields of the configuration that do not decide what is learned
BESIDE = ("every", "sample", "trackers", "parallel", "guard", "evaluate_tokens", "seconds", "runtime")


@dataclass(frozen=True)
class Chance:
    """What chance does to a difference.

    Attributes:
        bits: standard deviation in bits per byte; None: not known.
        source: where that is from, in words.
    """

    bits: float | None
    source: str


@dataclass(frozen=True)
class Difference:
    """A run less the baseline, in bits per byte.

    Attributes:
        bits: None where one of them has none.
        by_text, by_seed: what chance does.
    """

    bits: float | None
    by_text: Chance
    by_seed: Chance

    @property
    def noise(self) -> float | None:
        """The difference that chance alone stays below in 95 % of cases; None where the seeds' part is not known."""
        if self.by_seed.bits is None:
            return None
        return Z * math.hypot(self.by_text.bits or 0.0, self.by_seed.bits)

    @property
    def reading(self) -> str:
        """The difference in words."""
        if self.bits is None:
            return ""
        if self.noise is None:
            return "what a seed does is not known here"
        if abs(self.bits) <= self.noise:
            return "no difference shown"
        return "lower" if self.bits < 0 else "higher"


def difference(run: Facts, base: Facts, seeds: Chance) -> Difference:
    """A run beside the baseline.

    Args:
        seeds: how far two seeds lie apart.
    """
    one, other = run.reached.bits_per_byte, base.reached.bits_per_byte
    bits = one - other if one is not None and other is not None else None
    return Difference(bits, by_text(run.run, base.run), seeds)


def by_text(run: Run, base: Run) -> Chance:
    """The standard deviation of a difference over held-out texts, from stretches that both were measured on."""
    one, other = run.pieces, base.pieces
    if not one.nats or not other.nats:
        return Chance(None, "not recorded stretch by stretch")
    same = one.fingerprint == other.fingerprint and one.tokens == other.tokens and one.bytes == other.bytes
    if not same or len(one.nats) != len(one.bytes) or len(other.nats) != len(one.nats):
        return Chance(None, "measured on other text, or cut in another way")
    count, size = len(one.nats), np.array(one.bytes, dtype=np.float64)
    if count < FEWEST_PIECES or not size.sum() > 0:
        return Chance(None, f"{count} stretches are too few")

    # the error of a ratio of sums, by its linear part (Cochran 1977, section 2.11)
    apart = (np.array(one.nats) - np.array(other.nats)) / math.log(2)
    missed = apart - apart.sum() / size.sum() * size
    deviation = math.sqrt(count / (count - 1) * float((missed**2).sum())) / float(size.sum())
    return Chance(deviation, f"{count} stretches of the held-out text, pair by pair")


def by_seed(runs: Sequence[Facts]) -> Chance:
    """How far two seeds lie apart: from runs that differ in nothing else, or from what was measured at this size."""
    apart = [
        one.reached.bits_per_byte - other.reached.bits_per_byte
        for one, other in combinations(runs, 2)
        if one.reached.bits_per_byte is not None
        and other.reached.bits_per_byte is not None
        and learned(one.run) == learned(other.run)
        and one.run.settings.seed != other.run.settings.seed
    ]
    if apart:
        pairs = "pair of these runs differs" if len(apart) == 1 else "pairs of these runs differ"
        bits = math.sqrt(sum(value**2 for value in apart) / len(apart))
        return Chance(bits, f"{len(apart)} {pairs} in the seed alone")
    base = runs[0]
    size = base.parameters or (base.reached.flops or 0.0) / (6 * (base.reached.tokens or math.inf))
    if base.reached.bits_per_byte is None or not size or size > SEED_KNOWN_TO:
        return Chance(None, "not known at this size; train the same again with --like RUN --set seed=1")
    share = f"two seeds lie {100 * SEED_SHARE:.2g} % of the loss apart"
    return Chance(SEED_SHARE * base.reached.bits_per_byte, f"{share} in {SEED_PAIRS} pairs of small runs")


def learned(run: Run) -> dict[str, Any]:
    """What decides what a run learns, but for its seed; with the text and the dtype."""
    config = {name: value for name, value in run.config.items() if name not in (*BESIDE, "seed", "data")}
    return {**config, "text": run.data.fingerprint, "dtype": run.settings.runtime.dtype, "steps": run.result.step}
