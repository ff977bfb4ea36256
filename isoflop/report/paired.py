"""The difference of a run from a baseline, and the difference that chance alone would give.

There are two sources of chance. The held-out text is a sample: how much the difference would vary on other text of its
kind is estimated from stretches of it on which both runs were measured (heldout.json). And each run is one of many that
other seeds would have given: how much seeds differ is estimated from compared runs that differ in the seed alone, else
taken from measurements at about this size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from isoflop.records import Run
from isoflop.report.facts import Facts

FEWEST_PIECES = 8  # stretches needed for an interval
Z = 1.96  # two-sided 95 %

# Two runs that differ in the seed alone: root mean square of the difference as a share of the loss, over the eight
# pairs of isoflop/plan/prior.json with N = 57,344 and 104,448; and the largest N for which that is used.
SEED_SHARE, SEED_PAIRS, SEED_KNOWN_TO = 0.0085, 8, 1_000_000

# Fields of the configuration without influence on what is learned.
WITHOUT_INFLUENCE = ("every", "sample", "trackers", "parallel", "guard", "evaluate_tokens", "seconds", "runtime")


@dataclass(frozen=True)
class Chance:
    """The variation of a difference by chance.

    Attributes:
        bits: standard deviation in bits per byte; None: unknown.
        source: where it comes from, in words.
    """

    bits: float | None
    source: str


@dataclass(frozen=True)
class Difference:
    """A run minus the baseline, in bits per byte.

    Attributes:
        bits: None if one of the two has no loss.
        by_text, by_seed: the variation over held-out texts and over seeds.
    """

    bits: float | None
    by_text: Chance
    by_seed: Chance

    @property
    def noise(self) -> float | None:
        """The difference below which chance alone stays in 95 % of cases; None if the variation over seeds is
        unknown."""
        if self.by_seed.bits is None:
            return None
        return Z * math.hypot(self.by_text.bits or 0.0, self.by_seed.bits)

    @property
    def reading(self) -> str:
        """The difference in words."""
        if self.bits is None:
            return ""
        if self.noise is None:
            return "the noise between seeds is not known at this size"
        if abs(self.bits) <= self.noise:
            return "no difference shown"
        return "lower" if self.bits < 0 else "higher"


def difference(run: Facts, base: Facts, seeds: Chance) -> Difference:
    """A run minus the baseline.

    Args:
        seeds: the variation between two seeds.
    """
    reached, base_reached = run.reached.bits_per_byte, base.reached.bits_per_byte
    bits = reached - base_reached if reached is not None and base_reached is not None else None
    return Difference(bits, by_text(run.run, base.run), seeds)


def by_text(run: Run, base: Run) -> Chance:
    """The standard deviation of a difference over held-out texts, from stretches on which both were measured."""
    pieces, base_pieces = run.pieces, base.pieces
    if not pieces.nats or not base_pieces.nats:
        return Chance(None, "not recorded stretch by stretch")
    same_text = pieces.fingerprint == base_pieces.fingerprint
    same_cut = pieces.tokens == base_pieces.tokens and pieces.bytes == base_pieces.bytes
    if not (same_text and same_cut and len(pieces.nats) == len(pieces.bytes) == len(base_pieces.nats)):
        return Chance(None, "measured on other text, or on other stretches of it")
    count, size = len(pieces.nats), np.array(pieces.bytes, dtype=np.float64)
    if count < FEWEST_PIECES or not size.sum() > 0:
        return Chance(None, f"{count} stretches are too few")

    # The linearised standard error of a ratio of sums (Cochran 1977, Sampling Techniques, section 2.11).
    bits = (np.array(pieces.nats) - np.array(base_pieces.nats)) / math.log(2)
    residual = bits - bits.sum() / size.sum() * size
    deviation = math.sqrt(count / (count - 1) * float((residual**2).sum())) / float(size.sum())
    return Chance(deviation, f"{count} paired stretches of the held-out text")


def by_seed(runs: Sequence[Facts]) -> Chance:
    """The variation between two seeds: from runs that differ in the seed alone, else from measurements at this size."""
    differences = [
        first.reached.bits_per_byte - second.reached.bits_per_byte
        for first, second in combinations(runs, 2)
        if first.reached.bits_per_byte is not None
        and second.reached.bits_per_byte is not None
        and learning_setup(first.run) == learning_setup(second.run)
        and first.run.settings.seed != second.run.settings.seed
    ]
    if differences:
        pairs = "pair of these runs differs" if len(differences) == 1 else "pairs of these runs differ"
        bits = math.sqrt(sum(value**2 for value in differences) / len(differences))
        return Chance(bits, f"{len(differences)} {pairs} in the seed alone")

    base = runs[0]
    size = base.parameters or (base.reached.flops or 0.0) / (6 * (base.reached.tokens or math.inf))
    if base.reached.bits_per_byte is None or not size or size > SEED_KNOWN_TO:
        return Chance(None, "not known at this size; train the same again with --like RUN --set seed=1")
    share = f"two seeds differ by {100 * SEED_SHARE:.2g} % of the loss"
    return Chance(SEED_SHARE * base.reached.bits_per_byte, f"{share} in {SEED_PAIRS} pairs of small runs")


def learning_setup(run: Run) -> dict[str, Any]:
    """Everything that decides what a run learns, except its seed: configuration, text, dtype, steps."""
    config = {name: value for name, value in run.config.items() if name not in (*WITHOUT_INFLUENCE, "seed", "data")}
    return {**config, "text": run.data.fingerprint, "dtype": run.settings.runtime.dtype, "steps": run.result.step}
